"""Extremes of rows as Triton, by atomic operations on integers: whichever comes first, the greatest is the same.

Floating-point numbers are compared as integers of the same order, which stand where the result will: with the sign bit
set, all others are turned. NaN is beyond all numbers on the side that is looked for.

- ``kevolve_start``: what rows start as.
- ``kevolve_combine``: every event's elements are compared with what is there.
- ``kevolve_finish``: integers become floating-point numbers again.
"""

from __future__ import annotations

from ....graph.dims import Dim, product
from ....kernel import Argument, Kernel, Launch
from ...expression.expression import FLOATS
from ...expression.triton import TRITON_TYPES
from ...family import Schedule
from ..triton_tiles import cdiv, coordinates
from .plan import EVENT, ROW, ScatterPlan
from .rows import row_function, size_checks
from .text import TileText
from .tiles import columns_of

# Bits of the types that atomic operations compare.
_BITS = {"float32": 32, "int32": 32, "float64": 64, "int64": 64}
_OPERATIONS = {"maximum": "tl.atomic_max", "minimum": "tl.atomic_min"}
_CODES = """
@triton.jit
def kevolve_code(x):
    bits = x.to(tl.intBITS, bitcast=True)
    return tl.where(x == x, bits ^ ((bits >> LAST) & MOST), BEYOND)


@triton.jit
def kevolve_number(code):
    return (code ^ ((code >> LAST) & MOST)).to(tl.floatBITS, bitcast=True)
"""


def is_offered(plan: ScatterPlan) -> bool:
    scatter = plan.built
    return scatter.combine in _OPERATIONS and scatter.held == plan.outputs[0].dtype and scatter.held in _BITS


def kernel_of(plan: ScatterPlan, arguments: tuple[Argument, ...], schedule: Schedule) -> Kernel:
    return _Text(plan, schedule).kernel(arguments)


class _Text(TileText):
    def __init__(self, plan: ScatterPlan, schedule: Schedule) -> None:
        super().__init__(plan, schedule)
        self.columns = columns_of(plan)
        self.lines = max(1, int(schedule["block"]) // self.columns)
        self.parts = -(-self.elements // self.columns)
        self.rows = product(plan.scatter.rows)
        self.is_coded = plan.scatter.held in FLOATS

    def kernel(self, arguments: tuple[Argument, ...]) -> Kernel:
        def launch(name: str, count: Dim) -> Launch:
            return Launch(name, arguments, (f"({cdiv(count, self.lines)}) * {self.parts}",), num_warps=self.warps)

        launches = [launch("kevolve_start", self.rows), launch("kevolve_combine", self.scatter.events)]
        if self.is_coded:
            launches.append(launch("kevolve_finish", self.rows))
        source = self.source(
            *([self._codes()] if self.is_coded else []),
            row_function(self.scatter, self.given),
            self.function("kevolve_start", self._start()),
            *([self.function("kevolve_finish", self._finish())] if self.is_coded else []),
            self.function("kevolve_combine", self._combine()),
        )
        return Kernel("triton", source, tuple(launches))

    def _codes(self) -> str:
        bits = _BITS[self.scatter.held]
        most = 2 ** (bits - 1) - 1
        beyond = most if self.scatter.combine == "maximum" else -most - 1
        words = {"BITS": bits, "LAST": bits - 1, "MOST": most, "BEYOND": beyond}
        text = _CODES.strip()
        for word, value in words.items():
            text = text.replace(word, str(value))
        return text

    def _opened(self) -> list[str]:
        """The integers of the result."""
        bits = _BITS[self.scatter.held]
        return [f"codes = out0.to(tl.pointer_type(tl.int{bits}))" if self.is_coded else "codes = out0"]

    def _lines(self, name: str) -> str:
        return f"{name} = (tl.program_id(0) // {self.parts}).to(tl.int64) * {self.lines} + tl.arange(0, {self.lines})"

    def _columns(self) -> list[str]:
        start = f"tl.program_id(0) % {self.parts} * {self.columns}"
        return [
            f"place = ({start} + tl.arange(0, {self.columns}))[None, :]",
            f"place_mask = place < {self.elements}",
            *coordinates("place", self.scatter.inner),
        ]

    def _full(self, text: str) -> str:
        """``text`` for every element of a tile."""
        return f"({text} + tl.zeros([{self.lines}, {self.columns}], {TRITON_TYPES[self.scatter.held]}))"

    def _coded(self, text: str) -> str:
        return f"kevolve_code({text})" if self.is_coded else text

    def _rows(self) -> list[str]:
        """Rows of the result, and where their elements are: ``to``."""
        printer = self.printer(ROW, "row_mask")
        offset = printer.value(self.scatter.offset)
        return [
            *self._opened(),
            self._lines("line"),
            f"{ROW} = line[:, None]",
            f"row_mask = {ROW} < {self.rows}",
            *self._columns(),
            *printer.taken(),
            f"to = {ROW} * {self.scatter.step} + {offset} + place * 0",
        ]

    def _start(self) -> list[str]:
        printer = self.printer(ROW, "row_mask")
        base = self._coded(self._full(f"({printer.value(self.scatter.base)})"))
        return [*self._rows(), *printer.taken(), f"tl.store(codes + to, {base}, mask=row_mask & place_mask)"]

    def _finish(self) -> list[str]:
        number = "kevolve_number(tl.load(codes + to, mask=row_mask & place_mask, other=0))"
        return [*self._rows(), f"tl.store(out0 + to, {number}, mask=row_mask & place_mask)"]

    def _combine(self) -> list[str]:
        printer, places = self.printer(EVENT, "event_mask"), self.printer(EVENT, "event_mask")
        value = self._coded(self._full(f"({printer.value(self.scatter.value)})"))
        offset = places.value(self.scatter.offset)
        checks = size_checks(self.scatter.events, self.rows).strip()
        return [
            *([checks] if checks else []),
            *self._opened(),
            self._lines("number"),
            f"line = {self.row_of('number')}.to(tl.int64)[:, None]",
            f"{EVENT} = number[:, None]" + ("" if self.is_wide else ".to(tl.int32)"),
            "event_mask = line >= 0",
            *self._columns(),
            *places.taken(),
            # One element to a lane, so that lanes beside one another share a request: Triton gives each as many as are
            # aligned, which it does not see behind the number of a program. That is 0: there is one along this axis.
            f"to = line * {self.scatter.step} + {offset} + place * 0 + tl.program_id(1)",
            *printer.taken(),
            f'{_OPERATIONS[self.scatter.combine]}(codes + to, {value}, mask=event_mask & place_mask, sem="relaxed")',
        ]
