"""What the stencils family reads off a graph: what a tap contributes, how taps are folded, and what is stored of that."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from ....graph.region import TensorSpec
from ...expression import expression as ex
from ...expression.access import flatten, replace_variables
from ...expression.expression import Expr
from ...expression.loops import Axis, Store, Task, merged
from .windows import Window, simplified

Kind = Literal["sum", "maximum"]

# Variables that stand for what the taps are folded to, for the number of the tap where a maximum was found, and for how
# far that is from the window's start in a flattened plane of the source.
FOLDED, PLACE, REACH = "folded", "place", "reach"
# A place ``(variable, offset)`` along one window's axis; the variable is ``None`` where the place does not vary.
Place = tuple[str | None, int]


def tap_name(number: int) -> str:
    """The variable that counts the taps of window ``number``."""
    return f"k{number}"


@dataclass(frozen=True)
class StencilPlan:
    """``term`` is folded over all taps of ``windows`` where their ``counted`` hold; ``stores`` are values of the result.

    ``axes`` are those of the first output, slowest in its memory first. ``places`` say where along each window's axis an
    element of it stands, ``None`` where it does not run with an axis. ``plane`` are the strides of a flattened plane of
    the source. What is built holds loads; ``task`` is addressed by element, made when a kernel is first written.
    """

    kind: Kind
    held: str
    windows: tuple[Window, ...]
    places: tuple[Place | None, ...]
    plane: tuple[int, ...]
    term: Expr
    counted: tuple[Expr, ...]
    axes: tuple[Axis, ...]
    stores: tuple[Store, ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    symbols: tuple[str, ...]

    @property
    def taps(self) -> int:
        return math.prod(window.taps for window in self.windows)

    @cached_property
    def task(self) -> StencilTask:
        """With neighbouring axes merged wherever every access allows."""
        flat = [Store(flatten(s.value, self.inputs), flatten(s.offset, self.inputs), s.output) for s in self.stores]
        parts = [Store(flatten(part, self.inputs), ex.index(0), 0) for part in (self.term, *self.counted)]
        whole = merged(Task(self.axes, (*flat, *parts)))
        count = len(flat)
        term, *counted = (store.value for store in whole.stores[count:])
        return StencilTask(self, whole.axes, whole.stores[:count], term, tuple(counted))


@dataclass(frozen=True)
class StencilTask:
    """``axes`` outermost first; the last one is the fastest in the memory of the first output."""

    plan: StencilPlan
    axes: tuple[Axis, ...]
    stores: tuple[Store, ...]
    term: Expr
    counted: tuple[Expr, ...]

    @property
    def inner(self) -> Axis:
        return self.axes[-1]

    def window_of(self, axis: str) -> int | None:
        """The number of the window whose places run along ``axis``."""
        for number, place in enumerate(self.plan.places):
            if place is not None and place[0] == axis:
                return number
        return None

    def unrolled(self, mapping: Mapping[str, Expr], chained: bool = False) -> tuple[Store, ...]:
        """The stores at one point, ``mapping`` giving axes in other variables, with all taps written out.

        ``chained``: every tap is added to those before it, so that products and sums are one instruction each; else the
        taps of each window's axis are added up by themselves.
        """
        counted = [simplified(condition, mapping) for condition in self.counted]
        term = simplified(self.term, mapping)
        stores = [Store(simplified(s.value, mapping), simplified(s.offset, mapping), s.output) for s in self.stores]
        asked = {name for store in stores for name in ex.variables(store.value)} & {PLACE, REACH}
        if asked:
            results = self._greatest(term, counted, sorted(asked))
        else:
            whole = self._chain(term, counted, 0, {}, None) if chained else self._fold(term, counted, 0, {})
            results = {FOLDED: self._neutral if whole is None else whole}
        return tuple(Store(replace_variables(s.value, results), s.offset, s.output) for s in stores)

    @property
    def _neutral(self) -> Expr:
        return ex.const(0.0 if self.plan.kind == "sum" else -math.inf, self.plan.held)

    def _fold(self, term: Expr, counted: list[Expr], number: int, taps: dict[str, Expr]) -> Expr:
        """The fold over the taps of windows from ``number`` on; a condition stands outside of the windows after its own."""
        if number == len(self.plan.windows):
            return simplified(term, taps)
        op = "add" if self.plan.kind == "sum" else "maximum"
        total: Expr | None = None
        for tap in range(self.plan.windows[number].taps):
            here = {**taps, tap_name(number): ex.index(tap)}
            condition = simplified(counted[number], here) if counted else ex.const(True, "bool")
            if condition.op == "const" and not condition.value:
                continue
            part = chosen(condition, self._fold(term, counted, number + 1, here), self._neutral)
            total = part if total is None else ex.make(op, part.dtype, (part, total))
        return self._neutral if total is None else total

    def _chain(
        self, term: Expr, counted: list[Expr], number: int, taps: dict[str, Expr], total: Expr | None
    ) -> Expr | None:
        """``total`` and the taps of windows from ``number`` on, each added where its condition holds."""
        last = number == len(self.plan.windows) - 1
        for tap in range(self.plan.windows[number].taps):
            here = {**taps, tap_name(number): ex.index(tap)}
            condition = simplified(counted[number], here) if counted else ex.const(True, "bool")
            if condition.op == "const" and not condition.value:
                continue
            if last:
                part = where_inside(condition, simplified(term, here), self._neutral)
                total = part if total is None else ex.make("add", part.dtype, (part, total))
            else:
                more = self._chain(term, counted, number + 1, here, total)
                if more is not None:
                    total = chosen(condition, more, self._neutral if total is None else total)
        return total

    def _greatest(self, term: Expr, counted: list[Expr], asked: list[str]) -> dict[str, Expr]:
        """The greatest value and what is ``asked`` of its tap: the first of equal ones, of NaNs the last.

        Taps are taken from the last to the first, so that whatever is not below the best so far takes its place, and
        nothing takes that of a NaN.
        """
        windows = self.plan.windows
        best = {FOLDED: self._neutral, **{name: number(0) for name in asked}}
        for which, taps in reversed(list(enumerate(itertools.product(*(range(w.taps) for w in windows))))):
            mapping = {tap_name(d): ex.index(tap) for d, tap in enumerate(taps)}
            reach = sum(tap * w.dilation * step for tap, w, step in zip(taps, windows, self.plan.plane, strict=True))
            here = {FOLDED: simplified(term, mapping), PLACE: number(which), REACH: number(reach)}
            inside = [simplified(condition, mapping) for condition in counted]
            below = ex.make("lt", "bool", (here[FOLDED], best[FOLDED]))
            is_number = ex.make("eq", "bool", (best[FOLDED], best[FOLDED]))
            best_is_none = best[FOLDED].op == "const"
            # One condition after the other: a selection on several at once is not vectorised by every compiler.
            for name, old in list(best.items()):
                new = here[name] if best_is_none else chosen(is_number, chosen(below, old, here[name]), old)
                for condition in inside:
                    new = chosen(condition, new, old)
                best[name] = new
        return best


def number(value: int) -> Expr:
    """A tap's number or reach, in the width of single-precision lanes."""
    return ex.const(value, "int32")


def chosen(condition: Expr, yes: Expr, no: Expr) -> Expr:
    if condition.op == "const":
        return yes if condition.value else no
    return ex.make("where", yes.dtype, (condition, yes, no))


def where_inside(condition: Expr, value: Expr, otherwise: Expr) -> Expr:
    """As :func:`chosen`; of a product each factor is chosen by itself, or zero, so that it can be added in one step.

    The choice of a factor that is the same for neighbouring results is made once. A factor that is not a number, where it
    does not count, is not chosen.
    """
    if value.op != "mul" or value.dtype not in ex.FLOATS or condition.op == "const":
        return chosen(condition, value, otherwise)
    zero = ex.const(0.0, value.dtype)
    return ex.make("mul", value.dtype, tuple(chosen(condition, factor, zero) for factor in value.args))


def affine(at: Expr) -> Place | None:
    """``at`` as a variable and an offset, where it is that."""
    if at.op == "const":
        return None, int(at.value)
    if at.op == "var":
        return at.value[0], 0
    if at.op == "add" and at.args[0].op == "var" and at.args[1].op == "const":
        return at.args[0].value[0], int(at.args[1].value)
    return None
