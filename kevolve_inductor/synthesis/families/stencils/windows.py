"""Windows: which positions of the source one axis of a result reads, and the index arithmetic that says so.

Three operators beside those of :mod:`...expression.expression` mark what borders cost, so that an emitter can leave it out
where a window is known to lie within the source. ``value`` of each ends in the number of that window, or ``None``:
``inside`` (args: position; value: (size, number)) is true for a position within the source, ``clamped`` (likewise) is the
nearest such position, ``covered`` (args: start; value: (taps, low, high, number)) counts the positions of
``[start, start + taps)`` within ``[low, high)``.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ....graph.dims import Dim
from ...expression import expression as ex
from ...expression.expression import Expr

MARKS = ("inside", "clamped", "covered")


@dataclass(frozen=True)
class Window:
    """Tap ``k < taps`` of place ``a`` is position ``(a * stride + base) // divide + shift + k * dilation`` of an axis.

    Positions outside of ``[0, size)`` are padding. ``divide`` is not 1 only in the gradient of a strided operator, whose
    source is the smaller side; then ``a * stride + base`` is never negative.
    """

    taps: int
    size: Dim
    stride: int = 1
    base: int = 0
    dilation: int = 1
    divide: int = 1
    shift: int = 0

    def position(self, place: Expr, tap: Expr) -> Expr:
        start = ex.iadd(ex.imul(place, ex.index(self.stride)), ex.index(self.base))
        first = quotient(start, self.divide)[0]
        return ex.iadd(ex.iadd(first, ex.index(self.shift)), ex.imul(tap, ex.index(self.dilation)))

    def free_from(self) -> int:
        """The first place all of whose taps are at position 0 or more, if positions rise with places."""
        return -((self.divide * self.shift + self.base) // self.stride)

    def free_limit(self) -> tuple[int, int, int]:
        """``(scale, offset, stride)``: taps are below ``size`` for places below ``ceil((scale * size + offset) / stride)``."""
        last = self.shift + (self.taps - 1) * self.dilation
        return self.divide, -self.divide * last - self.base, self.stride

    def is_inside(self, position: Expr, number: int) -> Expr:
        return ex.make("inside", "bool", (position,), (self.size, number))

    def clamp(self, position: Expr, number: int) -> Expr:
        return ex.make("clamped", "int64", (position,), (self.size, number))


def quotient(a: Expr, n: int) -> tuple[Expr, Expr]:
    """``a // n`` and ``a % n``, with the constant part of ``a`` divided on its own; ``a`` is not negative."""
    if n == 1:
        return a, ex.index(0)
    rest, whole = a, 0
    if a.op == "const":
        return ex.index(a.value // n), ex.index(a.value % n)
    if a.op == "add" and a.args[1].op == "const":
        whole, left = divmod(int(a.args[1].value), n)
        rest = ex.iadd(a.args[0], ex.index(left))
    upper, lower = ex.idivmod(rest, n)
    return ex.iadd(upper, ex.index(whole)), lower


def covered(start: Expr, taps: int, low: Dim, high: Dim, number: int | None) -> Expr:
    return ex.make("covered", "int64", (start,), (taps, low, high, number))


_KNOWN: dict[str, Callable[[Any, Any], Any]] = {
    "lt": operator.lt, "ge": operator.ge, "logical_and": operator.and_, "sub": operator.sub,
}  # fmt: skip


def simplified(expr: Expr, mapping: Mapping[str, Expr]) -> Expr:
    """``expr`` with variables replaced and index arithmetic, conditions and marks folded as far as bounds allow."""
    done: dict[Expr, Expr] = {}
    for part in ex.walk(expr):
        if part.op == "var":
            done[part] = mapping.get(part.value[0], part)
        else:
            done[part] = _folded(part, tuple(done[argument] for argument in part.args))
    return done[expr]


def _folded(part: Expr, args: tuple[Expr, ...]) -> Expr:
    if part.op in MARKS:
        return _mark(part, args[0])
    if part.op == "where" and args[0].op == "const":
        return args[1] if args[0].value else args[2]
    if part.op == "logical_and" and "const" in (args[0].op, args[1].op):
        known, other = args if args[0].op == "const" else (args[1], args[0])
        return other if known.value else known
    if part.op in _KNOWN and all(argument.op == "const" for argument in args):
        return ex.const(_KNOWN[part.op](args[0].value, args[1].value), part.dtype)
    if part.dtype == "int64" and part.op in _ARITHMETIC:
        return _ARITHMETIC[part.op](args)
    return part if args == part.args else ex.make(part.op, part.dtype, args, part.value)


def _difference(args: tuple[Expr, ...]) -> Expr:
    a, b = args
    return ex.iadd(a, ex.index(-b.value)) if b.op == "const" else ex.make("sub", "int64", args)


def _divided(args: tuple[Expr, ...], which: int) -> Expr:
    if args[1].op == "const":
        return quotient(args[0], int(args[1].value))[which]
    return ex.make(("idiv", "imod")[which], "int64", args)


_ARITHMETIC: dict[str, Callable[[tuple[Expr, ...]], Expr]] = {
    "add": lambda args: ex.iadd(*args), "mul": lambda args: ex.imul(*args), "sub": _difference,
    "idiv": lambda args: _divided(args, 0), "imod": lambda args: _divided(args, 1),
}  # fmt: skip


def _mark(part: Expr, at: Expr) -> Expr:
    """A mark at ``at``: what it is known to be, or itself."""
    taps, low, high = part.value[:3] if part.op == "covered" else (1, 0, part.value[0])
    if _is_within(at, taps, low, high):
        return {"inside": ex.const(True, "bool"), "clamped": at}.get(part.op, ex.index(taps))
    if part.op == "inside" and at.op == "const" and isinstance(high, int):
        return ex.const(0 <= at.value < high, "bool")
    return ex.make(part.op, part.dtype, (at,), part.value)


def _is_within(start: Expr, taps: int, low: Dim, high: Dim) -> bool:
    bottom, top = ex.lower_bound(start), ex.upper_bound(start)
    if bottom is None or not isinstance(low, int) or bottom < low:
        return False
    return (
        top == high
        if taps == 1 and isinstance(high, str)
        else (isinstance(top, int) and isinstance(high, int) and top + taps - 1 <= high)
    )
