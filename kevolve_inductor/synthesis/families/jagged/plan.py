"""What the jagged family reads off a graph: rows, positions within them, and what is computed there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

from ....graph.dims import Dim
from ....graph.region import TensorSpec
from ...expression import expression as ex
from ...expression.access import flatten
from ...expression.expression import Expr

Axis = tuple[str, Dim]
Combine = Literal["add", "maximum", "minimum"]

# The names of the variables: a row, a position (or an event) within it, and what is held at each position.
ROW, POSITION = "row", "at"


@dataclass(frozen=True)
class Dense:
    """One element for every row, position and inner index. ``rows`` and ``inner`` are axes, ``length`` of positions.

    ``fails`` are conditions on a row under which eager raises, beyond the index checks of ``value``.
    """

    rows: Axis
    length: int
    inner: tuple[Axis, ...]
    value: Expr
    offset: Expr
    output: int
    fails: tuple[Expr, ...] = ()

    @property
    def exprs(self) -> tuple[Expr, ...]:
        return (self.value, self.offset, *self.fails)


@dataclass(frozen=True)
class Span:
    """Positions ``low <= at < high`` of a row; both do not depend on ``at``."""

    low: Expr
    high: Expr


@dataclass(frozen=True)
class Reduce:
    """For every row and inner index, ``body`` combined over the row's ``spans``, then ``value`` of the result ``acc``.

    ``held`` is the type of the accumulator, ``empty`` what a row without positions starts from. ``fails`` are conditions on
    a row under which eager raises. ``length`` is the number of positions where it is the same for all rows.
    """

    rows: Axis
    length: int | None
    inner: tuple[Axis, ...]
    spans: tuple[Span, ...]
    body: Expr
    combine: Combine
    held: str
    empty: float | int
    fails: tuple[Expr, ...]
    value: Expr
    offset: Expr
    output: int

    @property
    def exprs(self) -> tuple[Expr, ...]:
        spans = [expr for span in self.spans for expr in (span.low, span.high)]
        return (self.body, self.value, self.offset, *spans, *self.fails)


ACCUMULATOR = "acc"
# Sums of one row are kept on the stack of a thread.
MOST_ACCUMULATORS = 8192

JaggedTask = Dense | Reduce


def flattened(task: JaggedTask, inputs: Sequence[TensorSpec]) -> JaggedTask:
    def flat(expr: Expr) -> Expr:
        return flatten(expr, inputs)

    fails = tuple(map(flat, task.fails))
    if isinstance(task, Dense):
        return replace(task, value=flat(task.value), offset=flat(task.offset), fails=fails)
    spans = tuple(Span(flat(span.low), flat(span.high)) for span in task.spans)
    return replace(
        task, spans=spans, body=flat(task.body), value=flat(task.value), offset=flat(task.offset), fails=fails
    )


@dataclass(frozen=True)
class JaggedPlan:
    """``built`` holds loads; ``tasks`` are addressed by element, made when a kernel is first written."""

    built: tuple[JaggedTask, ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    symbols: tuple[str, ...]

    @cached_property
    def tasks(self) -> tuple[JaggedTask, ...]:
        return tuple(flattened(task, self.inputs) for task in self.built)


def row_variable(extent: Dim) -> Expr:
    return ex.var(ROW, extent)
