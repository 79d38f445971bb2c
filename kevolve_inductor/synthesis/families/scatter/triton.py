"""Scatters as Triton: events are brought together by row, put back in their order, and every row is combined by itself.

Atomic operations count the events of each row, on integers only. Which place an event gets among those of its row, and
which stretch of memory a row gets, differs from run to run. But then a row's events are put in order by their numbers,
into that stretch whatever it is; what is added, and in which order, depends on nothing else, so that sums have the same
bits every time.

- ``kevolve_count``: the number of events of every row, and for each event how many of its row were counted before it.
- ``kevolve_allocate``: a stretch of places for every row, and a list of those with very many events.
- ``kevolve_place``: events into the stretches of their rows.
- ``kevolve_order``: an event's place is the number of its row's events before it, counted by comparing it with all of
  them. That takes time by the square, so that for a very long row a program looks through all events instead.
- ``kevolve_sum``: combines the events of every row, and ``kevolve_sum_long`` those of very long rows, with more threads.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from ....graph.dims import product
from ....kernel import Argument, Constant, Kernel, Launch, Workspace
from ...expression import TRITON_PRELUDE
from ...expression.remainder import TRITON_REMAINDER
from ...expression.triton import used_helpers
from ...family import Schedule
from ..triton_tiles import cdiv
from .plan import ScatterPlan
from .rows import row_function, size_checks
from .sums import SumText
from .tiles import LONG_WARPS, long_tile, short_tile

# Rows for which one program allocates, events that one puts in order, and how many each is compared with at once.
_ALLOCATED, _ORDERED, _COMPARED = 1024, 128, 4
# Events that one program looks through at once for those of a very long row, and how many programs there are for these.
_SEARCHED, _LONG_PROGRAMS = 1024, 256
# Behind the counts of rows stand the number of places given out, and that of very long rows. ``ranks`` hold an event's
# place in the stretch of its row by event, then events in their order by place; ``pairs`` hold row and event.
_MEMORY = ("counts", "starts", "longs", "ranks", "pairs")

_ALLOCATE = """
    row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = row < ROWS
    count = tl.load(counts + row, mask=mask, other=0)
    start = tl.atomic_add(counts + ROWS, tl.sum(count, 0), sem="relaxed") + tl.cumsum(count, 0) - count
    tl.store(starts + row, start, mask=mask)
    many = (count > LONGEST).to(tl.int32)
    found = tl.sum(many, 0)
    if found > 0:
        place = tl.atomic_add(counts + ROWS + 1, found, sem="relaxed") + tl.cumsum(many, 0) - many
        tl.store(longs + place, row, mask=many > 0)
"""
_COUNT = """
    event = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    row = kevolve_row(event, GIVEN)
    rank = tl.atomic_add(counts + row, tl.full([BLOCK], 1, tl.int32), mask=row >= 0, sem="relaxed")
    tl.store(ranks + event, rank, mask=row >= 0)
"""
_PLACE = """
    event = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    row = kevolve_row(event, GIVEN)
    mask = row >= 0
    place = tl.load(starts + row, mask=mask, other=0) + tl.load(ranks + event, mask=mask, other=0)
    tl.store(pairs + place, (row.to(tl.int64) << 32) | event, mask=mask)
"""
_ORDER_SHORT = """
    place = program.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = place < tl.load(counts + ROWS)
    pair = tl.load(pairs + place, mask=mask, other=0)
    row = pair >> 32
    count = tl.load(counts + row, mask=mask, other=0)
    mask = mask & (count <= LONGEST)
    count = tl.where(mask, count, 0)
    start = tl.load(starts + row, mask=mask, other=0)
    before = tl.zeros([BLOCK, COMPARED], tl.int32)
    for first in range(0, tl.max(count, 0), COMPARED):
        at = first + tl.arange(0, COMPARED)[None, :]
        other = tl.load(pairs + start[:, None] + at, mask=at < count[:, None], other=9223372036854775807)
        before += (other < pair[:, None]).to(tl.int32)
    tl.store(ranks + start + tl.sum(before, 1), (pair & 4294967295).to(tl.int32), mask=mask)
"""
_ORDER_LONG = """
    for number in range(program, tl.load(counts + ROWS + 1), PROGRAMS):
        wanted = tl.load(longs + number)
        next = tl.load(starts + wanted)
        for first in range(0, EVENTS, BLOCK):
            event = first + tl.arange(0, BLOCK).to(tl.int64)
            found = (kevolve_row(event, GIVEN) == wanted).to(tl.int32)
            tl.store(ranks + next + tl.cumsum(found, 0) - found, event, mask=found > 0)
            next += tl.sum(found, 0)
"""


def kernel_of(plan: ScatterPlan, arguments: tuple[Argument, ...], schedule: Schedule) -> Kernel:
    text = _Text(plan, schedule)
    given = (*arguments, *(Argument("workspace", k) for k in range(len(_MEMORY))))
    return Kernel("triton", text.source(), tuple(text.launches(given)), text.memory())


class _Text:
    def __init__(self, plan: ScatterPlan, schedule: Schedule) -> None:
        self.plan, self.schedule = plan, schedule
        self.events, self.rows = plan.scatter.events, product(plan.scatter.rows)
        self.block, longest = int(schedule["block"]), int(schedule["longest"])
        # A row cannot have more events than there are.
        self.long = min(_LONG_PROGRAMS, self.events // longest) if isinstance(self.events, int) else _LONG_PROGRAMS
        self.inputs = [*(f"in{k}" for k in range(len(plan.inputs))), *plan.symbols]
        self.words = {"EVENTS": self.events, "ROWS": self.rows, "LONGEST": longest, "GIVEN": ", ".join(self.inputs)}
        short, long = short_tile(plan, schedule), long_tile(plan)
        self.sums = [SumText(plan, "kevolve_sum", short, longest, is_long=False)]
        if self.long:
            self.sums.append(SumText(plan, "kevolve_sum_long", long, longest, is_long=True))

    def launches(self, given: tuple[Argument, ...]) -> list[Launch]:
        blocks, places = cdiv(self.events, self.block), cdiv(self.events, _ORDERED)
        ordering = places + self.long if isinstance(places, int) else f"{places} + {self.long}"
        short = self.sums[0]
        rows = cdiv(self.rows, short.tile.rows)
        programs = [
            Launch("kevolve_count", given, (str(blocks),)),
            Launch("kevolve_allocate", given, (str(cdiv(self.rows, _ALLOCATED)),)),
            Launch("kevolve_place", given, (str(blocks),)),
            Launch("kevolve_order", given, (str(ordering),)),
            Launch(short.name, given, (f"({rows}) * {short.parts}",), num_warps=int(self.schedule["num_warps"])),
        ]
        for long in self.sums[1:]:
            programs.append(Launch(long.name, given, (str(self.long * long.parts),), num_warps=LONG_WARPS))
        return programs

    def memory(self) -> tuple[Workspace, ...]:
        rows, events = str(self.rows), str(self.events)
        counts = Workspace("int32", f"{rows} + 2", zeroed=True)
        numbers = [Workspace("int32", numel) for numel in (rows, rows, events)]
        return (counts, *numbers, Workspace("int64", events))

    def source(self) -> str:
        outputs = [f"out{k}" for k in range(len(self.plan.outputs))]
        names = [*self.inputs[: len(self.plan.inputs)], *outputs, *self.plan.symbols, *_MEMORY]
        memory = list(_MEMORY)
        functions = [
            row_function(self.plan.scatter, self.inputs),
            self._function("kevolve_count", names, size_checks(self.events, self.rows) + _COUNT, BLOCK=self.block),
            self._function("kevolve_allocate", names, _ALLOCATE, BLOCK=_ALLOCATED),
            self._function("kevolve_place", names, _PLACE, BLOCK=self.block),
            self._function("kevolve_order_short", ["program", *memory, *self.plan.symbols], _ORDER_SHORT,
                           BLOCK=_ORDERED, COMPARED=_COMPARED),
            *self._long_order(),
            self._function("kevolve_order", names, self._order()),
            self.sums[0].joined(),
            # Last what differs most between schedules: Triton knows a function again on the line that it stood on before.
            *(text.function(names) for text in reversed(self.sums)),
        ]  # fmt: skip
        code = "\n\n".join(functions)
        return f"{used_helpers(TRITON_PRELUDE + TRITON_REMAINDER, code)}\n\n{code}\n"

    def _function(self, name: str, names: Sequence[str], body: str, **more: Constant) -> str:
        for word, value in (self.words | more).items():
            body = re.sub(rf"\b{word}\b", str(value), body)
        return f"@triton.jit\ndef {name}({', '.join(names)}):\n{body.strip(chr(10))}"

    def _long_order(self) -> list[str]:
        if not self.long:
            return []
        names = ["program", *self.inputs, *_MEMORY]
        more = {"BLOCK": _SEARCHED, "PROGRAMS": self.long}
        return [self._function("kevolve_order_long", names, _ORDER_LONG, **more)]

    def _order(self) -> str:
        """Programs with very long rows come first, since they take longest."""
        memory = ", ".join([*_MEMORY, *self.plan.symbols])
        if not self.long:
            return f"    kevolve_order_short(tl.program_id(0), {memory})"
        return f"""
    program = tl.program_id(0)
    if program < {self.long}:
        kevolve_order_long(program, {", ".join([*self.inputs, *_MEMORY])})
    else:
        kevolve_order_short(program - {self.long}, {memory})
"""
