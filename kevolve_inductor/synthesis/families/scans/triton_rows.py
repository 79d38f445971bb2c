"""Scans along the fastest axis: tiles ``[LINES, BLOCK]`` of which each thread holds neighbours."""

from __future__ import annotations

from ..triton_tiles import coordinates
from .plan import ScanPlan
from .triton_text import ScanText, lines_of


class RowText(ScanText):
    """``block`` positions of ``lines`` lines at a time."""

    axis = 1

    def __init__(self, plan: ScanPlan, lines: int, block: int, parts: int) -> None:
        super().__init__(plan, parts, lines_of(plan), lines)
        self.lines, self.step = lines, block
        self.shape, self.carry_shape = f"[{lines}, {block}]", f"[{lines}, 1]"
        self.at_mask = "at_mask" if self.is_bounded else None

    def _lines(self) -> list[str]:
        lines = [f"line = (program * {self.lines} + tl.arange(0, {self.lines}))[:, None]"]
        if self.line_mask:
            lines.append(f"line_mask = line < {self.count}")
        return lines + coordinates("line", self.task.lines)

    def _positions(self) -> list[str]:
        lines = [f"{self.name} = (start + tl.arange(0, {self.step}){self.wide})[None, :]"]
        return [*lines, f"at_mask = {self.name} < {self.extent}"] if self.at_mask else lines

    def _total(self) -> list[str]:
        printer = self.printer(self.at_mask, "t", self.name)
        element = self.element(printer, "x", self.name, self.at_mask)
        return [*element, self.joins.reduce("last", "x", 1), self.joins.join("carry", "carry", "last")]

    def _turn(self) -> list[str]:
        joins = self.joins
        printer = self.printer(self.at_mask, "t", self.name)
        lines = self.element(printer, "x", self.name, self.at_mask)
        running, before = ("value", "earlier_value") if self.is_single else ("inner", "earlier_inner")
        if self.asks_before:
            lines += joins.nothing("nothing", self.shape)
            lines.append(joins.scan_both(before, running, "nothing", "x", 1))
        else:
            lines.append(joins.scan(running, "x", 1))
        if not self.is_single:
            asked = (("value", running, self.asks_running), ("earlier_value", before, self.asks_before))
            lines += [joins.join(stem, "carry", inner) for stem, inner, used in asked if used]
            lines += [joins.reduce("last", "x", 1), joins.join("carry", "carry", "last")]
        self.results(printer, "value", "earlier_value")
        # All that is read is read before anything is written: one pass over memory where a store reads what was scanned.
        found = [self.stored(printer, store, self.name, self.at_mask, self.shape) for store in self.task.stores]
        return [*lines, *(line for made, _ in found for line in made), *(store for _, store in found)]
