"""Expressions as C++ statements that a compiler can vectorise, and the helpers they call."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from ...graph.dims import Dim
from ...graph.region import TensorSpec
from .expression import Expr
from .operators import OPERATORS
from .printer import Printer

CPP_TYPES = {
    "float32": "float", "float64": "double", "int64": "int64_t", "int32": "int32_t", "int16": "int16_t",
    "int8": "int8_t", "uint8": "uint8_t", "bool": "bool",
}  # fmt: skip
# How a tensor's memory is typed: 16-bit floats travel as bit patterns, bool as one byte.
CPP_STORAGE = {**CPP_TYPES, "bool": "uint8_t", "bfloat16": "uint16_t", "float16": "uint16_t"}

# Exponential: range reduction by log 2 in two parts (Cody & Waite) and the degree-6 minimax polynomial of Cephes' expf;
# logarithm: Cephes' logf. Both within 1-2 ulp and free of branches and calls, so that loops over them vectorise.
CPP_PRELUDE = r"""
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
// Lanes of a vector of T, at most L. Of vectors longer than a register the compiler makes copies through memory.
template <typename T, int L> static constexpr int kv_lanes() {
  constexpr int most = __BIGGEST_ALIGNMENT__ / int(sizeof(T));
  return L < most ? L : most;
}
static inline float kv_from_bf16(uint16_t x) { return std::bit_cast<float>(uint32_t(x) << 16); }
static inline uint16_t kv_to_bf16(float x) {
  uint32_t u = std::bit_cast<uint32_t>(x);
  uint32_t r = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
  return x != x ? uint16_t((u >> 16) | 0x40u) : uint16_t(r);
}
// By bits: of a converted _Float16 the compiler makes comparisons of halves, which are calls into its runtime.
static inline float kv_from_fp16(uint16_t x) {
  uint32_t m = x & 0x7fffu;
  float scaled = std::bit_cast<float>(m << 13) * 0x1p112f;
  uint32_t u = m >= 0x7c00u ? 0x7f800000u | (m << 13) : std::bit_cast<uint32_t>(scaled);
  return std::bit_cast<float>(u | (uint32_t(x & 0x8000u) << 16));
}
static inline uint16_t kv_to_fp16(float x) { return std::bit_cast<uint16_t>((_Float16)x); }
static inline float kv_round_bf16(float x) { return kv_from_bf16(kv_to_bf16(x)); }
static inline float kv_round_fp16(float x) { return kv_from_fp16(kv_to_fp16(x)); }
template <typename T> static inline T kv_abs(T x) { return x < T(0) ? T(-x) : (x == T(0) ? T(0) : x); }
template <typename T> static inline T kv_sign(T x) { return T((x > T(0)) - (x < T(0))); }
template <typename T> static inline T kv_max(T a, T b) { return (a > b || a != a) ? a : b; }
template <typename T> static inline T kv_min(T a, T b) { return (a < b || a != a) ? a : b; }
template <typename T> static inline T kv_relu(T x) { return x < T(0) ? T(0) : x; }
template <typename T> static inline bool kv_isinf(T x) { return (x < 0 ? -x : x) == std::numeric_limits<T>::infinity(); }
template <typename T> static inline T kv_not(T x) { return T(~x); }
static inline bool kv_not(bool x) { return !x; }
static inline bool kv_max(bool a, bool b) { return a | b; }
static inline bool kv_min(bool a, bool b) { return a & b; }
template <typename T> static inline T kv_shl(T a, T b) { return (b < 0 || b >= T(8 * sizeof(T))) ? T(0) : T(a << b); }
template <typename T> static inline T kv_shr(T a, T b) {
  T top = T(8 * sizeof(T) - 1);
  return T(a >> ((b < 0 || b > top) ? top : b));
}
template <typename T> static inline T kv_remainder(T a, T b) {
  T r = a % b;
  return (r != 0 && ((r < 0) != (b < 0))) ? T(r + b) : r;
}
static inline float kv_remainder(float a, float b) {
  float r = std::fmod(a, b);
  return (r != 0 && ((r < 0) != (b < 0))) ? r + b : r;
}
static inline double kv_remainder(double a, double b) {
  double r = std::fmod(a, b);
  return (r != 0 && ((r < 0) != (b < 0))) ? r + b : r;
}
template <typename T> static inline T kv_fmod(T a, T b) { return T(a % b); }
static inline float kv_fmod(float a, float b) { return std::fmod(a, b); }
static inline double kv_fmod(double a, double b) { return std::fmod(a, b); }
template <typename T> static inline T kv_floordiv(T a, T b) {
  T q = a / b;
  return ((a % b != 0) && ((a < 0) != (b < 0))) ? T(q - 1) : q;
}
template <typename T> static inline T kv_floordiv_float(T a, T b) {
  if (b == 0) return a / b;
  T r = std::fmod(a, b), d = (a - r) / b;
  if (r != 0 && ((b < 0) != (r < 0))) d -= T(1);
  if (d == 0) return std::copysign(T(0), a / b);
  T f = std::floor(d);
  return d - f > T(0.5) ? f + T(1) : f;
}
static inline float kv_floordiv(float a, float b) { return kv_floordiv_float(a, b); }
static inline double kv_floordiv(double a, double b) { return kv_floordiv_float(a, b); }
template <typename T> static inline T kv_truncdiv(T a, T b) { return T(a / b); }
static inline float kv_truncdiv(float a, float b) { return std::trunc(a / b); }
static inline double kv_truncdiv(double a, double b) { return std::trunc(a / b); }
static inline float kv_exp(float x) {
  float c = x > 89.0f ? 89.0f : x;
  c = c < -104.5f ? -104.5f : c;
  float n = std::nearbyint(c * 1.44269504088896341f);
  float r = c - n * 0.693359375f;
  r = r + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  int32_t k = int32_t(n), h = k >> 1;
  float a = std::bit_cast<float>((h + 127) << 23), b = std::bit_cast<float>((k - h + 127) << 23);
  float y = p * a * b;
  return x != x ? x : y;
}
static inline double kv_exp(double x) { return std::exp(x); }
static inline float kv_log(float x) {
  bool tiny = x < 1.17549435e-38f;
  float s = tiny ? x * 8388608.0f : x;
  int32_t u = std::bit_cast<int32_t>(s);
  int32_t e = ((u >> 23) & 0xff) - 126 - (tiny ? 23 : 0);
  float m = std::bit_cast<float>((u & 0x007fffff) | 0x3f000000);
  bool low = m < 0.70710678f;
  float f = low ? m + m - 1.0f : m - 1.0f;
  float n = float(low ? e - 1 : e);
  float z = f * f;
  float p = 7.0376836292e-2f;
  p = p * f - 1.1514610310e-1f;
  p = p * f + 1.1676998740e-1f;
  p = p * f - 1.2420140846e-1f;
  p = p * f + 1.4249322787e-1f;
  p = p * f - 1.6668057665e-1f;
  p = p * f + 2.0000714765e-1f;
  p = p * f - 2.4999993993e-1f;
  p = p * f + 3.3333331174e-1f;
  float y = f * z * p + n * -2.12194440e-4f - 0.5f * z;
  y = f + y + n * 0.693359375f;
  y = x == 0.0f ? -std::numeric_limits<float>::infinity() : y;
  y = x == std::numeric_limits<float>::infinity() ? x : y;
  return x < 0.0f || x != x ? std::numeric_limits<float>::quiet_NaN() : y;
}
static inline double kv_log(double x) { return std::log(x); }
// log(1 + x) with the rounding error of 1 + x put back (Goldberg 1991, theorem 4).
static inline float kv_log1p(float x) {
  float u = 1.0f + x;
  float y = kv_log(u) + (x - (u - 1.0f)) / u;
  return u == 0.0f || u == std::numeric_limits<float>::infinity() ? kv_log(u) : y;
}
static inline double kv_log1p(double x) { return std::log1p(x); }
static inline float kv_sigmoid(float x) {
  float z = kv_exp(x < 0.0f ? x : -x);
  float s = (x < 0.0f ? z : 1.0f) / (1.0f + z);
  return x != x ? x : s;
}
static inline double kv_sigmoid(double x) { return 1.0 / (1.0 + std::exp(-x)); }
// Cephes (Moshier 1989): an odd polynomial near 0, beyond it by an exponential; 1.3 units in the last place.
static inline float kv_tanh(float x) {
  float a = x < 0.0f ? -x : x, z = x * x;
  float p = -5.70498872745e-3f;
  p = p * z + 2.06390887954e-2f;
  p = p * z - 5.37397155531e-2f;
  p = p * z + 1.33314422036e-1f;
  p = p * z - 3.33332819422e-1f;
  p = p * z * x + x;
  float far = 1.0f - 2.0f / (kv_exp(a + a) + 1.0f);
  far = x < 0.0f ? -far : far;
  return a < 0.625f ? p : far;
}
static inline double kv_tanh(double x) { return std::tanh(x); }
static inline int64_t kv_index(int64_t at, int64_t extent, bool wrap, int64_t& bad) {
  int64_t i = at + ((wrap && at < 0) ? extent : 0);
  bool ok = uint64_t(i) < uint64_t(extent);
  bad |= int64_t(!ok);
  // Masked: a selection on the same condition would be split into a path of its own, which no longer vectorises.
  return i & -int64_t(ok);
}
static inline int64_t kv_within(int64_t at, int64_t extent) {
  int64_t top = extent - 1;
  int64_t i = at > top ? top : at;
  return i < 0 ? 0 : i;
}
// Integer division by zero raises in eager; the kernel goes on with 1 and reports it.
template <typename T> static inline T kv_divisor(T x, int64_t& bad) {
  T zero = T(x == 0);
  bad |= int64_t(zero);
  return T(x + zero);
}
// Branch-free binary search: the number of borders below the value (at or below it for `right`), eager's NaN last.
template <typename T, typename Border> static inline int64_t kv_bucketize(int64_t count, T value, bool right, Border border_at) {
  int64_t low = 0;
  for (int64_t length = count; length > 1;) {
    int64_t half = length >> 1;
    T border = border_at(low + half - 1);
    low += (right ? !(border > value) : !(border >= value)) ? half : 0;
    length -= half;
  }
  T last = border_at(low);
  return low + int64_t(right ? !(last > value) : !(last >= value));
}
"""


class CppPrinter(Printer):
    """C++ spelling. ``bad`` (an ``int64_t``) must be in scope where expressions check indices."""

    def nested(self) -> CppPrinter:
        inner = CppPrinter(self.inputs)
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
        self.lines.append(f"const {CPP_TYPES[dtype]} {name} = {text};")

    def template(self, op: str) -> str:
        return OPERATORS[op].cpp

    def specials(self) -> dict[str, Callable[[Expr, list[str]], str]]:
        return {
            "load": self._load,
            "cast": lambda e, a: f"({a[0]} != 0)" if e.dtype == "bool" else f"({CPP_TYPES[e.dtype]})({a[0]})",
            "round": lambda e, a: f"{'kv_round_bf16' if e.value == 'bfloat16' else 'kv_round_fp16'}({a[0]})",
            "as_value": lambda e, a: a[0],
            "within": lambda e, a: f"kv_within({a[0]}, {_dim(e.value[0])})",
            "check_index": lambda e, a: f"kv_index({a[0]}, {_dim(e.value[0])}, {str(e.value[1]).lower()}, bad)",
            "check_divisor": lambda e, a: f"kv_divisor({a[0]}, bad)",
            "bucketize": self._bucketize,
        }

    def _load(self, expr: Expr, _: list[str]) -> str:
        return from_storage(f"in{expr.value}[{self.linear(expr)}]", self.inputs[expr.value].dtype)

    def _bucketize(self, expr: Expr, arguments: list[str]) -> str:
        which, count, right, step = expr.value
        kind = CPP_TYPES[expr.args[0].dtype]
        border = from_storage(f"in{which}[{arguments[1]} + k * {step}]", self.inputs[which].dtype)
        at = f"[&](int64_t k) {{ return {kind}({border}); }}"
        return f"kv_bucketize<{kind}>({count}, {arguments[0]}, {str(right).lower()}, {at})"


def _dim(dim: Dim) -> str:
    return f"int64_t({dim})"


def literal(value: int | float | bool, dtype: str) -> str:
    """A C++ literal of exactly this value and type."""
    kind = CPP_TYPES[dtype]
    if dtype == "bool":
        return "true" if value else "false"
    if dtype in ("float32", "float64"):
        if math.isnan(value):
            return f"std::numeric_limits<{kind}>::quiet_NaN()"
        if math.isinf(value):
            return f"{'-' if value < 0 else ''}std::numeric_limits<{kind}>::infinity()"
        return f"{kind}({float(value).hex()})"
    if value == -(2**63):
        return "std::numeric_limits<int64_t>::min()"
    return f"{kind}({int(value)})" if abs(int(value)) < 2**31 else f"{kind}({int(value)}LL)"


def from_storage(text: str, dtype: str) -> str:
    """A memory element of ``dtype`` as its compute type."""
    if dtype == "bfloat16":
        return f"kv_from_bf16({text})"
    if dtype == "float16":
        return f"kv_from_fp16({text})"
    return f"({text} != 0)" if dtype == "bool" else text


def to_storage(text: str, dtype: str) -> str:
    """A compute value as a memory element of ``dtype``."""
    if dtype == "bfloat16":
        return f"kv_to_bf16({text})"
    if dtype == "float16":
        return f"kv_to_fp16({text})"
    return f"({CPP_STORAGE[dtype]})({text})"


def signature(
    function: str, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], symbols: Sequence[str]
) -> str:
    """The entry function's declaration: inputs ``in<k>``, outputs ``out<k>``, then one ``int64_t`` per symbol."""
    parameters = [f"const {CPP_STORAGE[s.dtype]}* __restrict in{k}" for k, s in enumerate(inputs)]
    parameters += [f"{CPP_STORAGE[s.dtype]}* __restrict out{k}" for k, s in enumerate(outputs)]
    parameters += [f"int64_t {name}" for name in symbols]
    return f'extern "C" int64_t {function}({", ".join(parameters)})'
