"""What the family of bags reads off a graph: which rows of which tables are combined, and what becomes of the result."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

from ....graph.dims import Dim
from ....graph.region import TensorSpec
from ...expression import expression as ex
from ...expression.access import flatten
from ...expression.expression import Expr
from ...expression.loops import Store

Axis = tuple[str, Dim]
Combine = Literal["add", "maximum", "minimum"]
# Maps an expression; the flag says whether it is an element offset, whose sums are folded.
Mapping = Callable[[Expr, bool], Expr]

# The variable that counts the positions of a bag.
POSITION = "at"


@dataclass(frozen=True)
class Fold:
    """``body`` combined over the positions of a loop; variable ``name`` of type ``held`` is the result."""

    name: str
    body: Expr
    combine: Combine
    held: str

    @property
    def neutral(self) -> float | int:
        if self.combine == "add":
            return 0
        if self.held in ex.FLOATS:
            return float("-inf") if self.combine == "maximum" else float("inf")
        bits = int(self.held.removeprefix("int"))
        return -(2 ** (bits - 1)) if self.combine == "maximum" else 2 ** (bits - 1) - 1


@dataclass(frozen=True)
class Span:
    """Positions ``low <= at < high`` of a bag. ``length`` is their number where it is always the same, then from 0 on."""

    low: Expr
    high: Expr
    length: int | None = None

    @classmethod
    def of(cls, length: int) -> Span:
        return cls(ex.index(0), ex.index(length), length)


@dataclass(frozen=True)
class Loop:
    """What is folded over the positions of a span."""

    span: Span
    folds: tuple[Fold, ...]


@dataclass(frozen=True)
class Bag:
    """For every point of ``axes``, a bag, its loops; then, for every point of ``inner`` as well, ``stores``.

    Index data depend on ``axes`` and the position only, so that along ``inner`` whole rows of tables are read. ``fails``
    are conditions on a bag under which eager raises.
    """

    axes: tuple[Axis, ...]
    inner: tuple[Axis, ...]
    loops: tuple[Loop, ...]
    fails: tuple[Expr, ...]
    stores: tuple[Store, ...]

    @property
    def folds(self) -> Iterator[Fold]:
        return (fold for loop in self.loops for fold in loop.folds)

    @cached_property
    def row_variables(self) -> frozenset[str]:
        """Variables that differ from element to element of a row: inner axes, and folds of what moves along them."""
        rows = {name for name, _ in self.inner}
        for fold in self.folds:
            if not rows.isdisjoint(ex.variables(fold.body)):
                rows.add(fold.name)
        return frozenset(rows)

    def is_row(self, expr: Expr) -> bool:
        return not self.row_variables.isdisjoint(ex.variables(expr))

    def with_numbers(self, other: Bag) -> Bag:
        """This bag and ``other``, which has no inner axes and one loop each over spans that this one has."""
        more = {loop.span: loop.folds for loop in other.loops}
        loops = tuple(
            replace(loop, folds=tuple(dict.fromkeys((*loop.folds, *more.pop(loop.span, ()))))) for loop in self.loops
        )
        fails = tuple(dict.fromkeys((*self.fails, *other.fails)))
        return replace(self, loops=loops, fails=fails, stores=self.stores + other.stores)

    def mapped(self, new: Mapping) -> Bag:
        """This bag with ``new`` applied to all of its expressions, in a fixed order."""
        loops = tuple(
            replace(
                loop,
                span=replace(loop.span, low=new(loop.span.low, False), high=new(loop.span.high, False)),
                folds=tuple(replace(fold, body=new(fold.body, False)) for fold in loop.folds),
            )
            for loop in self.loops
        )
        stores = tuple(Store(new(store.value, False), new(store.offset, True), store.output) for store in self.stores)
        return replace(self, loops=loops, fails=tuple(new(fail, False) for fail in self.fails), stores=stores)


def gathers(expr: Expr) -> list[Expr]:
    """Reads of ``expr``, loads or flat, whose place depends on data that are read."""
    return [part for part in ex.walk(expr) if part.op in ("load", "read") and is_gather(part)]


def is_gather(read: Expr) -> bool:
    return any(inner.op in ("load", "read") for argument in read.args for inner in ex.walk(argument))


def fused(bags: Iterable[Bag]) -> list[Bag]:
    """Bags that fold the same over the same axes become one, so that rows are gathered once."""
    found: dict[tuple[object, ...], Bag] = {}
    for bag in bags:
        key = (bag.axes, bag.inner, bag.loops) if bag.loops else (bag,)
        same = found.get(key)
        found[key] = bag if same is None else replace(same, stores=same.stores + bag.stores)
    return list(found.values())


def joined(bags: Sequence[Bag]) -> list[Bag]:
    """Bags with what else is one number for each of them, over the same positions: indices are then read once."""
    rows = [bag for bag in bags if bag.inner]
    found: list[Bag] = []
    for bag in bags:
        spans = {loop.span for loop in bag.loops}
        hosts = [row for row in rows if row.axes == bag.axes and spans <= {loop.span for loop in row.loops}]
        if bag.inner or not spans or not hosts or len(spans) < len(bag.loops):
            found.append(bag)
        else:
            rows[rows.index(hosts[0])] = hosts[0].with_numbers(bag)
    return [rows.pop(0) if bag.inner else bag for bag in found]


def unrounded(expr: Expr) -> Expr:
    """``expr`` without the rounding of what memory holds in that precision already."""

    def exact(part: Expr) -> Expr | None:
        source = part.args[0] if part.op == "round" else part
        return source if part.op == "round" and source.op == "read" and source.value[1] == part.value else None

    return ex.substitute(expr, exact)


@dataclass(frozen=True)
class BagsPlan:
    """``built`` hold loads; ``bags`` are addressed by element, made when a kernel is first written."""

    built: tuple[Bag, ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    symbols: tuple[str, ...]

    @cached_property
    def bags(self) -> tuple[Bag, ...]:
        return tuple(bag.mapped(lambda expr, _: unrounded(flatten(expr, self.inputs))) for bag in self.built)


def extents(axes: Sequence[Axis]) -> tuple[Dim, ...]:
    return tuple(extent for _, extent in axes)
