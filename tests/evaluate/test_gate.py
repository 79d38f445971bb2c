from __future__ import annotations

import pytest

from kevolve_inductor.evaluate.gate import check_kernel, check_triton
from kevolve_inductor.evaluate.gate_cpp import check_cpp
from kevolve_inductor.exc import GateError
from kevolve_inductor.kernel import Kernel, Launch
from kevolve_inductor.synthesis.expression.cpp import CPP_PRELUDE
from kevolve_inductor.synthesis.expression.triton import TRITON_PRELUDE
from kevolve_inductor.testing.evaluators import ROW_SUM_SOURCE

TRITON = '''
@triton.jit
def helper(value, factor: tl.constexpr = 2.0):
    """A pair."""
    return tl.where(value > 0, value, 0.0).to(tl.float32) * factor, libdevice.tanh(value)

@triton.jit
def kernel(x, out, n, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float32)
    bits: tl.constexpr = x.dtype.element_ty.primitive_bitwidth
    for step in tl.static_range(0, 4):
        left, right = helper(tl.load(x + at + step, mask=at < n, other=float("-inf")), 3.0)
        total += left if step == 0 else right
    while n > 1:
        n = n // 2
    if n == 0 and bits == 32:
        total = tl.sum(total[:, None] + total[None, :], 1)
    tl.store(out + at, tl.math.sqrt(total), mask=at < n)
'''


def test_ordinary_triton_passes():
    check_triton(TRITON)
    check_triton(TRITON_PRELUDE)


@pytest.mark.parametrize(
    ("construct", "line"),
    [
        ("import os", 1),
        ("from os import system", 1),
        ("x = 1", 1),
        ("open('/etc/passwd')", 1),
        ("class A: pass", 1),
        ("def f(x): return x", 1),
        ("@other.jit\ndef f(x): return x", 2),
        ("@triton.jit\n@extra\ndef f(x): return x", 3),
        ("@triton.jit\ndef f(*x): return 1", 2),
        ("@triton.jit\ndef f(x=open('a')): return x", 2),
        ("@triton.jit\ndef f(x):\n    import os", 3),
        ("@triton.jit\ndef f(x):\n    return eval(x)", 3),
        ("@triton.jit\ndef f(x):\n    return x.__class__", 3),
        ("@triton.jit\ndef f(x):\n    return x.data.ptr", 3),
        ("@triton.jit\ndef f(x):\n    return tl.inline_asm_elementwise(x)", 3),
        ("@triton.jit\ndef f(x):\n    return tl.extra.cuda.libdevice.abs(x)", 3),
        ("@triton.jit\ndef f(x):\n    return tl.core.builtin(x)", 3),
        ("@triton.jit\ndef f(x):\n    tl = x", 3),
        ("@triton.jit\ndef f(x):\n    return [y for y in x]", 3),
        ("@triton.jit\ndef f(x):\n    return (lambda y: y)(x)", 3),
        ("@triton.jit\ndef f(x):\n    return x[0](1)", 3),
        ("@triton.jit\ndef f(x):\n    g = tl.load\n    return g(x)", 4),
        ("@triton.jit\ndef f(x):\n    with x: pass", 3),
        ("@triton.jit\ndef f(x):\n    global y", 3),
        ("@triton.jit\ndef f(x):\n    return f'{x}'", 3),
        ("@triton.jit\ndef f(x):\n    return unknown", 3),
        ("@triton.jit\ndef f(x):\n    return triton.cdiv(x, 2)", 3),
        ("def f(", 1),
    ],
)
def test_everything_else_is_refused(construct, line):
    with pytest.raises(GateError) as caught:
        check_triton(construct)
    assert caught.value.line == line


CPP = """
#include <cmath>
#include <cstdint>
#include <immintrin.h>
// system("a comment is no code")
namespace { constexpr int64_t LANES = 16; }
template <typename T> static inline T twice(T x) { return x + x; }
struct Best { float value; int64_t at; };
static inline float total(__m512 v) { return _mm512_reduce_add_ps(v); }
extern "C" int64_t kernel(const float* __restrict in, float* __restrict out, int64_t n) {
  static const float table[4] = {1, 2, 3, 4};
  int64_t bad = 0;
#pragma omp parallel for schedule(static) reduction(| : bad)
  for (int64_t i = 0; i < n; i += LANES) {
    alignas(64) float scratch[16];
    auto weight = [&](int64_t k) { return table[k & 3] * std::exp(in[i + k]); };
    Best best{weight(0), 0};
    float first(in[i]);
    if (__builtin_expect(n < 3, 0)) scratch[0] = float(twice(i)) + first;
    _mm512_storeu_ps(scratch, _mm512_set1_ps(std::fmax(best.value, sqrtf(2.0f))));
    out[i] = total(_mm512_loadu_ps(scratch)) + float(int64_t(best.at));
    bad |= (n - i) * (1 + 2) < 0 ? 1 : 0;
  }
  return bad;
}
"""


def test_ordinary_cpp_passes():
    check_cpp(CPP, ["kernel"])
    check_cpp(CPP_PRELUDE, [])
    check_cpp(ROW_SUM_SOURCE, ["row_sum"])


@pytest.mark.parametrize(
    "construct",
    [
        "#include <cstdlib>",
        "#include <fstream>",
        '#include "secret.h"',
        "#define A B",
        "#include_next <cstdint>",
        "#pragma GCC poison x",
        "%:include <cstdlib>",
        "int counter;",
        "namespace deep { int counter; }",
        "static float cache[4] = {1};",
        "int system(const char*);",
        'extern "C" int64_t other(int64_t x) { return x; }',
        "extern int environ_;",
        'void f() { asm("nop"); }',
        'void f() { __asm__("nop"); }',
        'void f() { std::system("ls"); }',
        "void f() { ::abs(1); }",
        'void f() { sys\\\ntem("ls"); }',
        'void f() { R"(x)"; }',
        "void f() { getpid(); }",
        "int getppid(); void f() { getppid(); }",
        "void f() { int (*p)() = 0; }",
        "void f() { ((int (*)())0)(); }",
        "void f() { static int calls = 0; calls++; }",
        "void f() { thread_local int calls = 0; }",
        "void f() { float* x = new float[3]; }",
        "void f() { throw 1; }",
        "void f() { __builtin_return_address(0); }",
        "void f() { std::thread t; }",
        "__attribute__((constructor)) static void f() {}",
        "using namespace std;",
        "void f() { omp_set_num_threads(64); }",
        "void f() { kvb_pointer(nullptr); }",
        "void f() { PyErr_Clear(); }",
        "void f() { int ünicode; }",
    ],
)
def test_everything_else_is_refused_in_cpp(construct):
    with pytest.raises(GateError):
        check_cpp(construct, ["kernel"])


def test_the_line_is_named():
    with pytest.raises(GateError) as caught:
        check_cpp('int64_t f() {\n  // fine\n  /* two\n lines */ return system("x");\n}', [])
    assert caught.value.line == 4
    assert "system" in str(caught.value)


def test_other_languages_are_refused():
    with pytest.raises(GateError, match="aten"):
        check_kernel(Kernel("aten", "topk", (Launch("topk", ()),)))
