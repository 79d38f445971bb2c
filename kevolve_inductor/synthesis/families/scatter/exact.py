"""Sums as Triton by atomic operations on integers: they are exact, so that it is of no matter which event comes first.

A floating-point number is an integer times a power of two. Numbers whose exponents lie in the same window are integers of
the same power; a window is as wide as 64 bits leave room for the sum of all events. So each row's element is one sum of
integers per window, and every value goes to exactly one of them. Of half precision (``float16``) all numbers fit into one
window. Long sums of this kind are known as superaccumulators (Kulisch 1986; Collange et al. 2015).

- ``kevolve_add``: every event's elements to the sums of its row. Several copies of the sums keep programs out of each
  other's way where rows are few. Infinities and what is no number leave a mark instead.
- ``kevolve_join``: windows and copies to one number in double precision, in a fixed order.
"""

from __future__ import annotations

import math

from ....graph.dims import product
from ....kernel import Argument, Kernel, Launch, Workspace
from ...family import Schedule
from ..triton_tiles import coordinates
from .plan import EVENT, ROW, ScatterPlan
from .rows import row_function
from .text import TileText
from .tiles import WIDEST, columns_of, elements_of, stored_precision

# Copies of the sums that are tried, the bytes that they may take in all, and the sums that keep programs apart.
_COPIES, _MOST_BYTES, _APART = (1, 2, 4, 8, 16, 32, 64, 128, 256), 2**26, 2**17
# Binary digits of a significand, by the precision in which values lie in memory; ``float16`` is counted below.
_DIGITS = {"bfloat16": 8, None: 24}
# Exponents of finite numbers of single precision, as they are stored; that of subnormal ones counts as the first.
_EXPONENTS, _BIAS, _FRACTION = 254, 127, 23
# Binary digits behind the point of the least number of half precision, and in front of it for the largest.
_HALF_FRACTION, _HALF_WHOLE = 24, 16
# Sums that one program joins, of one window, and the least elements that these are of.
_JOINED, _LEAST_JOINED = 2048, 16


def is_offered(plan: ScatterPlan) -> bool:
    scatter = plan.built
    is_static = isinstance(scatter.events, int) and isinstance(product(scatter.rows), int)
    if not is_static or scatter.combine != "add" or scatter.held != "float32" or elements_of(scatter) > WIDEST:
        return False
    return _windows(plan) > 0 and _bytes(plan, 1) <= _MOST_BYTES


def _windows(plan: ScatterPlan) -> int:
    """How many sums of integers an element has; 0 where the events are too many for 64 bits."""
    width = _width(plan)
    return 0 if width < 1 else 1 if stored_precision(plan) == "float16" else math.ceil(_EXPONENTS / width)


def _width(plan: ScatterPlan) -> int:
    """Exponents in a window: the sum of all events, each of that many digits more than a significand has, stays in 64 bits."""
    stored, many = stored_precision(plan), math.ceil(math.log2(max(2, int(plan.built.events))))
    if stored == "float16":
        return 63 - many - _HALF_FRACTION - _HALF_WHOLE + 1
    return 64 - many - _DIGITS[stored]


def _bytes(plan: ScatterPlan, copies: int) -> int:
    return 8 * _sums(plan, copies)


def _sums(plan: ScatterPlan, copies: int) -> int:
    """All windows of all copies, and the marks."""
    return (copies * _windows(plan) + 1) * int(product(plan.built.rows)) * elements_of(plan.built)


def copies_of(plan: ScatterPlan) -> tuple[int, ...]:
    """Numbers of copies worth trying, the likeliest first."""
    fitting = [count for count in _COPIES if _bytes(plan, count) <= _MOST_BYTES]
    apart = _APART / (int(product(plan.built.rows)) * elements_of(plan.built))
    return tuple(sorted(fitting, key=lambda count: abs(math.log2(count / max(1.0, apart)))))


def kernel_of(plan: ScatterPlan, arguments: tuple[Argument, ...], schedule: Schedule) -> Kernel:
    return _Text(plan, schedule).kernel(arguments)


class _Text(TileText):
    def __init__(self, plan: ScatterPlan, schedule: Schedule) -> None:
        super().__init__(plan, schedule, "sums")
        self.events, self.columns = int(self.scatter.events), columns_of(plan)
        self.copies, self.is_flat = int(schedule["copies"]), bool(schedule["flat"])
        self.size = max(int(schedule["block"]), self.columns)
        self.lines = self.size // self.columns
        self.stored, self.windows, self.width = stored_precision(plan), _windows(plan), _width(plan)
        self.sums = int(product(self.scatter.rows)) * self.elements
        self.joined = max(_LEAST_JOINED, min(_JOINED // 4, _JOINED // self.copies))
        self.marks = f"sums + {self.copies * self.windows * self.sums}"

    def kernel(self, arguments: tuple[Argument, ...]) -> Kernel:
        given = (*arguments, Argument("workspace", 0))
        programs = -(-self.events * self.elements // self.size) if self.is_flat else -(-self.events // self.lines)
        launches = (
            Launch("kevolve_add", given, (str(programs),), num_warps=self.warps),
            Launch("kevolve_join", given, (str(-(-self.sums // self.joined)),)),
        )
        source = self.source(
            row_function(self.scatter, self.given),
            self.function("kevolve_join", self._join()),
            self.function("kevolve_add", self._add()),
        )
        sums = Workspace("int64", str(_sums(self.plan, self.copies)), zeroed=True)
        return Kernel("triton", source, launches, (sums,))

    def _add(self) -> list[str]:
        printer = self.printer(EVENT, "event_mask", "event_mask" if self.is_flat else "place_mask")
        value = printer.value(self.scatter.value)
        number, window = self._integer()
        there = "event_mask" if self.is_flat else "event_mask & place_mask"
        return [
            *(self._flat() if self.is_flat else self._tile()),
            *coordinates("place", self.scatter.inner),
            *printer.taken(),
            f"value = tl.where({there}, {value}, 0.0).to(tl.float32)",
            "bits = value.to(tl.int32, bitcast=True)",
            f"exponent = (bits >> {_FRACTION}) & 255",
            f"is_finite = exponent <= {_EXPONENTS}",
            *number,
            f"copy = tl.program_id(0) % {self.copies}",
            # One element to a lane, so that lanes beside one another share a request: Triton gives each as many as are
            # aligned, which it does not see behind the number of a program. That is 0: there is one along this axis.
            f"to = line * {self.elements} + place + tl.program_id(1)",
            f"at = sums + (copy * {self.windows} + {window}) * {self.sums} + to",
            'tl.atomic_add(at, number, mask=is_finite & (number != 0), sem="relaxed")',
            "mark = tl.where(value != value, 3, tl.where(bits < 0, 2, 1)).to(tl.int64)",
            f'tl.atomic_or({self.marks} + to, mark, mask=is_finite == 0, sem="relaxed")',
        ]

    def _flat(self) -> list[str]:
        """Elements of events one behind another, as they lie in memory: ``line``, ``place``, and the event of each."""
        return [
            f"start = tl.program_id(0).to(tl.int64) * {self.size}",
            f"behind = (start % {self.elements}).to(tl.int32) + tl.arange(0, {self.size})",
            f"number = start // {self.elements} + behind // {self.elements}",
            f"place = behind % {self.elements}",
            f"line = {self.row_of('number')}",
            f"{EVENT} = number" + ("" if self.is_wide else ".to(tl.int32)"),
            "event_mask = line >= 0",
        ]

    def _tile(self) -> list[str]:
        """Rows of elements beside one another, for values that lie in another order."""
        return [
            f"number = tl.program_id(0).to(tl.int64) * {self.lines} + tl.arange(0, {self.lines})",
            f"line = {self.row_of('number')}[:, None]",
            f"{EVENT} = number[:, None]" + ("" if self.is_wide else ".to(tl.int32)"),
            "event_mask = line >= 0",
            f"place = tl.arange(0, {self.columns})[None, :]",
            f"place_mask = place < {self.elements}",
        ]

    def _integer(self) -> tuple[list[str], str]:
        """Lines that make ``number`` of ``value``, and its window."""
        if self.stored == "float16":
            return [f"number = tl.where(is_finite, value * {2.0**_HALF_FRACTION}, 0.0).to(tl.int64)"], "0"
        spare = _DIGITS[None] - _DIGITS[self.stored]
        return [
            f"digits = (bits & {2**_FRACTION - 1}) | tl.where(exponent > 0, {2**_FRACTION}, 0)",
            f"window = tl.maximum(exponent - 1, 0) // {self.width}",
            f"number = (digits >> {spare}).to(tl.int64) << (tl.maximum(exponent - 1, 0) - window * {self.width}).to(tl.int64)",
            "number = tl.where(bits < 0, -number, number)",
        ], f"tl.minimum(window, {self.windows - 1})"

    def _unit(self, window: int) -> float:
        """What an integer of this window counts."""
        if self.stored == "float16":
            return 2.0**-_HALF_FRACTION
        return math.ldexp(1.0, window * self.width + 1 - _BIAS - _DIGITS[self.stored] + 1)

    def _join(self) -> list[str]:
        printer = self.printer(ROW, "mask", "mask")
        base, offset = printer.value(self.scatter.base), printer.value(self.scatter.offset)
        lines = [
            f"at = tl.program_id(0) * {self.joined} + tl.arange(0, {self.joined})",
            f"mask = at < {self.sums}",
            f"place = at % {self.elements}",
            f"{ROW} = (at // {self.elements})" + (".to(tl.int64)" if self.is_wide else ""),
            *coordinates("place", self.scatter.inner),
            *printer.taken(),
            f"copies = at[None, :] + tl.arange(0, {self.copies})[:, None] * {self.windows * self.sums}",
            f"total = tl.zeros([{self.joined}], tl.float64)",
        ]
        for window in range(self.windows):
            integers = f"tl.load(sums + {window * self.sums} + copies, mask=mask[None, :], other=0)"
            lines.append(f"total += tl.sum({integers}, 0).to(tl.float64) * {self._unit(window)!r}")
        return [
            *lines,
            f"mark = tl.load({self.marks} + at, mask=mask, other=0)",
            'total = tl.where(mark == 1, float("inf"), total)',
            'total = tl.where(mark == 2, float("-inf"), total)',
            'total = tl.where(mark == 3, float("nan"), total)',
            f"tl.store(out0 + {ROW} * {self.scatter.step} + {offset} + place * 0, (total + {base}).to(tl.float32), mask=mask)",
        ]
