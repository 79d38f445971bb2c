"""Scans across the fastest axis: threads walk along their own lines, so that nothing is exchanged between neighbours. Along it
as well, where joining is costly, or memory hands out one element at a time: a thread's neighbours come from the cache then.

A tile is ``[PIECES, LANES]``: each thread reads ``steps`` consecutive positions of a line before it joins them, and where
there are several pieces their totals are joined across the tile. Lines are counted through all axes, whatever their extents.
"""

from __future__ import annotations

from ..triton_tiles import TilePrinter, coordinates
from .plan import ScanPlan
from .triton_joins import assignments
from .triton_text import ScanText, lines_of


class ColumnText(ScanText):
    """``pieces`` times ``steps`` positions of ``lanes`` lines at a time."""

    axis = 0

    def __init__(self, plan: ScanPlan, lanes: int, pieces: int, steps: int, parts: int) -> None:
        super().__init__(plan, parts, lines_of(plan), lanes)
        self.lanes, self.pieces, self.steps = lanes, pieces, steps
        self.step = pieces * steps
        self.shape, self.carry_shape = f"[{pieces}, {lanes}]", f"[1, {lanes}]"
        # Totals of pieces have to be known before any value is; and joining few at a time loses less of a long sum.
        self.is_chained = pieces == 1 and self.joins.is_exact and not self.is_single

    def _lines(self) -> list[str]:
        lines = [f"line = (program * {self.lanes} + tl.arange(0, {self.lanes}))[None, :]"]
        if self.line_mask:
            lines.append(f"line_mask = line < {self.count}")
        return lines + coordinates("line", (*self.task.outer, *self.task.inner))

    def _positions(self) -> list[str]:
        lines = [f"first = (start + tl.arange(0, {self.pieces}){self.wide} * {self.steps})[:, None]"]
        for k in range(self.steps):
            lines.append(f"p{k} = first + {k}")
            if self.is_bounded:
                lines.append(f"m{k} = p{k} < {self.extent}")
        return lines

    def _mask(self, k: int) -> str | None:
        return f"m{k}" if self.is_bounded else None

    def _elements(self) -> tuple[list[TilePrinter], list[str]]:
        """All elements of a step, read before anything is done with them."""
        printers = [self.printer(self._mask(k), f"s{k}_", f"p{k}") for k in range(self.steps)]
        found = [self.element(p, f"x{k}_", f"p{k}", self._mask(k)) for k, p in enumerate(printers)]
        return printers, [line for lines in found for line in lines]

    def _inner(self) -> list[str]:
        """``inner<k>``: elements of a piece up to the ``k``-th joined, after ``carry`` where they are chained."""
        joins = self.joins
        if self.is_chained:
            first = [joins.join("inner0", "carry", "x0_")]
        else:
            first = assignments(joins.names("inner0"), joins.names("x0_"))
        return first + [joins.join(f"inner{k}", f"inner{k - 1}", f"x{k}_") for k in range(1, self.steps)]

    def _total(self) -> list[str]:
        _, lines = self._elements()
        joins, last = self.joins, f"inner{self.steps - 1}"
        lines += self._inner()
        if self.is_chained:
            return lines + assignments(joins.names("carry"), joins.names(last))
        if self.pieces > 1:
            lines.append(joins.reduce("last", last, 0))
            last = "last"
        return [*lines, joins.join("carry", "carry", last)]

    def _turn(self) -> list[str]:
        printers, lines = self._elements()
        lines += [*self._inner(), *self._values()]
        stores = []
        for k, printer in enumerate(printers):
            self.results(printer, f"value{k}", f"value{k - 1}" if k else "front")
            for store in self.task.stores:
                made, written = self.stored(printer, store, f"p{k}", self._mask(k), self.shape)
                lines += made
                stores.append(written)
        return [*lines, *stores]

    def _values(self) -> list[str]:
        """``value<k>``, ``front`` (what stands before a piece), and ``carry`` after the step."""
        joins, last = self.joins, f"inner{self.steps - 1}"
        lines: list[str] = []
        if self.pieces > 1:
            lines += joins.nothing("nothing", self.shape)
            lines.append(joins.scan_both("front", "ended", "nothing", last, 0))
            if not self.is_single:
                lines.append(joins.join("front", "carry", "front"))
                lines += [joins.reduce("last", last, 0), joins.join("carry", "carry", "last")]
        elif self.is_single:
            lines += joins.nothing("front", self.shape)
        else:
            lines += assignments(joins.names("front"), joins.names("carry"))
        for k in range(self.steps):
            if self.is_chained or (self.is_single and self.pieces == 1):
                lines += assignments(joins.names(f"value{k}"), joins.names(f"inner{k}"))
            else:
                lines.append(joins.join(f"value{k}", "front", f"inner{k}"))
        if self.pieces == 1 and not self.is_single:
            if self.is_chained:
                lines += assignments(joins.names("carry"), joins.names(last))
            else:
                lines.append(joins.join("carry", "carry", last))
        return lines
