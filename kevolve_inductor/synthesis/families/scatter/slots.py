"""Scatters as Triton where rows have few events: every row has slots for its events, which are taken as they come.

Slots are words of the row's own memory in the result where that has room, since nothing else is written there before the
row is. Which slot an event takes differs from run to run; the program that adds a row puts its events in order first, so
that sums have the same bits every time.

- ``kevolve_take``: every event takes a slot of its row. The event that finds none left lists the row as a long one.
- ``kevolve_sum``: orders and combines the events of all rows that are not long. Extremes and sums of
  integers need no order.
- ``kevolve_rest``: long rows, if there are any, with whatever number of events. Tasks are taken in turn by few programs:
  stretches of memory for the rows, then events into the stretches, then order and sum of each row. A program that waits
  for tasks holds a later one than all of these, and whoever holds these is running: it waits for nothing that depends on it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import replace

from ....graph.dims import product
from ....graph.region import ITEM_SIZES
from ....kernel import Argument, Constant, Kernel, Launch, Workspace
from ...expression import TRITON_PRELUDE
from ...expression.expression import FLOATS
from ...expression.remainder import TRITON_REMAINDER
from ...expression.triton import used_helpers
from ...family import Schedule
from ..triton_tiles import cdiv, next_power_of_2
from .plan import ROW, ScatterPlan
from .rows import in_brackets, row_function, size_checks
from .sums import SumText
from .tiles import LONG_WARPS, Tile, columns_of, elements_of, long_tile, short_tile

# Slots of a row at most: a row's events are put in order by comparing each with all.
_MOST_SLOTS = 128
# Words that memory is read by: no fewer slots take less time.
_WORDS_READ = 8
# Programs that take tasks, events that one looks through at once, and those that it puts in order by comparing all.
_PROGRAMS, _SEARCHED, _COMPARED = 132, 1024, 2048
# Behind the counts of rows stand the numbers of long rows, of tasks taken and done, and of places given to long rows.
_COUNTED = 4

_TAKE = """
    event = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    row = kevolve_row(event, GIVEN)
    rank = tl.atomic_add(counts + row, tl.full([BLOCK], 1, tl.int32), mask=row >= 0, sem="relaxed")
    tl.store(slots + row.to(tl.int64) * WORDS + rank, event.to(tl.int32), mask=(row >= 0) & (rank < ROOM))
"""
_LIST = """
    first = ((row >= 0) & (rank == ROOM)).to(tl.int32)
    found = tl.sum(first, 0)
    if found > 0:
        place = tl.atomic_add(counts + ROWS, found, sem="relaxed") + tl.cumsum(first, 0) - first
        tl.store(rest + EVENTS + place, row, mask=first > 0)
"""
_ORDER = """
    line = (number * LINES + tl.arange(0, LINES)).to(tl.int64)[:, None]
    many = tl.load(counts + line, mask=line < ROWS, other=0)
    many = tl.where(many <= ROOM, many, 0)
    most = tl.max(tl.reshape(many, [LINES]), 0)
    if most > 1:
        slot = tl.arange(0, SLOTS)[None, :]
        ids = slots + line * WORDS
        own = tl.load(ids + slot, mask=slot < many, other=-1)
        before = tl.zeros([LINES, SLOTS], tl.int32)
        for first in range(0, most, 4):
            before += (tl.load(ids + first, mask=first < many, other=2147483647) < own).to(tl.int32)
            before += (tl.load(ids + first + 1, mask=first + 1 < many, other=2147483647) < own).to(tl.int32)
            before += (tl.load(ids + first + 2, mask=first + 2 < many, other=2147483647) < own).to(tl.int32)
            before += (tl.load(ids + first + 3, mask=first + 3 < many, other=2147483647) < own).to(tl.int32)
        tl.debug_barrier()
        tl.store(ids + before, own, mask=slot < many)
        tl.debug_barrier()
"""
_GIVE = """
    number = task * BLOCK + tl.arange(0, BLOCK)
    mask = number < listed
    row = tl.load(rest + EVENTS + number, mask=mask, other=0).to(tl.int64)
    count = tl.load(counts + row, mask=mask, other=0)
    start = tl.atomic_add(counts + ROWS + 3, tl.sum(count, 0), sem="relaxed") + tl.cumsum(count, 0) - count
    tl.store(slots + row * WORDS, start, mask=mask)
    tl.store(slots + row * WORDS + 1, tl.zeros([BLOCK], tl.int32), mask=mask)
"""
_GATHER = """
    event = task.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    row = kevolve_checked_row(event, GIVEN)
    mask = tl.load(counts + row, mask=row >= 0, other=0) > ROOM
    stretch = slots + row.to(tl.int64) * WORDS
    place = tl.load(stretch, mask=mask, other=0)
    place += tl.atomic_add(stretch + 1, tl.full([BLOCK], 1, tl.int32), mask=mask, sem="relaxed")
    tl.store(rest + place, event.to(tl.int32), mask=mask)
"""
_ORDER_LONG = """
    ids = rest + low
    if count <= COMPARED:
        place = tl.arange(0, COMPARED)
        own = tl.load(ids + place, mask=place < count, other=-1)
        before = tl.zeros([COMPARED], tl.int32)
        for first in range(0, count):
            before += (tl.load(ids + first) < own).to(tl.int32)
        tl.debug_barrier()
        tl.store(ids + before, own, mask=place < count)
    else:
        next = 0
        for first in range(0, EVENTS, BLOCK):
            event = first + tl.arange(0, BLOCK).to(tl.int64)
            found = (kevolve_checked_row(event, GIVEN) == wanted).to(tl.int32)
            tl.store(ids + next + tl.cumsum(found, 0) - found, event.to(tl.int32), mask=found > 0)
            next += tl.sum(found, 0)
    tl.debug_barrier()
"""
_AWAIT = """
    seen = tl.atomic_add(done, 0)
    while seen < wanted:
        seen = tl.atomic_add(done, 0)
"""
_REST = """
    listed = tl.load(counts + ROWS)
    if listed > 0:
        given = (listed + BLOCK - 1) // BLOCK
        gathered = given + (EVENTS + BLOCK - 1) // BLOCK
        task = tl.atomic_add(counts + ROWS + 1, 1)
        while task < gathered + listed:
            if task < given:
                kevolve_give(task, listed, INNER)
            elif task < gathered:
                kevolve_await(counts + ROWS + 2, given)
                kevolve_gather(task - given, BOTH)
            else:
                kevolve_await(counts + ROWS + 2, gathered)
                kevolve_sum_long(task - gathered, ALL)
            tl.debug_barrier()
            if task < gathered:
                tl.atomic_add(counts + ROWS + 2, 1)
            task = tl.atomic_add(counts + ROWS + 1, 1)
"""


def rooms(plan: ScatterPlan, events: int, rows: int) -> tuple[int, ...]:
    """Numbers of slots that few rows exceed if all are equally likely, those in the result's own memory first.

    None where rows are wider than a program, or have so many events that slots are no way to bring them together.
    """
    scatter = plan.built
    elements = elements_of(scatter)
    if elements > columns_of(plan):
        return ()
    mean = events / max(rows, 1)
    enough = -(-math.ceil(mean + 6 * math.sqrt(mean) + 8) // _WORDS_READ) * _WORDS_READ
    if enough > _MOST_SLOTS:
        return ()
    words = _words(plan)
    # Fewer slots than are enough for all but one row in many take a third step for these.
    return tuple(dict.fromkeys(room for room in (min(enough, words), enough) if room >= max(2, mean * 1.5)))


def _words(plan: ScatterPlan) -> int:
    """32-bit words of a row of the result; none where rows have gaps or do not end where a word does."""
    scatter = plan.built
    size = elements_of(scatter) * ITEM_SIZES[plan.outputs[0].dtype]
    return size // 4 if scatter.step == elements_of(scatter) and size % 4 == 0 else 0


def kernel_of(plan: ScatterPlan, arguments: tuple[Argument, ...], schedule: Schedule) -> Kernel:
    return _Text(plan, schedule).kernel(arguments)


class _Sum(SumText):
    """Sums of rows from their slots or, with ``is_long``, from stretches of the rest."""

    def __init__(self, plan: ScatterPlan, name: str, tile: Tile, room: int, words: int, *, is_long: bool) -> None:
        super().__init__(plan, name, tile, room, is_long=is_long)
        self.events = in_brackets(plan.scatter.events)
        self.ids, self.words, self.order = ("rest" if is_long else "slots"), words, ""
        self.is_ordered = plan.scatter.combine == "add" and plan.scatter.held in FLOATS
        if is_long:
            self.program = "0"

    def function_of(self, names: Sequence[str], head: Sequence[str], order: str) -> str:
        """``head`` are statements that stand first; ``order`` calls what puts the events of the rows at hand in order."""
        self.order = order
        lines = [*head, *self.body()]
        return "\n".join([f"@triton.jit\ndef {self.name}({', '.join(names)}):", *(f"    {line}" for line in lines)])

    def _low(self) -> str:
        return f"own.to(tl.int64) * {self.words}"

    def _opened(self) -> list[str]:
        return [self.order] if self.is_ordered else []

    def _final(self, combined: str) -> str:
        """Of zeros of both signs, and of several NaNs, an extreme may be any; an addition makes them the same."""
        return f"{combined} + 0.0" if not self.is_ordered and self.scatter.held in FLOATS else combined

    def _listed(self) -> list[str]:
        return [
            f"wanted = tl.load(rest + {self.events} + number)",
            f"{ROW} = wanted{self.wide}",
            f"row_mask = {ROW} < {self.rows}",
            f"count = tl.load(counts + {ROW})",
            f"low = tl.load(slots + {ROW}.to(tl.int64) * {self.words})",
            *self._opened(),
            *self._sums(),
        ]

    def _closed(self) -> list[str]:
        """What is written may be where others of the program still read slots."""
        return ["tl.debug_barrier()"]


class _Text:
    def __init__(self, plan: ScatterPlan, schedule: Schedule) -> None:
        self.plan, self.schedule = plan, schedule
        self.events, self.rows = plan.scatter.events, product(plan.scatter.rows)
        self.block, self.room = int(schedule["block"]), int(schedule["room"])
        self.is_inside = self.room <= _words(plan)
        self.words = _words(plan) if self.is_inside else self.room
        self.has_rest = not isinstance(self.events, int) or self.events > self.room
        self.given = [*(f"in{k}" for k in range(len(plan.inputs))), *plan.symbols]
        outputs = [f"out{k}" for k in range(len(plan.outputs))]
        self.memory = ["counts", "rest"] if self.is_inside else ["counts", "rest", "slots"]
        self.names = [*self.given[: len(plan.inputs)], *outputs, *plan.symbols, *self.memory]
        # What functions of a launch's function take.
        self.inner = ["counts", "rest", "slots", *plan.symbols]
        self.both = list(dict.fromkeys((*self.given, *self.inner)))
        self.all = [*self.names, *(["slots"] if self.is_inside else [])]
        self.words_in_text: dict[str, Constant] = {
            "EVENTS": in_brackets(self.events), "ROWS": in_brackets(self.rows), "ROOM": self.room, "WORDS": self.words,
            "GIVEN": ", ".join(self.given), "INNER": ", ".join(self.inner), "BOTH": ", ".join(self.both),
            "ALL": ", ".join(self.all),
        }  # fmt: skip
        self.short = short_tile(plan, schedule)
        self.sums = _Sum(plan, "kevolve_sum", self.short, self.room, self.words, is_long=False)
        # A loop over tasks needs registers of its own.
        long = long_tile(plan)
        self.long = _Sum(
            plan, "kevolve_sum_long", replace(long, steps=long.steps // 2), self.room, self.words, is_long=True
        )

    def kernel(self, arguments: tuple[Argument, ...]) -> Kernel:
        given = (*arguments, *(Argument("workspace", k) for k in range(len(self.memory))))
        launches = [
            Launch("kevolve_take", given, (str(cdiv(self.events, self.block)),)),
            Launch("kevolve_sum", given, (str(cdiv(self.rows, self.short.rows)),),
                   num_warps=int(self.schedule["num_warps"])),
        ]  # fmt: skip
        if self.has_rest:
            launches.append(Launch("kevolve_rest", given, (str(_PROGRAMS),), num_warps=LONG_WARPS))
        rows, events = str(in_brackets(self.rows)), str(in_brackets(self.events))
        # Behind the events in order stand the long rows.
        rest = f"{events} + {events} // {self.room + 1} + 1" if self.has_rest else "1"
        memory = [Workspace("int32", f"{rows} + {_COUNTED}", zeroed=True), Workspace("int32", rest)]
        if not self.is_inside:
            memory.append(Workspace("int32", f"{rows} * {self.room}"))
        return Kernel("triton", self._source(), tuple(launches), tuple(memory))

    def _source(self) -> str:
        head = ["slots = out0.to(tl.pointer_type(tl.int32))"] if self.is_inside else []
        opening = "".join(f"    {line}\n" for line in head)
        take = opening + size_checks(self.events, self.rows) + _TAKE.strip("\n") + (_LIST if self.has_rest else "")
        order = self._function("kevolve_order", ["number", *self.inner], _ORDER, LINES=self.short.rows,
                               SLOTS=next_power_of_2(self.room))  # fmt: skip
        head = [*head, "number = tl.program_id(0)"]
        functions = [
            row_function(self.plan.scatter, self.given),
            self._function("kevolve_take", self.names, take, BLOCK=self.block),
            *((order,) if self.sums.is_ordered else ()),
            self.sums.joined(),
            *(self._rest(opening) if self.has_rest else ()),
            # Last what differs most between schedules: Triton knows a function again on the line that it stood on before.
            self.sums.function_of(self.names, head, f"kevolve_order(number, {', '.join(self.inner)})"),
        ]
        code = "\n\n".join(functions)
        return f"{used_helpers(TRITON_PRELUDE + TRITON_REMAINDER, code)}\n\n{code}\n"

    def _rest(self, opening: str) -> list[str]:
        ordered = self._function("kevolve_order_long", ["wanted", "low", "count", *self.both], _ORDER_LONG,
                                 BLOCK=_SEARCHED, COMPARED=_COMPARED)  # fmt: skip
        order = f"kevolve_order_long(wanted, low, count, {', '.join(self.both)})"
        return [
            row_function(self.plan.scatter, self.given, "kevolve_checked_row", checks=False),
            self._function("kevolve_give", ["task", "listed", *self.inner], _GIVE, BLOCK=_SEARCHED),
            self._function("kevolve_gather", ["task", *self.both], _GATHER, BLOCK=_SEARCHED),
            *((ordered,) if self.long.is_ordered else ()),
            self._function("kevolve_await", ["done", "wanted"], _AWAIT),
            self.long.function_of(["number", *self.all], [], order),
            self._function("kevolve_rest", self.names, opening + _REST, BLOCK=_SEARCHED),
        ]  # fmt: skip

    def _function(self, name: str, names: Sequence[str], body: str, **more: Constant) -> str:
        for word, value in (self.words_in_text | more).items():
            body = re.sub(rf"\b{word}\b", str(value), body)
        return f"@triton.jit\ndef {name}({', '.join(names)}):\n{body.strip(chr(10))}"
