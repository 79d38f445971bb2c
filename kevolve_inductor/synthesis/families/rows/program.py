"""A row program: what one row of a tensor goes through, as an ordered list of statements.

The iteration space is a set of independent rows. Along a row lie *axes*: ``c``, the columns that are read, and one axis
per selection, the positions of what it selected. Every value is an expression over

- row variables ``r0, r1, …`` (which row this is),
- positions on one axis (a variable named like the axis),
- results of earlier statements: scalars of the row, or elements at the current position of a selection's axis.

So a value lives on one axis, or is a scalar of the row. Statements are ordered: each uses only results of those before.
Nothing here knows a language; ``cpp`` and ``triton`` print programs, in passes over the columns (``passes``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

from ....graph.dims import Dim
from ....graph.region import TensorSpec
from ...expression import expression as ex
from ...expression.expression import Expr

COLUMNS = "c"

ReduceOp = Literal["sum", "amax", "amin"]
# Which element comes first. NaN counts as the greatest number, except for "least" (arg-min), where it comes first.
Order = Literal["greatest", "smallest", "least"]


@dataclass(frozen=True)
class Reduce:
    """``result`` (a scalar variable) is ``value`` over all positions of ``axis``, in the dtype of ``result``.

    Maxima and minima propagate NaN.
    """

    result: Expr
    op: ReduceOp
    axis: str
    value: Expr


@dataclass(frozen=True)
class Select:
    """The first ``count`` elements of ``value`` over ``axis`` in ``order``; of equal ones the lower position comes first.

    Zeros of either sign are equal. ``values`` are bit-exact copies, ``indices`` positions on ``axis`` (``None`` where not
    needed). With ``out`` they are elements of that axis, else (``count`` is 1) scalars. ``dtype`` is that of the values
    as tensors, which may be narrower than they are held. ``any_of_equals``: eager promises no order among equal elements.
    """

    axis: str
    value: Expr
    dtype: str
    order: Order
    count: int
    out: str | None
    values: Expr | None
    indices: Expr | None
    any_of_equals: bool = False


@dataclass(frozen=True)
class Element:
    """``result`` (a scalar variable) is ``source`` (an element variable of a selection) at one fixed position."""

    result: Expr
    source: Expr
    position: int


Statement = Reduce | Select | Element


@dataclass(frozen=True)
class Store:
    """Output ``output`` at element offset ``offset`` is ``value``, for every row and every position of ``axis``."""

    output: int
    axis: str | None
    value: Expr
    offset: Expr


@dataclass(frozen=True)
class ColumnSum:
    """``result`` (an element of the columns) is the sum of ``value`` over all rows, in the dtype of ``result``."""

    result: Expr
    value: Expr


Step = Statement | Store | ColumnSum


@dataclass(frozen=True)
class RowProgram:
    """``rows`` are the row variables with their extents, outermost first; loads hold one flat element offset.

    ``inputs`` and ``outputs`` are the true specs; ``symbols`` the sizes passed at run time, sorted. ``column_stores``
    follow when all rows are done: their values are expressions over results of ``column_sums`` at a column.
    """

    rows: tuple[tuple[str, Dim], ...]
    axes: Mapping[str, int]
    statements: tuple[Statement, ...]
    stores: tuple[Store, ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    symbols: tuple[str, ...]
    column_sums: tuple[ColumnSum, ...] = ()
    column_stores: tuple[Store, ...] = ()

    @property
    def columns(self) -> int:
        return self.axes[COLUMNS]

    @property
    def flat_inputs(self) -> tuple[TensorSpec, ...]:
        """Specs for printers: every input as one dimension with stride 1, since loads hold flat offsets."""
        return tuple(TensorSpec((1,), (1,), spec.dtype, spec.device) for spec in self.inputs)

    @cached_property
    def _axis_of_variable(self) -> dict[str, str]:
        found = {name: name for name in self.axes} | {s.result.value[0]: COLUMNS for s in self.column_sums}
        for select in self.selects:
            if select.out is not None:
                found.update({v.value[0]: select.out for v in (select.values, select.indices) if v is not None})
        return found

    @property
    def selects(self) -> tuple[Select, ...]:
        return tuple(s for s in self.statements if isinstance(s, Select))

    @cached_property
    def scalars(self) -> frozenset[str]:
        """Names of the scalar results."""
        names = {s.result.value[0] for s in self.statements if isinstance(s, Reduce | Element)}
        for select in self.selects:
            if select.out is None:
                names |= {v.value[0] for v in (select.values, select.indices) if v is not None}
        return frozenset(names)

    def axis_of(self, expr: Expr) -> str | None:
        """The axis on which ``expr`` varies; ``None`` for a scalar of the row."""
        axes = {self._axis_of_variable[name] for name in ex.variables(expr) if name in self._axis_of_variable}
        if len(axes) > 1:
            raise ValueError(f"{expr} varies on {sorted(axes)}")
        return axes.pop() if axes else None

    def is_row_dependent(self, expr: Expr) -> bool:
        """Whether ``expr`` may differ between rows at the same position."""
        names = ex.variables(expr)
        positions = set(self.axes)
        return bool(names - positions)

    @property
    def expressions(self) -> list[Expr]:
        """Every value and offset of the program."""
        values = [s.source if isinstance(s, Element) else s.value for s in self.statements]
        values += [one.value for one in self.column_sums]
        stores = (*self.stores, *self.column_stores)
        return values + [part for store in stores for part in (store.value, store.offset)]

    def rewritten(self, statements: Iterable[Statement], change: Callable[[Expr], Expr]) -> RowProgram:
        """With other ``statements``, and ``change`` applied to what is stored and summed by column."""
        sums = tuple(replace(one, value=change(one.value)) for one in self.column_sums)
        stores = tuple(replace(store, value=change(store.value)) for store in self.stores)
        return replace(self, statements=tuple(statements), column_sums=sums, stores=stores)


@dataclass(frozen=True)
class Pass:
    """One sweep over the columns, then what needs no sweep: statements and stores on short axes and scalars."""

    sweep: tuple[Step, ...]
    after: tuple[Step, ...]


def passes(program: RowProgram, joined: Iterable[tuple[Reduce, Reduce]] = ()) -> tuple[Pass, ...]:
    """The fewest sweeps over the columns that respect the order of results.

    The second of each ``joined`` pair goes into the sweep of the first although it uses its result: the printer
    computes both together.
    """
    partner = {id(second): first for first, second in joined}
    ready: dict[str, int] = {}
    sweeps: dict[int, list[Step]] = {}
    afters: dict[int, list[Step]] = {}
    for step in (*program.statements, *program.column_sums, *program.stores):
        known = [ready[name] for name in used_by(step) if name in ready]
        level = max(known, default=-1)
        if _axis(step) == COLUMNS:
            if id(step) in partner:
                level = ready[partner[id(step)].result.value[0]] - 1
            level += 1
            sweeps.setdefault(level, []).append(step)
        else:
            level = max(level, 0)
            afters.setdefault(level, []).append(step)
        ready.update(dict.fromkeys(results_of(step), level))
    last = max([*sweeps, *afters], default=0)
    return tuple(Pass(tuple(sweeps.get(k, ())), tuple(afters.get(k, ()))) for k in range(last + 1))


def online_pairs(program: RowProgram) -> tuple[tuple[Reduce, Reduce], ...]:
    """Maximum and sum of exponentials over the columns that can be had in one sweep."""
    pairs = []
    maxima = {s.result: s for s in program.statements if isinstance(s, Reduce) and s.op == "amax" and s.axis == COLUMNS}
    for step in program.statements:
        if not isinstance(step, Reduce) or step.op != "sum" or step.axis != COLUMNS:
            continue
        if step.value.op not in ("exp", "exp_below"):
            continue
        shifted = step.value.args[0]
        if shifted.op == "sub" and shifted.args[1] in maxima and maxima[shifted.args[1]].value is shifted.args[0]:
            pairs.append((maxima[shifted.args[1]], step))
    return tuple(pairs)


def deviation_pairs(program: RowProgram) -> tuple[tuple[Reduce, Reduce], ...]:
    """Sums over the columns, each with the sum of squares of what is off its mean, that can be had in one sweep."""
    pairs = []
    totals = {s.result: s for s in program.statements if isinstance(s, Reduce) and s.op == "sum" and s.axis == COLUMNS}
    for step in program.statements:
        if not isinstance(step, Reduce) or step.op != "sum" or step.axis != COLUMNS or step.value.op != "mul":
            continue
        off, other = step.value.args
        if off is not other or off.op != "sub" or off.args[1].op != "truediv":
            continue
        total, count = off.args[1].args
        is_mean = total in totals and count.op == "const" and count.value == program.columns
        if is_mean and totals[total].value is off.args[0]:
            pairs.append((totals[total], step))
    return tuple(pairs)


def without_unused(program: RowProgram) -> RowProgram:
    """``program`` without statements and results that nothing uses."""
    ends: tuple[Store | ColumnSum, ...] = (*program.stores, *program.column_sums)
    used = {name for one in ends for name in ex.variables(one.value)}
    kept: list[Statement] = []
    for step in reversed(program.statements):
        if isinstance(step, Select):
            values, indices = (v if v is not None and v.value[0] in used else None for v in (step.values, step.indices))
            step = replace(step, values=values, indices=indices)
            if values is None and indices is None:
                continue
        elif step.result.value[0] not in used:
            continue
        used |= used_by(step)
        kept.append(step)
    return replace(program, statements=tuple(reversed(kept)))


def _axis(step: Step) -> str | None:
    if isinstance(step, ColumnSum):
        return COLUMNS
    return None if isinstance(step, Element) else step.axis


def used_by(step: Step) -> set[str]:
    """Names of the variables that a step reads."""
    if isinstance(step, Element):
        return {step.source.value[0]}
    used = ex.variables(step.value)
    return used | ex.variables(step.offset) if isinstance(step, Store) else used


def results_of(step: Step) -> list[str]:
    """Names of the variables of a row that a step defines."""
    if isinstance(step, Store | ColumnSum):
        return []
    results = (step.values, step.indices) if isinstance(step, Select) else (step.result,)
    return [result.value[0] for result in results if result is not None]
