"""Expressions mean what eager computes, in C++ and in Triton (interpreted), for every operator and awkward value."""

from __future__ import annotations

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from kevolve_inductor.graph.capture import capture
from kevolve_inductor.graph.meta import shape_of, spec_of, tensor_of
from kevolve_inductor.kernel import Argument, Kernel, Launch
from kevolve_inductor.platforms.cpu import CpuPlatform
from kevolve_inductor.synthesis.expression import CPP_PRELUDE, CppPrinter, ExpressionBuilder, writes_one_place
from kevolve_inductor.synthesis.expression import expression as ex
from kevolve_inductor.synthesis.expression.cpp import signature, to_storage

SPECIAL = [0.0, -0.0, 1.0, -1.0, 0.5, -2.5, 3.7, 88.0, -88.0, 120.0, 1e-40, 1e30, -1e30, float("inf"), float("-inf"),
           float("nan")]  # fmt: skip

FLOAT_OPS = [
    lambda x, y: x + y, lambda x, y: x - y, lambda x, y: x * y, lambda x, y: x / y, lambda x, y: x + 2 * y,
    lambda x, y: torch.add(x, y, alpha=3), lambda x, y: torch.rsub(x, 2.5), lambda x, y: -x, lambda x, y: x.abs(),
    lambda x, y: x.sign(), lambda x, y: torch.maximum(x, y), lambda x, y: torch.minimum(x, y), lambda x, y: x.relu(),
    lambda x, y: x.exp(), lambda x, y: x.abs().log(), lambda x, y: x.log(), lambda x, y: x.abs().sqrt(),
    lambda x, y: x.abs().rsqrt(), lambda x, y: x.reciprocal(), lambda x, y: x.sigmoid(), lambda x, y: x.tanh(),
    lambda x, y: x.erf(), lambda x, y: x.sin(), lambda x, y: x.log1p(), lambda x, y: x.expm1(), lambda x, y: x.floor(),
    lambda x, y: x.ceil(), lambda x, y: x.trunc(), lambda x, y: x.round(), lambda x, y: x == y, lambda x, y: x < y,
    lambda x, y: x >= 0.5, lambda x, y: torch.where(x > y, x, 0.25), lambda x, y: x.clamp(-1, 2),
    lambda x, y: x.clamp(min=0), lambda x, y: x.clamp(max=0.5), lambda x, y: x**2, lambda x, y: x**3,
    lambda x, y: x.abs() ** 1.7, lambda x, y: x % 3, lambda x, y: x % -3, lambda x, y: torch.fmod(x, 3),
    lambda x, y: torch.floor_divide(x, 3), lambda x, y: torch.div(x, 3, rounding_mode="trunc"), lambda x, y: x.isnan(),
    lambda x, y: x.isinf(), lambda x, y: x.to(torch.bfloat16), lambda x, y: x.to(torch.float16).to(torch.float32) + 1,
    lambda x, y: x.double() * 2, lambda x, y: torch.nn.functional.silu(x), lambda x, y: x.masked_fill(y > 0, -7.0),
    lambda x, y: torch.nn.functional.leaky_relu(x, 0.1), lambda x, y: torch.zeros_like(x) + 1.5,
    lambda x, y: torch.addcmul(x, y, y), lambda x, y: torch.addcmul(x, x, y, value=-0.5),
    lambda x, y: torch.addcdiv(y, x, y, value=3),
]  # fmt: skip
INTEGER_OPS = [
    lambda a, b: a + b, lambda a, b: a * 2654435761, lambda a, b: a - b, lambda a, b: a % 1000, lambda a, b: a % -7,
    lambda a, b: torch.fmod(a, 7), lambda a, b: a // 7, lambda a, b: torch.div(a, -7, rounding_mode="trunc"),
    lambda a, b: a ^ b, lambda a, b: a & b, lambda a, b: a | 5, lambda a, b: ~a, lambda a, b: a >> 3, lambda a, b: a << 5,
    lambda a, b: a.abs(), lambda a, b: a.sign(), lambda a, b: torch.maximum(a, b), lambda a, b: a.clamp(-3, 3),
    lambda a, b: a == b, lambda a, b: (a > b) & (b > 0), lambda a, b: (a > b) ^ (b > 0), lambda a, b: ~(a > b),
    lambda a, b: a.to(torch.int32), lambda a, b: a.to(torch.uint8), lambda a, b: a.float() / 3, lambda a, b: a / b,
    lambda a, b: torch.arange(a.shape[0]) * 3 + a, lambda a, b: a.bool(), lambda a, b: (a * 40503) >> 16,
]  # fmt: skip


def kernel_of(functions, inputs):
    """One C++ kernel with one output per function, and the graph's region."""
    gm = make_fx(lambda *args: [f(*args) for f in functions], tracing_mode="fake")(*inputs)
    outputs = next(iter(gm.graph.find_nodes(op="output"))).args[0]
    builder = ExpressionBuilder("cpu", lambda node: node.op == "call_function")
    at = tuple(ex.var(f"x{d}", n) for d, n in enumerate(shape_of(outputs[0])))
    expressions = [builder.build(node, at) for node in outputs]
    return builder, outputs, expressions, gm


def loops(shape, body):
    opening = [f"for (int64_t x{d} = 0; x{d} < {n}; x{d}++) {{" for d, n in enumerate(shape)]
    return "\n".join([*opening, *body, "}" * len(shape)])


def run_cpp(functions, inputs, tmp_path):
    builder, outputs, expressions, _ = kernel_of(functions, inputs)
    in_specs = [spec_of(tensor_of(node)) for node in builder.inputs]
    out_specs = [spec_of(tensor_of(node)) for node in outputs]
    printer = CppPrinter(in_specs)
    values = [printer.value(e) for e in expressions]
    stores = [
        f"out{k}[{' + '.join(f'x{d} * {s}' for d, s in enumerate(spec.stride))}] = {to_storage(v, spec.dtype)};"
        for k, (v, spec) in enumerate(zip(values, out_specs, strict=True))
    ]
    entry = signature("kevolve_kernel", in_specs, out_specs, ())
    body = loops(out_specs[0].shape, [*printer.lines, *stores])
    source = f"{CPP_PRELUDE}\n{entry} {{\nint64_t bad = 0;\n{body}\nreturn bad;\n}}"
    arguments = [Argument("input", k) for k in range(len(in_specs))] + [
        Argument("output", k) for k in range(len(outputs))
    ]
    kernel = Kernel("cpp", source, (Launch("kevolve_kernel", tuple(arguments)),))
    nodes = [n for n in outputs[0].graph.nodes if n.op == "call_function"]
    region = capture(nodes, builder.inputs, outputs).region
    placeholders = outputs[0].graph.find_nodes(op="placeholder")
    tensors = [inputs[list(placeholders).index(node)] for node in builder.inputs]
    results = [torch.empty_strided(s.shape, s.stride, dtype=getattr(torch, s.dtype)) for s in out_specs]
    CpuPlatform().build(kernel, region, tmp_path).call(*tensors, *results)
    return results


def check(results, expected):
    for position, (got, want) in enumerate(zip(results, expected, strict=True)):
        assert got.dtype == want.dtype, position
        exact = not want.is_floating_point()
        tolerance = {"rtol": 0, "atol": 0} if exact else {"rtol": 2e-6, "atol": 1e-37}
        if want.dtype in (torch.bfloat16, torch.float16):
            tolerance = {"rtol": 1e-2, "atol": 1e-7}
        torch.testing.assert_close(got, want, equal_nan=True, **tolerance, msg=lambda m, p=position: f"op {p}: {m}")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_float_operators_match_eager(dtype, tmp_path):
    grid = torch.tensor(SPECIAL, dtype=dtype)
    x, y = grid.repeat_interleave(len(SPECIAL)), grid.repeat(len(SPECIAL))
    x, y = torch.cat([x, torch.randn(300, dtype=dtype)]), torch.cat([y, torch.randn(300, dtype=dtype)])
    check(run_cpp(FLOAT_OPS, (x, y), tmp_path), [f(x, y) for f in FLOAT_OPS])


def test_tanh_is_as_exact_as_a_library_is(tmp_path):
    x = torch.cat([torch.linspace(-12, 12, 100_001), torch.logspace(-40, 1, 20_000), torch.tensor(SPECIAL)])
    (result,) = run_cpp([lambda x: x.tanh()], [x], tmp_path)
    exact = x.double().tanh()
    unit = 2.0 ** (exact.float().abs().clamp(min=2**-126).log2().floor().double() - 23)
    error = (result.double() - exact).abs() / unit
    assert float(error[~exact.isnan()].max()) < 2 and torch.equal(result.isnan(), exact.isnan())


def test_low_precision_rounds_where_eager_rounds(tmp_path):
    functions = [lambda x, y: x * y + x, lambda x, y: (x + y).float(), lambda x, y: x / 3 - y, lambda x, y: x.exp() * y]
    for dtype in (torch.bfloat16, torch.float16):
        x, y = torch.randn(200, dtype=dtype), torch.randn(200, dtype=dtype)
        results = run_cpp(functions, (x, y), tmp_path)
        for got, want in zip(results[:3], [f(x, y) for f in functions][:3], strict=True):
            assert torch.equal(got, want)


def test_integer_operators_match_eager(tmp_path):
    a = torch.randint(-(2**62), 2**62, (500,))
    a[:40] = torch.arange(-20, 20)
    b = torch.randint(1, 2**31, (500,))
    b[:40] = torch.arange(40) % 7 - 9
    check(run_cpp(INTEGER_OPS, (a, b), tmp_path), [f(a, b) for f in INTEGER_OPS])


def test_views_and_indexed_reads_match_eager(tmp_path):
    x = torch.randn(6, 8, 10).transpose(0, 2)
    table, ids = torch.randn(7, 4), torch.randint(0, 7, (10, 2))
    picks = torch.tensor([3, -1, 0])
    groups = [
        [lambda x, *_: x.reshape(10, 48), lambda x, *_: x.contiguous().view(20, 24).reshape(10, 48) * 2,
         lambda x, *_: torch.cat([x[:, :2].reshape(10, 12), x.reshape(10, 48)[:, 12:]], 1),
         lambda x, *_: torch.nn.functional.pad(x.reshape(10, 48)[1:, :40], (3, 5, 1, 0), value=2.0)],
        [lambda x, table, ids, picks: torch.nn.functional.embedding(ids, table),
         lambda x, table, ids, picks: table[ids] + x[:, :2, :4]],
        [lambda x, table, ids, picks: x[:, picks, 2], lambda x, table, ids, picks: x[:, :, 1].gather(1, ids[:, :1].expand(10, 3)),
         lambda x, table, ids, picks: x.index_select(2, picks.abs())[:, 1]],
    ]  # fmt: skip
    for functions in groups:
        inputs = (x, table, ids, picks)
        check(run_cpp(functions, inputs, tmp_path), [f(*inputs) for f in functions])


ONE_PLACE = [
    lambda x, at, picked: torch.zeros_like(x).scatter_add(1, at[:, None], picked[:, None]),
    lambda x, at, picked: x.scatter_add(-1, at[:, None], picked[:, None] * 2),
    lambda x, at, picked: x.scatter(1, at[:, None], picked[:, None]),
    lambda x, at, picked: torch.ones_like(x).scatter(1, at[:, None], 0.5),
    lambda x, at, picked: torch.zeros_like(x).index_put((torch.arange(9), at - 11), picked, accumulate=True),
    lambda x, at, picked: x.t().index_put((at, torch.arange(9)), picked, accumulate=True).t(),
    lambda x, at, picked: x.index_put((torch.arange(9), at), picked),
    lambda x, at, picked: torch.select_scatter(x, picked, 1, -2),
    lambda x, at, picked: torch.select_scatter(picked[:, None], picked * 3, 1, 0).expand(9, 11),
]  # fmt: skip


def test_writes_of_one_place_in_each_row_match_eager(tmp_path):
    at = torch.tensor([3, 0, 8, 8, 1, 7, 2, 5, 0])
    inputs = (torch.randn(9, 11), at, torch.randn(9))
    check(run_cpp(ONE_PLACE, inputs, tmp_path), [f(*inputs) for f in ONE_PLACE])


def test_writes_of_one_place_in_each_row_of_sequences_match_eager(tmp_path):
    x, at, picked = torch.randn(2, 5, 7), torch.randint(7, (2, 5)), torch.randn(2, 5)

    def by_ranges(x, at, picked):
        return x.index_put((torch.arange(2)[:, None], torch.arange(5)[None], at), picked, accumulate=True)

    def in_the_middle(x, at, picked):
        return x.index_put((torch.arange(2), at[:, 0].clamp(max=4)), picked[:, :1].expand(2, 7))

    functions = [by_ranges, in_the_middle]
    check(run_cpp(functions, (x, at, picked), tmp_path), [f(x, at, picked) for f in functions])


@pytest.mark.parametrize(
    "function",
    [
        lambda x, at, picked: x.scatter_add(1, torch.stack([at, at], 1), torch.stack([picked, picked], 1)),
        lambda x, at, picked: x.scatter_add(1, at[:4, None], picked[:4, None]),
        lambda x, at, picked: x.scatter_reduce(1, at[:, None], picked[:, None], "amax"),
        lambda x, at, picked: x.index_put((at, at), picked, accumulate=True),
        lambda x, at, picked: x[:, :8].index_put((at, torch.arange(9) % 8), picked, accumulate=True),
        lambda x, at, picked: x.index_put((torch.arange(9) + 1, at), picked, accumulate=True),
        lambda x, at, picked: x.index_put((torch.arange(0, 9, 2), at[:5]), picked[:5], accumulate=True),
        lambda x, at, picked: x.index_put((at,), x, accumulate=True),
    ],
)
def test_writes_of_several_places_are_scatters(function):
    inputs = (torch.randn(9, 9), torch.randint(8, (9,)), torch.randn(9))
    graph = make_fx(function, tracing_mode="fake")(*inputs).graph
    scatters = [node for node in graph.nodes if "scatter" in str(node.target) or "index_put" in str(node.target)]
    assert len(scatters) == 1 and not writes_one_place(scatters[0])


def test_bucketize_matches_eager(tmp_path):
    borders = torch.tensor([-1.0, -0.5, 0.0, 0.0, 0.5, 2.0])
    x = torch.tensor([*SPECIAL, *borders.tolist(), 0.49, 5.0])
    functions = [
        lambda x, b: torch.bucketize(x, b), lambda x, b: torch.bucketize(x, b, right=True),
        lambda x, b: torch.searchsorted(b, x) * 10,
    ]  # fmt: skip
    check(run_cpp(functions, (x, borders), tmp_path), [f(x, borders) for f in functions])


def test_divisions_of_indices_fold_away():
    x0, x1 = ex.var("x0", 4), ex.var("x1", 6)
    linear = ex.iadd(ex.imul(x0, ex.index(6)), x1)
    assert ex.idivmod(linear, 6) == (x0, x1)
    quotient, rest = ex.idivmod(ex.iadd(ex.imul(x0, ex.index(12)), x1), 6)
    assert quotient is ex.imul(x0, ex.index(2)) and rest is x1
    assert ex.upper_bound(linear) == 24


def test_equal_structure_is_the_same_object():
    assert ex.iadd(ex.var("x", 3), ex.index(1)) is ex.iadd(ex.var("x", 3), ex.index(1))
    assert ex.const(1, "int64") is not ex.const(True, "bool")


def test_what_is_rounded_is_not_rounded_again():
    value, condition = ex.var("x", dtype="float32"), ex.var("c", dtype="bool")
    rounded = ex.cast(value, "bfloat16")
    for same in (rounded, ex.make("neg", "float32", (rounded,)), ex.const(0.5, "float32"),
                 ex.make("where", "float32", (condition, rounded, ex.const(0.0, "float32")))):  # fmt: skip
        assert ex.cast(same, "bfloat16") == same
    for other in (ex.make("add", "float32", (rounded, rounded)), ex.const(0.1, "float32"), ex.cast(value, "float16"),
                  ex.make("where", "float32", (condition, rounded, value))):  # fmt: skip
        assert ex.cast(other, "bfloat16") != other
