"""What the scans family reads off a graph: lines of values, what runs along them, and what is stored at each position."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from ....graph.region import TensorSpec
from ...expression import expression as ex
from ...expression.access import flatten
from ...expression.expression import Expr
from ...expression.loops import Axis, Store, Task, merged

Kind = Literal["sum", "product", "maximum", "minimum", "logsumexp"]

# Names of the variables that stand for the scan's results at a position: the running value with and without the
# position's own element, and for extremes where the running value was seen, likewise.
RUNNING, BEFORE, PLACE, PLACE_BEFORE = "running", "before", "place", "place_before"


@dataclass(frozen=True)
class ScanPlan:
    """``body`` is scanned along ``scan`` for every point of ``axes``; ``stores`` are values of the results there.
    ``edges`` are what outputs that are longer by one hold in front of each line's first position.

    ``axes`` are in the order of the first output's memory, outermost first; the scan's own place is before
    ``axes[outside]``. ``held`` is the type of ``body`` and ``result`` that of eager's result. What is ``built`` holds
    loads; ``task`` is addressed by element, made when a kernel is first written.
    """

    kind: Kind
    held: str
    result: str
    scan: Axis
    axes: tuple[Axis, ...]
    outside: int
    body: Expr
    stores: tuple[Store, ...]
    edges: tuple[Store, ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    symbols: tuple[str, ...]

    @cached_property
    def task(self) -> ScanTask:
        """With neighbouring axes merged wherever every access allows, but never with the scan's."""
        stores = (*self.stores, *self.edges)
        flat = [Store(flatten(s.value, self.inputs), flatten(s.offset, self.inputs), s.output) for s in stores]
        body = Store(flatten(self.body, self.inputs), ex.index(0), 0)
        # An axis whose variable is used as a number stays what it is.
        pin = Store(ex.var(*self.scan), ex.index(0), 0)
        axes = (*self.axes[: self.outside], self.scan, *self.axes[self.outside :])
        whole = merged(Task(axes, (pin, body, *flat)))
        place = [name for name, _ in whole.axes].index(self.scan[0])
        outer, inner = whole.axes[:place], whole.axes[place + 1 :]
        _, scanned, *rest = whole.stores
        last = len(self.stores)
        return ScanTask(self.scan, outer, inner, scanned.value, tuple(rest[:last]), tuple(rest[last:]))

    @property
    def is_pair(self) -> bool:
        """Is it known where each running extreme was seen?"""
        return bool({PLACE, PLACE_BEFORE} & self.used)

    @cached_property
    def used(self) -> set[str]:
        """Which of the results and axes the stores need."""
        return {name for store in self.stores for name in ex.variables(store.value)}


@dataclass(frozen=True)
class ScanTask:
    """Axes outside and inside of the scan's, which is the fastest in memory where there are none inside."""

    scan: Axis
    outer: tuple[Axis, ...]
    inner: tuple[Axis, ...]
    body: Expr
    stores: tuple[Store, ...]
    edges: tuple[Store, ...]

    @property
    def lines(self) -> tuple[Axis, ...]:
        """All axes but the scan's and the fastest one inside of it."""
        return (*self.outer, *self.inner[:-1])

    @property
    def lane(self) -> Axis | None:
        """The fastest axis, if that is not the scan's."""
        return self.inner[-1] if self.inner else None


def start_of(kind: Kind, held: str) -> float | int:
    """What joins with any value to give that value."""
    if kind in ("sum", "product"):
        return int(kind == "product")
    if held in ex.FLOATS:
        return float("inf") if kind == "minimum" else float("-inf")
    bits = int(held.removeprefix("int"))
    return 2 ** (bits - 1) - 1 if kind == "minimum" else -(2 ** (bits - 1))
