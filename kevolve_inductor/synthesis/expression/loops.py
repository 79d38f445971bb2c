"""Tasks: values computed over one iteration space and stored, with neighbouring axes merged where memory allows."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from ...graph.dims import Dim, product
from . import expression as ex
from .access import accesses, linear, offset_of, replace_variables, variables_outside_offsets
from .expression import Expr

Axis = tuple[str, Dim]


@dataclass(frozen=True)
class Store:
    """``value`` goes to element ``offset`` of output ``output``."""

    value: Expr
    offset: Expr
    output: int


@dataclass(frozen=True)
class Task:
    """``axes`` are variables with their extents, the outermost first; they are named ``x0, x1, …`` once normalised."""

    axes: tuple[Axis, ...]
    stores: tuple[Store, ...]

    @property
    def numel(self) -> Dim:
        return product(tuple(extent for _, extent in self.axes))

    @property
    def values(self) -> tuple[Expr, ...]:
        return tuple(store.value for store in self.stores)


def normalised(task: Task) -> Task:
    """Axes in the order of the first result's memory, merged wherever every access allows, renamed ``x0, x1, …``."""
    first = linear(task.stores[0].offset)
    axes = sorted(task.axes, key=lambda axis: -_stride(first.of(axis[0])))
    flat = merged(Task(tuple(axes), task.stores))
    if not flat.axes:
        return Task((("x0", 1),), flat.stores)
    names = {name: ex.var(f"x{k}", extent) for k, (name, extent) in enumerate(flat.axes)}
    renamed = tuple((f"x{k}", extent) for k, (_, extent) in enumerate(flat.axes))
    return Task(renamed, _replaced(flat.stores, names))


def _stride(coefficient: int) -> float:
    # A stride that is not a number belongs to an axis outside a dynamic one.
    return float(coefficient) if coefficient else float("inf")


def _replaced(stores: tuple[Store, ...], mapping: dict[str, Expr]) -> tuple[Store, ...]:
    return tuple(
        Store(replace_variables(s.value, mapping), replace_variables(s.offset, mapping, is_offset=True), s.output)
        for s in stores
    )


def merged(task: Task) -> Task:
    """``task`` with neighbouring axes made one wherever every access walks through both in one stride."""
    while True:
        pair = _mergeable(task)
        if pair is None:
            return task
        (outer, outer_extent), (inner, inner_extent) = task.axes[pair], task.axes[pair + 1]
        extent = product((outer_extent, inner_extent))
        name = f"{outer}_{inner}"
        stores = _replaced(task.stores, {outer: ex.index(0), inner: ex.var(name, extent)})
        task = Task((*task.axes[:pair], (name, extent), *task.axes[pair + 2 :]), stores)


def _mergeable(task: Task) -> int | None:
    """Position of the first axis that continues the next one in every access."""
    fixed = variables_outside_offsets(task.values)
    offsets = [linear(offset_of(access)) for access in accesses(task.values)]
    stored = [linear(store.offset) for store in task.stores]
    fixed |= {name for offset in stored for name in ex.variables(offset.rest)}
    for position, ((outer, _), (inner, extent)) in enumerate(pairwise(task.axes)):
        if outer in fixed or inner in fixed or not isinstance(extent, int):
            continue
        if all(offset.of(outer) == offset.of(inner) * extent for offset in (*offsets, *stored)):
            return position
    return None
