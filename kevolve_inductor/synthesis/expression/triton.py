"""Expressions as Triton statements over a tile, and the helpers they call."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence

from ...graph.region import TensorSpec
from .expression import INTEGERS, Expr
from .operators import OPERATORS
from .printer import Printer

TRITON_TYPES = {
    "float32": "tl.float32", "float64": "tl.float64", "bfloat16": "tl.bfloat16", "float16": "tl.float16",
    "int64": "tl.int64", "int32": "tl.int32", "int16": "tl.int16", "int8": "tl.int8", "uint8": "tl.uint8",
    "bool": "tl.int1",
}  # fmt: skip

# `//` and `%` of Triton truncate as C does; eager rounds towards minus infinity.
TRITON_PRELUDE = """
@triton.jit
def kv_remainder(a, b):
    r = a % b
    return tl.where((r != 0) & ((r < 0) != (b < 0)), r + b, r)

@triton.jit
def kv_fmod(a, b):
    return a % b

@triton.jit
def kv_floordiv(a, b):
    if a.dtype.is_floating():
        return tl.floor(a / b)
    else:
        q = a // b
        return tl.where((a % b != 0) & ((a < 0) != (b < 0)), q - 1, q)

@triton.jit
def kv_truncdiv(a, b):
    if a.dtype.is_floating():
        q = a / b
        return tl.where(q < 0, tl.ceil(q), tl.floor(q))
    else:
        return a // b

@triton.jit
def kv_sign(x):
    return (x > 0).to(x.dtype) - (x < 0).to(x.dtype)

@triton.jit
def kv_max(a, b):
    # 65535 is PropagateNan.ALL: one instruction in place of three.
    if (a + b).dtype.is_fp32():
        return tl.maximum(a, b, propagate_nan=tl.PropagateNan(65535))
    else:
        return tl.where((a > b) | (a != a), a, b)

@triton.jit
def kv_min(a, b):
    if (a + b).dtype.is_fp32():
        return tl.minimum(a, b, propagate_nan=tl.PropagateNan(65535))
    else:
        return tl.where((a < b) | (a != a), a, b)

@triton.jit
def kv_exp(x):
    # The unit's powers of two are as exact as their argument, of which a product with log2(e) loses digits: what it loses
    # is added once more, with the digits that log2(e) has beyond single precision.
    if x.dtype.is_fp32():
        n = x * 1.4426950216293335
        lost = tl.fma(x, 1.4426950216293335, -n) + x * 1.9259629911783190e-08
        return tl.exp2(n) * (1.0 + 0.6931471805599453 * tl.where(tl.abs(x) < 256.0, lost, 0.0))
    else:
        return tl.exp(x)

@triton.jit
def kv_relu(x):
    return tl.where(x < 0, 0, x).to(x.dtype)

@triton.jit
def kv_shl(a, b):
    bits: tl.constexpr = a.dtype.primitive_bitwidth
    return tl.where((b < 0) | (b >= bits), 0, a << b)

@triton.jit
def kv_shr(a, b):
    bits: tl.constexpr = a.dtype.primitive_bitwidth
    return a >> tl.where((b < 0) | (b >= bits), bits - 1, b)

@triton.jit
def kv_bucketize(borders, step, count: tl.constexpr, halvings: tl.constexpr, value, right: tl.constexpr):
    low = tl.zeros(value.shape, tl.int32)
    for s in tl.static_range(halvings):
        half = (((count - 1) >> s) + 1) >> 1
        border = tl.load(borders + (low + (half - 1)) * step).to(value.dtype)
        below = ~(border > value) if right else ~(border >= value)
        low += tl.where(below, half, 0)
    last = tl.load(borders + low * step).to(value.dtype)
    below = ~(last > value) if right else ~(last >= value)
    return (low + below.to(tl.int32)).to(tl.int64)
"""


def used_helpers(library: str, code: str) -> str:
    """Those functions of ``library`` (texts of ``@triton.jit`` functions) that ``code`` needs, helpers' own included."""
    texts = {re.search(r"def (\w+)", text)[1]: text.strip() for text in library.split("@triton.jit") if "def " in text}  # type: ignore[index]
    needed: dict[str, None] = {}
    wanted = [code]
    while wanted:
        words = set(re.findall(r"\w+", wanted.pop()))
        fresh = [name for name in texts if name in words and name not in needed]
        needed |= dict.fromkeys(fresh)
        wanted += [texts[name] for name in fresh]
    return "\n\n".join(f"@triton.jit\n{text}" for name, text in texts.items() if name in needed)


class TritonPrinter(Printer):
    """Triton spelling of a tile. ``mask`` names the tile's mask: loads are masked by it, lanes outside hold zero."""

    def __init__(self, inputs: Sequence[TensorSpec], mask: str, prefix: str = "t") -> None:
        super().__init__(inputs, prefix)
        self.mask = mask

    def nested(self, mask: str | None = None) -> TritonPrinter:
        inner = TritonPrinter(self.inputs, self.mask if mask is None else mask)
        inner._adopt(self)
        return inner

    def leaf(self, expr: Expr) -> str | None:
        if expr.op == "var":
            return str(expr.value[0])
        if expr.op == "size":
            return f"({expr.value})"
        if expr.op == "const":
            return literal(expr.value, expr.dtype)
        return None

    def assign(self, name: str, dtype: str, text: str) -> None:
        self.lines.append(f"{name} = {text}")

    def template(self, op: str) -> str:
        return OPERATORS[op].triton

    def specials(self) -> dict[str, Callable[[Expr, list[str]], str]]:
        return {
            "load": self._load,
            "cast": self._cast,
            "round": lambda e, a: f"{a[0]}.to({TRITON_TYPES[e.value]}).to(tl.float32)",
            "as_value": lambda e, a: f"({a[0]} + tl.full([1], 0, tl.int64))",
            "within": lambda e, a: f"tl.minimum(tl.maximum({a[0]}, 0), {e.value[0]} - 1)",
            "check_index": self._check_index,
            "check_divisor": lambda e, a: a[0],
            "bucketize": self._bucketize,
        }

    def _cast(self, expr: Expr, arguments: list[str]) -> str:
        if expr.dtype == "bool":
            return f"({arguments[0]} != 0)"
        if expr.args[0].op == "const":
            return f"tl.full([1], {arguments[0]}, {TRITON_TYPES[expr.dtype]})"
        return f"{arguments[0]}.to({TRITON_TYPES[expr.dtype]})"

    def _load(self, expr: Expr, _: list[str]) -> str:
        text = f"tl.load(in{expr.value} + ({self.linear(expr)}), mask={self.mask}, other=0)"
        stored = self.inputs[expr.value].dtype
        if stored == "bool":
            return f"({text} != 0)"
        return f"{text}.to({TRITON_TYPES[expr.dtype]})" if stored != expr.dtype else text

    def _check_index(self, expr: Expr, arguments: list[str]) -> str:
        extent, wrap = expr.value
        at = f"tl.where({arguments[0]} < 0, {arguments[0]} + {extent}, {arguments[0]})" if wrap else arguments[0]
        name = f"{self._prefix}i{self._count}"
        self._count += 1
        self.lines.append(f"{name} = {at}")
        self.lines.append(
            f'tl.device_assert((({name} >= 0) & ({name} < {extent})) | ~({self.mask}), "index out of range")'
        )
        return name

    def _bucketize(self, expr: Expr, arguments: list[str]) -> str:
        which, count, right, step = expr.value
        return f"kv_bucketize(in{which} + {arguments[1]}, {step}, {count}, {(count - 1).bit_length()}, {arguments[0]}, {right})"


def literal(value: int | float | bool, dtype: str) -> str:
    """A Triton literal; integers beyond 32 bits keep their width by themselves."""
    if isinstance(value, float) and not math.isfinite(value):
        return f"float('{value}')"
    if dtype in INTEGERS or dtype == "bool":
        return repr(value) if value >= 0 else f"({value!r})"
    return repr(float(value)) if value >= 0 else f"({float(value)!r})"
