"""Sums of few rows with many events each as Triton: a matrix that says which event is of which row, times their values.

Zeros and ones are exact in any precision, so that products are as well; values of 32 bits are three numbers of half
precision each, which together have as many digits.

- ``kevolve_parts``: a stretch of the events is multiplied for some of the rows. All that several products need is read
  before the first of them. Events of rows that there are not meet none.
- ``kevolve_join``: what all stretches give is added, always in the same order, and all events' rows are checked.

A product with zero is no number where a value is infinite or none: where a block of events has such a value, they are added
one by one.
"""

from __future__ import annotations

from ....graph.dims import product
from ....kernel import Argument, Kernel, Launch, Workspace
from ...expression.triton import TRITON_TYPES
from ...family import Schedule
from ..triton_tiles import coordinates, indented, next_power_of_2
from .plan import EVENT, ROW, ScatterPlan
from .rows import row_function
from .text import TileText
from .tiles import columns_of, elements_of, stored_precision

# Each event is compared with every row. Beyond these rows, elements and comparisons grouping the events takes less.
MOST_ROWS, _MOST_COLUMNS, _MOST_COMPARED = 2048, 128, 2**30
# Columns of the least product that there is.
_LEAST_COLUMNS = 16
# Partial sums that are added at once, and events that are checked at once.
_JOINED, _CHECKED = 8192, 4096
# Values that a thread holds ahead, products that they are for at most, and threads of a warp.
_AHEAD, _MOST_AHEAD, _WARP = 32, 4, 32


def is_offered(plan: ScatterPlan, events: int, rows: int) -> bool:
    scatter = plan.built
    is_static = isinstance(scatter.events, int) and isinstance(product(scatter.rows), int)
    is_small = rows <= MOST_ROWS and elements_of(scatter) <= _MOST_COLUMNS and events * rows <= _MOST_COMPARED
    return is_static and is_small and scatter.combine == "add" and scatter.held == "float32"


def kernel_of(plan: ScatterPlan, arguments: tuple[Argument, ...], schedule: Schedule) -> Kernel:
    return _Text(plan, schedule).kernel(arguments)


class _Text(TileText):
    def __init__(self, plan: ScatterPlan, schedule: Schedule) -> None:
        super().__init__(plan, schedule, "parts")
        self.events, self.rows = int(self.scatter.events), int(product(self.scatter.rows))
        self.columns = max(_LEAST_COLUMNS, columns_of(plan))
        self.lines = int(schedule["height"])
        self.tiles, self.block = -(-self.rows // self.lines), int(schedule["taken"])
        stretches = max(1, int(schedule["programs"]) // self.tiles)
        held = self.block * self.columns // (self.warps * _WARP)
        self.ahead = min(_MOST_AHEAD, max(1, _AHEAD // max(1, held)))
        # Events of a stretch: whole turns.
        turn = self.block * self.ahead
        self.span = -(-self.events // (stretches * turn)) * turn
        self.stretches = -(-self.events // self.span)
        self.wide = ".to(tl.int64)" if self.is_wide else ""
        stored = stored_precision(plan)
        self.operand = TRITON_TYPES[stored] if stored else "tl.bfloat16"
        self.is_split = stored is None

    def kernel(self, arguments: tuple[Argument, ...]) -> Kernel:
        given = (*arguments, Argument("workspace", 0))
        joining = max(self.rows, -(-self.events // _CHECKED))
        launches = (
            Launch("kevolve_parts", given, (str(self.stretches * self.tiles),), num_warps=self.warps),
            Launch("kevolve_join", given, (str(joining),)),
        )
        source = self.source(
            row_function(self.scatter, self.given, "kevolve_checked_row"),
            row_function(self.scatter, self.given, checks=False),
            self.function("kevolve_join", self._join()),
            self.function("kevolve_one", self._one(), ["total", "line", "number", *self.given]),
            self.function("kevolve_parts", self._parts()),
        )
        sums = Workspace("float32", str(self.rows * self.stretches * self.elements))
        return Kernel("triton", source, launches, (sums,))

    def _columns(self) -> list[str]:
        return [
            f"place = tl.arange(0, {self.columns})[None, :]",
            f"place_mask = place < {self.elements}",
            *coordinates("place", self.scatter.inner),
        ]

    def _parts(self) -> list[str]:
        tile, stretch = f"tl.program_id(0) % {self.tiles}", f"tl.program_id(0) // {self.tiles}"
        nothing = f"tl.zeros([{self.lines}, {self.columns}], tl.float32)"
        stretch_end = f"tl.minimum(begin + {self.span}, {self.events})"
        at = f"(line.to(tl.int64) * {self.stretches} + {stretch}) * {self.elements} + place"
        turns, turn = range(self.ahead), self.block * self.ahead
        return [
            *self._columns(),
            f"line = ({tile}) * {self.lines} + tl.arange(0, {self.lines})[:, None]",
            f"begin = ({stretch}){self.wide} * {self.span}",
            f"total = {nothing}",
            f"odd = tl.zeros([{self.block}, {self.columns}], tl.int32)",
            f"for first in range(begin, {stretch_end}, {turn}):",
            *indented([line for k in turns for line in self._block(f"first + {k * self.block}", str(k))]),
            *indented([line for k in turns for line in self._products(str(k))]),
            *indented([line for k in turns for line in (*self._strange(str(k)), f"odd |= strange{k}")]),
            "if tl.max(tl.max(odd, 1), 0) > 0:",
            *indented([f"total = {nothing}", f"for first in range(begin, {stretch_end}, {self.block}):"]),
            *indented(indented(self._careful())),
            f"tl.store(parts + {at}, total, mask=(line < {self.rows}) & place_mask)",
        ]

    def _block(self, first: str, name: str, count: int | None = None) -> list[str]:
        """``row``: that of each event; ``value``: what it adds."""
        printer = self.printer(EVENT, "event_mask", prefix=f"s{name}_")
        value = printer.value(self.scatter.value)
        # What is read need not wait for the rows, unless these say which events there are.
        is_there = f"number < {self.events}" if self.scatter.condition is None else f"row{name} >= 0"
        return [
            f"number = {first} + tl.arange(0, {count or self.block})",
            f"row{name} = {self.row_of('number')}",
            f"{EVENT} = number[:, None]",
            f"event_mask = ({is_there})[:, None]",
            *printer.taken(),
            f"value{name} = tl.where(event_mask & place_mask, {value}, 0.0).to(tl.float32)",
        ]

    def _strange(self, name: str) -> list[str]:
        return [f'strange{name} = 1 - (tl.abs(value{name}) < float("inf")).to(tl.int32)']

    def _products(self, name: str) -> list[str]:
        chosen = f"(line == row{name}[None, :]).to({self.operand})"
        if not self.is_split:
            return [f"total = tl.dot({chosen}, value{name}.to({self.operand}), total)"]
        return [
            f"hit = {chosen}",
            f"high = value{name}.to({self.operand})",
            f"left = value{name} - high.to(tl.float32)",
            f"middle = left.to({self.operand})",
            f"low = (left - middle.to(tl.float32)).to({self.operand})",
            # The matrix unit cuts off what it adds to: of a long sum that would always be the same side.
            "sums = tl.dot(hit, low)",
            *(f"sums = tl.dot(hit, {part}, sums)" for part in ("middle", "high")),
            "total += sums",
        ]

    def _careful(self) -> list[str]:
        """A block again, one by one where one of its values is strange."""
        one = ", ".join(["total", "line", "first + one", *self.given])
        return [
            *self._block("first", "0"),
            *self._strange("0"),
            "if tl.max(tl.max(strange0, 1), 0) > 0:",
            f"    for one in range(0, {self.block}):",
            f"        total = kevolve_one({one})",
            "else:",
            *indented(self._products("0")),
        ]

    def _one(self) -> list[str]:
        """``total`` with a single event."""
        block = self._block("number", "", 1)
        return [*self._columns(), *block, "return total + tl.where(line == row[None, :], value, 0.0)"]

    def _join(self) -> list[str]:
        printer = self.printer(ROW, "row_mask", prefix="r")
        base, offset = printer.value(self.scatter.base), printer.value(self.scatter.offset)
        count = min(next_power_of_2(self.stretches), max(1, _JOINED // self.columns))
        at = f"({ROW}.to(tl.int64) * {self.stretches} + stretch) * {self.elements} + place"
        mask = f"(stretch < {self.stretches}) & place_mask & row_mask"
        return [
            f"number = tl.program_id(0){self.wide} * {_CHECKED} + tl.arange(0, {_CHECKED})",
            self.row_of("number", "kevolve_checked_row"),
            *self._columns(),
            f"{ROW} = tl.program_id(0){self.wide} + place * 0",
            f"row_mask = {ROW} < {self.rows}",
            f"total = tl.zeros([1, {self.columns}], tl.float32)",
            f"for first in range(0, {self.stretches}, {count}):",
            f"    stretch = first + tl.arange(0, {count})[:, None]",
            f"    total += tl.sum(tl.load(parts + {at}, mask={mask}, other=0.0), 0, keep_dims=True)",
            *printer.taken(),
            f"tl.store(out0 + {ROW} * {self.scatter.step} + {offset} + place * 0, total + {base}, mask=row_mask & place_mask)",
        ]
