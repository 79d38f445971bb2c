"""Integer remainders without a division: rewritten expressions, and the helpers they print as.

Exact for every 64-bit dividend: by floating-point reciprocal with corrections, which vectorises on CPUs and takes divisors
that only the data tell, or by multiplication with a scaled reciprocal (Granlund & Montgomery 1994) on GPUs, for constant
divisors and for those that many dividends share.
"""

from __future__ import annotations

from collections.abc import Callable, Container
from typing import Literal

from . import expression as ex
from .expression import Expr

Method = Literal["native", "reciprocal", "multiply"]

# Both need a divisor that is exact in a double, with room for the corrections.
_LARGEST = 2**52

CPP_REMAINDER = r"""
// a - floor(a / d) * d for 1 < d < 2^52, exact for all a: the quotient's error after the first step is below
// 2^63 / d * 2^-51 + 1, after the second at most one.
static inline int64_t kv_mod(int64_t a, int64_t d) {
  double inverse = 1.0 / double(d);
  int64_t r = a - int64_t(double(a) * inverse) * d;
  r -= int64_t(double(r) * inverse) * d;
  r += r < 0 ? d : 0;
  r -= d;
  return r + (r < 0 ? d : 0);
}
// The same for any divisor but 0, in unsigned arithmetic: a divisor beyond 2^52 makes quotients so small that one step is exact.
static inline int64_t kv_mod_any(int64_t a, int64_t d) {
  uint64_t size = d < 0 ? 0 - uint64_t(d) : uint64_t(d);
  double inverse = 1.0 / double(size);
  uint64_t r = uint64_t(a) - uint64_t(int64_t(double(a) * inverse)) * size;
  r -= uint64_t(int64_t(double(int64_t(r)) * inverse)) * size;
  r += int64_t(r) < 0 ? size : 0;
  r -= r >= size ? size : 0;
  return int64_t(r - (d < 0 && r != 0 ? size : 0));
}
"""

TRITON_REMAINDER = """
@triton.jit
def kv_mod(a, d, magic, shift, signed: tl.constexpr):
    factor = (tl.zeros([1], tl.int64) + magic).to(tl.uint64)
    if signed:
        sign = a >> 63
        q = (tl.umulhi((a ^ sign).to(tl.uint64), factor).to(tl.int64) >> shift) ^ sign
    else:
        q = tl.umulhi(a.to(tl.uint64), factor).to(tl.int64) >> shift
    return a - q * d

@triton.jit
def kv_mod_any(a, d):
    # As on CPUs: any divisor but 0. Where a product leaves 64 bits it comes back, since all of it is modulo 2^64.
    size = tl.where(d < 0, -d, d).to(tl.uint64)
    # A division of doubles takes as long as all of the rest. One step of Newton's leaves an error of 2^-43 of the inverse, and
    # the first quotient one of 2^63 / size * 2^-43 + 1, small enough for the second to be off by one at most.
    wide = size.to(tl.float64)
    rough = (1.0 / wide.to(tl.float32)).to(tl.float64)
    inverse = rough * (2.0 - wide * rough)
    r = a.to(tl.uint64) - (a.to(tl.float64) * inverse).to(tl.int64).to(tl.uint64) * size
    r = r - (r.to(tl.int64).to(tl.float64) * inverse).to(tl.int64).to(tl.uint64) * size
    r = tl.where(r.to(tl.int64) < 0, r + size, r)
    r = tl.where(r >= size, r - size, r).to(tl.int64)
    return tl.where((d < 0) & (r != 0), r + d, r)

@triton.jit
def kv_inverse(d):
    # floor((2^64 - 1) / |d|), by a division that is worth it for many dividends. Of a divisor 0 no remainder is defined.
    size = tl.where(d < 0, -d, d).to(tl.uint64)
    size = tl.where(size == 0, size + 1, size)
    return (tl.full([1], -1, tl.int64).to(tl.uint64) // size).to(tl.int64)

@triton.jit
def kv_mod_by(a, d, inverse):
    # Any divisor but 0. With s = |d| and u < 2^63, u * inverse / 2^64 is less than u / s by one at most: the quotient is right
    # or one too small. Below zero ~a takes the place of a: if ~a = q s + r, then a = -(q + 1) s + (s - 1 - r).
    size = tl.where(d < 0, -d, d).to(tl.uint64)
    sign = a >> 63
    u = (a ^ sign).to(tl.uint64)
    r = u - tl.umulhi(u, inverse.to(tl.uint64)) * size
    r = tl.where(r >= size, r - size, r).to(tl.int64)
    r = (r ^ sign) + (size.to(tl.int64) & sign)
    return tl.where((d < 0) & (r != 0), r + d, r)
"""

# An operator beside those of expressions: what a divisor is turned into for ``quick_mod`` with value ``"by"``.
INVERSE = "inverse"


def triton_inverse(expr: Expr, arguments: list[str]) -> str:
    return f"kv_inverse({arguments[0]})"


def triton_remainder(expr: Expr, arguments: list[str]) -> str:
    """The call that a ``quick_mod`` is in Triton."""
    if expr.value == "by":
        return f"kv_mod_by({', '.join(arguments)})"
    if expr.value == "any":
        return f"kv_mod_any({', '.join(arguments)})"
    return f"kv_mod({', '.join(arguments)}, {expr.value == 'signed'})"


def is_integer_division(expr: Expr) -> bool:
    return expr.op in ("mod", "fmod", "floordiv", "truncdiv") and expr.dtype in ex.INTEGERS


def rewritten(expr: Expr, method: Method, shared: Container[str] | None = None) -> Expr:
    """``expr`` with its 64-bit remainders spelled for ``method``; those by a power of two become a mask.

    Divisors over no other variables than ``shared`` serve many dividends each; ``None``: none do, and nothing is prepared.
    """

    def multiply(a: Expr, d: Expr) -> Expr | None:
        if d.op != "const" and shared is not None and all(name in shared for name in ex.variables(d)):
            return ex.make("quick_mod", "int64", (a, d, ex.make(INVERSE, "int64", (d,))), "by")
        return _multiply(a, d)

    rules: dict[Method, Callable[[Expr, Expr], Expr | None]] = {
        "native": lambda a, d: None, "reciprocal": _reciprocal, "multiply": multiply,
    }  # fmt: skip

    def spelled(part: Expr) -> Expr | None:
        if part.op == "mod" or (part.op == "fmod" and _is_not_negative(part.args[0]) and _is_positive(part.args[1])):
            return _remainder(part.dtype, part.args[0], part.args[1], rules[method])
        return None

    return ex.rebuilt(expr, spelled)


def without_inverses(expr: Expr, shared: Container[str]) -> Expr:
    """``expr`` with the divisors over other variables than ``shared`` taken as they are."""

    def taken_as_it_is(part: Expr) -> Expr | None:
        if part.op != "quick_mod" or part.value != "by" or all(name in shared for name in ex.variables(part.args[1])):
            return None
        return ex.make("quick_mod", "int64", part.args[:2], "any")

    return ex.rebuilt(expr, taken_as_it_is)


def _remainder(dtype: str, a: Expr, d: Expr, rule: Callable[[Expr, Expr], Expr | None]) -> Expr | None:
    if dtype not in ex.INTEGERS:
        return None
    low, high = ex.lower_bound(a), ex.upper_bound(a)
    if _is_positive(d) and low is not None and low >= 0 and isinstance(high, int) and high <= 2 * d.value:
        past = ex.make("sub", dtype, (a, d))
        return a if high <= d.value else ex.make("where", dtype, (ex.make("lt", "bool", (a, d)), a, past))
    if _is_positive(d) and d.value & (d.value - 1) == 0:
        return ex.make("bitwise_and", dtype, (a, ex.const(d.value - 1, dtype)))
    return rule(a, d) if dtype == "int64" else None


def _reciprocal(a: Expr, d: Expr) -> Expr | None:
    if _is_positive(d) and d.value < _LARGEST:
        return ex.make("quick_mod", "int64", (a, d))
    return ex.make("quick_mod", "int64", (a, d), "any") if d.op != "const" else None


def _multiply(a: Expr, d: Expr) -> Expr | None:
    if d.op != "const":
        return ex.make("quick_mod", "int64", (a, d), "any")
    if not _is_positive(d) or d.value >= _LARGEST:
        return None
    # floor(n / d) = n * magic >> (63 + bits) for 0 <= n < 2^63, because d <= 2^bits.
    bits = (int(d.value) - 1).bit_length()
    magic = -(-(1 << (63 + bits)) // int(d.value))
    magic -= 2**64 if magic >= 2**63 else 0
    constants = (d, ex.const(magic, "int64"), ex.const(bits - 1, "int64"))
    return ex.make("quick_mod", "int64", (a, *constants), "plain" if _is_not_negative(a) else "signed")


def _is_positive(expr: Expr) -> bool:
    return expr.op == "const" and expr.dtype in ex.INTEGERS and expr.value > 0


def _is_not_negative(expr: Expr) -> bool:
    """Known without looking at data, wrap-around included."""
    if expr.op == "const":
        return expr.dtype in ex.INTEGERS and expr.value >= 0
    if expr.op == "bitwise_and":
        return any(_is_not_negative(argument) for argument in expr.args)
    if expr.op in ("rshift", "bitwise_xor", "bitwise_or", "minimum", "maximum"):
        return all(_is_not_negative(argument) for argument in expr.args)
    if expr.op == "as_value":
        low = ex.lower_bound(expr.args[0])
        return low is not None and low >= 0
    if expr.op == "cast":
        return expr.args[0].dtype in ("bool", "uint8") or (
            expr.dtype == "int64" and expr.args[0].dtype in ex.INTEGERS and _is_not_negative(expr.args[0])
        )
    if expr.op in ("add", "sub"):
        low, high = ex.lower_bound(expr), ex.upper_bound(expr)
        return low is not None and low >= 0 and isinstance(high, int) and high < 2**62
    return expr.op in ("search", "bucketize", "quick_mod")
