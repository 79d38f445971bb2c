"""Printing a thread's unit of results: reads of neighbouring elements become one vector load, split into lanes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ....graph.dims import Dim
from ....graph.region import ITEM_SIZES, TensorSpec
from ...expression import TritonPrinter
from ...expression import expression as ex
from ...expression.access import linear, offset_of, replace
from ...expression.expression import Expr
from ...expression.triton import TRITON_TYPES, literal

# The widest load or store of one thread.
VECTOR_BYTES = 16

# Splits take every other element, so lanes come out in bit-reversed order; joins put them together likewise.
TRITON_LANES = """
@triton.jit
def kv_split2(x):
    return tl.split(x)

@triton.jit
def kv_split4(x):
    even, odd = tl.split(tl.reshape(x, [x.shape[0], 2, 2]))
    a, c = tl.split(even)
    b, d = tl.split(odd)
    return a, b, c, d

@triton.jit
def kv_split8(x):
    even, odd = tl.split(tl.reshape(x, [x.shape[0], 4, 2]))
    a, c, e, g = kv_split4(even)
    b, d, f, h = kv_split4(odd)
    return a, b, c, d, e, f, g, h

@triton.jit
def kv_join2(a, b):
    return tl.join(a, b)

@triton.jit
def kv_join4(a, b, c, d):
    return tl.reshape(tl.join(tl.join(a, c), tl.join(b, d)), [a.shape[0], 4])

@triton.jit
def kv_join8(a, b, c, d, e, f, g, h):
    return tl.reshape(tl.join(kv_join4(a, c, e, g), kv_join4(b, d, f, h)), [a.shape[0], 8])
"""


def with_fills(expr: Expr) -> Expr:
    """``expr`` with selections between a read inside of a window's source and a constant made reads with that fill.

    A read becomes ``read`` with value ``(slot, stored dtype, fill)``: it is masked to positions inside anyway.
    """
    done: dict[Expr, Expr] = {}
    for part in ex.walk(expr):
        args = tuple(done[argument] for argument in part.args)
        new = _filled(*args) if part.op == "where" else None
        done[part] = new or (part if args == part.args else ex.make(part.op, part.dtype, args, part.value))
    return done[expr]


# Where a small difference between arguments may make any difference between results.
_STEPS = frozenset({"eq", "ne", "lt", "le", "gt", "ge", "isnan", "isinf", "sign", "floor", "ceil", "trunc", "nearbyint",
                    "floordiv", "truncdiv", "mod", "fmod"})  # fmt: skip


def unrounded(value: Expr) -> Expr:
    """``value`` without eager's roundings on the way, each of which costs two conversions and some accuracy.

    They stay where something in ``value`` may jump, so that it does where it does in eager.
    """
    if any(map(_jumps, ex.walk(value))):
        return value
    return ex.rebuilt(value, lambda part: part.args[0] if part.op == "round" else None)


def _jumps(part: Expr) -> bool:
    if not part.args or part.args[0].dtype not in ex.FLOATS:
        return False
    return part.op in _STEPS or (part.op == "cast" and part.dtype not in ex.FLOATS)


def _filled(condition: Expr, value: Expr, otherwise: Expr) -> Expr | None:
    if condition.op != "inside" or otherwise.op != "const":
        return None
    if value.op == "cast":
        inner = _filled(condition, value.args[0], ex.const(otherwise.value, value.args[0].dtype))
        return ex.make("cast", value.dtype, (inner,), value.value) if inner is not None else None
    if value.op != "read" or value.dtype not in ex.FLOATS:
        return None
    slot, stored, *fill = value.value
    marks = [part for part in ex.walk(offset_of(value)) if part.op == "clamped"]
    if (fill and fill[0] != otherwise.value) or all(
        m.args != condition.args or m.value != condition.value for m in marks
    ):
        return None
    return ex.make("read", value.dtype, value.args, (slot, stored, otherwise.value))


@dataclass(frozen=True)
class _Bound:
    """``position`` must lie within ``[0, size)``; ``step`` is how far in memory the next position is."""

    position: Expr
    size: Dim
    step: int | None


class LanePrinter(TritonPrinter):
    """Prints values of one-dimensional tensors, an element for each unit. ``inside`` are the variables that differ between
    the units of a program; ``is_masked``: some units lie behind the last one, which ``mask`` tells."""

    def __init__(self, inputs: Sequence[TensorSpec], inside: set[str], is_masked: bool) -> None:
        super().__init__(inputs, "mask")
        self.inside, self.is_masked = inside, is_masked
        self._chunks: dict[tuple[object, ...], list[str]] = {}

    def value(self, expr: Expr) -> str:
        if expr not in self._names:
            if expr.op == "read":
                self._names[expr] = self._read(expr)
            else:
                for argument in expr.args:
                    self.value(argument)
                self._names[expr] = self._print(expr)
        return self._names[expr]

    def specials(self) -> dict[str, Callable[[Expr, list[str]], str]]:
        return {
            **super().specials(),
            "inside": lambda e, a: self._condition([_Bound(e.args[0], e.value[0], None)], False) or "True",
            "clamped": lambda e, a: a[0],
            "covered": _covered,
        }

    # --- reads ---

    def _read(self, expr: Expr) -> str:
        slot, stored, *fill = expr.value
        other = literal(fill[0] if fill else 0, expr.dtype)
        offset, bounds = without_clamps(offset_of(expr))
        offset = in_order(offset)
        is_lane = bool(ex.variables(offset) & self.inside)
        width = self._width(slot, offset, bounds) if is_lane else 1
        if width == 1:
            return self._named(self._masked(slot, self.value(offset), self._condition(bounds, is_lane), other), expr)
        lane = _constant_of(offset) % width
        start = ex.iadd(offset, ex.index(-lane))
        # The end of one row and what is in front of the next are the same elements under other bounds.
        condition = self._condition([_moved(bound, lane) for bound in bounds], True)
        key = (slot, start, other, condition)
        if key not in self._chunks:
            self._chunks[key] = self._split(slot, start, condition, other, width)
        return self._named(self._chunks[key][lane], expr)

    def _named(self, text: str, expr: Expr) -> str:
        stored = expr.value[1]
        if stored == "bool":
            text = f"({text} != 0)"
        elif stored != expr.dtype:
            text = f"{text}.to({TRITON_TYPES[expr.dtype]})"
        return self._assigned(text)

    def _assigned(self, text: str) -> str:
        name = f"{self._prefix}{self._count}"
        self._count += 1
        self.lines.append(f"{name} = {text}")
        return name

    def _masked(self, slot: int, offset: str, condition: str, other: str) -> str:
        masked = f", mask={condition}, other={other}" if condition else ""
        return f"tl.load(in{slot} + {offset}{masked})"

    def _split(self, slot: int, start: Expr, condition: str, other: str, width: int) -> list[str]:
        """Loads the vector at ``start`` of every unit; the names of its lanes."""
        wide = f"({condition})[:, None]" if condition else ""
        place = f"({self.value(start)})[:, None] + tl.arange(0, {width})[None, :]"
        names = [f"{self._prefix}{self._count + k}" for k in range(width)]
        self._count += width
        self.lines.append(f"{', '.join(names)} = kv_split{width}({self._masked(slot, place, wide, other)})")
        return names

    def _width(self, slot: int, offset: Expr, bounds: list[_Bound]) -> int:
        """How many elements an aligned vector around ``offset`` may have: none of it must lie outside of the source."""
        spec = self.inputs[slot]
        width = VECTOR_BYTES // ITEM_SIZES.get(spec.dtype, VECTOR_BYTES)
        parts = linear(offset)
        factors = [*parts.coefficients.values()]
        if parts.rest.op != "const":
            return 1
        extent = _extent_of(spec)
        for bound in bounds:
            if bound.step == 1:
                inner = linear(bound.position)
                factors += [*inner.coefficients.values(), bound.size if isinstance(bound.size, int) else 1]
                factors.append(_constant_of(bound.position) - _constant_of(offset))
        while width > 1 and any(factor % width for factor in (*factors, extent)):
            width //= 2
        return min(width, 8)

    def _condition(self, bounds: Sequence[_Bound], is_lane: bool) -> str:
        """All of ``bounds`` that are not known to hold, and for tensors that a unit is there."""
        parts = ["mask"] if is_lane and self.is_masked else []
        for bound in bounds:
            low, high = ex.lower_bound(bound.position), ex.upper_bound(bound.position)
            at = self.value(bound.position)
            if low is None or low < 0:
                parts.append(f"({at} >= 0)")
            if not (
                high == bound.size or (isinstance(high, int) and isinstance(bound.size, int) and high <= bound.size)
            ):
                parts.append(f"({at} < {bound.size})")
        return " & ".join(dict.fromkeys(parts))


def _covered(expr: Expr, arguments: list[str]) -> str:
    taps, low, high, _ = expr.value
    return f"(tl.minimum({arguments[0]} + {taps}, {high}) - tl.maximum({arguments[0]}, {low}))"


def without_clamps(offset: Expr) -> tuple[Expr, list[_Bound]]:
    """``offset`` with positions in place of their clamps, and what they are clamped to."""
    bounds = []
    for part in ex.walk(offset):
        if part.op == "clamped":
            bounds.append(_Bound(in_order(part.args[0]), part.value[0], _step_of(part, offset)))
    return replace(offset, lambda part, _: part.args[0] if part.op == "clamped" else None, is_offset=True), bounds


def in_order(position: Expr) -> Expr:
    """``position`` as one sum with its constant last."""
    parts = linear(position)
    names = {part.value[0]: part for part in ex.walk(position) if part.op == "var"}
    scaled = [ex.imul(names[name], ex.index(factor)) for name, factor in sorted(parts.coefficients.items())]
    return ex.isum([*scaled, parts.rest])


def _step_of(mark: Expr, offset: Expr) -> int | None:
    """By what ``mark`` is multiplied in ``offset``, if that is simple."""
    for part in ex.walk(offset):
        if part.op == "mul" and part.args[0] is mark:
            return int(part.args[1].value) if part.args[1].op == "const" else None
    return 1


def _moved(bound: _Bound, lane: int) -> _Bound:
    """The bound of a vector's first element, ``lane`` elements before the one that is read."""
    if bound.step != 1:
        return bound
    return _Bound(ex.iadd(bound.position, ex.index(-lane)), bound.size, 1)


def _constant_of(offset: Expr) -> int:
    if offset.op == "const":
        return int(offset.value)
    return int(offset.args[1].value) if offset.op == "add" and offset.args[1].op == "const" else 0


def _extent_of(spec: TensorSpec) -> int:
    """Elements from a tensor's first to its last, but for multiples of a vector; odd where that is not known."""
    total = 1
    for size, step in zip(spec.shape, spec.stride, strict=True):
        if isinstance(step, int) and step % VECTOR_BYTES == 0:
            continue
        if not isinstance(size, int) or not isinstance(step, int):
            return 1
        total += (size - 1) * step
    return total
