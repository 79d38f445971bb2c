"""Row reductions: softmax, normalisations and cross-entropy, forward and backward, with the gradients of weights."""

from __future__ import annotations

import ast
import copy
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.fx
from family_checks import (
    CPU,
    CUDA,
    Found,
    assert_same,
    assert_triton_agrees,
    build,
    empty_like,
    find,
    interpreted,
    kernel_of,
    region_of,
    run_cpp,
    schedules_of,
    values_of,
)
from torch import Tensor
from torch._inductor.compile_fx import _recursive_post_grad_passes, compile_fx
from torch.nn import functional

from kevolve_inductor.exc import EmissionError
from kevolve_inductor.graph.dims import evaluate
from kevolve_inductor.graph.reference import evaluate_with_other_means, to_graph_module
from kevolve_inductor.kernel import Kernel, Language
from kevolve_inductor.synthesis.families.rows import ReductionFamily, worth
from kevolve_inductor.synthesis.families.rows.program import RowProgram, deviation_pairs, online_pairs, passes
from kevolve_inductor.synthesis.families.rows.simplify import simplified
from kevolve_inductor.synthesis.families.rows.triton import pieces_of
from kevolve_inductor.synthesis.families.rows.triton_arithmetic import prepared
from kevolve_inductor.synthesis.families.rows.triton_seeds import RowFacts, choices_of, seeds_of
from kevolve_inductor.synthesis.family import Match, Schedule

FAMILY = ReductionFamily()


def graphs_of(function: Callable[..., Any], inputs: Sequence[Tensor]) -> list[Found]:
    """The forward and, if an input asks for it, the backward graph, as Inductor has them before it lowers them."""
    seen: list[Found] = []

    def keep(gm: torch.fx.GraphModule, _: Sequence[Any], **__: Any) -> Callable[[list[Any]], Any]:
        _recursive_post_grad_passes(gm, is_inference=False)
        graph = copy.deepcopy(gm.graph)

        def run(arguments: list[Any]) -> Any:
            values = list(arguments)
            names = [node.name for node in graph.find_nodes(op="placeholder")]
            seen.append(Found(graph, [], dict(zip(names, values, strict=True))))
            return gm(*values)

        run._boxed_call = True  # type: ignore[attr-defined]
        return run

    torch._dynamo.reset()
    backend = lambda gm, examples: compile_fx(gm, examples, inner_compile=keep)  # noqa: E731
    result = torch.compile(function, backend=backend, dynamic=False)(*inputs)
    results = [one for one in (result if isinstance(result, tuple) else (result,)) if one.requires_grad]
    if results:
        torch.manual_seed(1)
        torch.autograd.grad(
            results, [one for one in inputs if one.requires_grad], [torch.randn_like(r) for r in results]
        )
    return seen


def on_gpu(found: Found) -> Found:
    """What is found where there is a GPU. The device is ``meta``: all that the rules ask is whether it is the CPU."""
    graph = copy.deepcopy(found.graph)
    for node in graph.nodes:
        value = node.meta.get("val")
        if isinstance(value, Tensor):
            node.meta["val"] = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")
        elif isinstance(value, tuple):
            node.meta["val"] = tuple(torch.empty_like(part, device="meta") for part in value)
    return Found(graph, list(FAMILY.find(graph, "meta")), found.examples)


def normal(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, dtype=dtype).requires_grad_()


def turned(*shape: int) -> Tensor:
    """Of which columns lie one behind another in memory."""
    return torch.randn(shape[::-1]).t().requires_grad_()


def classes(count: int, of: int) -> Tensor:
    chosen = torch.randint(0, of, (count,))
    chosen[1] = -100
    return chosen


# --- spellings -------------------------------------------------------------------------------------------------------


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return functional.layer_norm(x, x.shape[-1:], weight, bias)


def rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    return functional.rms_norm(x, x.shape[-1:], weight)


def residual_norm(x: Tensor, more: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    total = x + more
    return total, functional.silu(functional.rms_norm(total.float(), x.shape[-1:], weight).to(x.dtype))


def group_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return functional.silu(functional.group_norm(x, 2, weight, bias))


def smoothed(logits: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    return functional.cross_entropy(logits, target, weight, label_smoothing=0.1)


def evenly_smoothed(logits: Tensor, target: Tensor) -> Tensor:
    return functional.cross_entropy(logits.float(), target, label_smoothing=0.1)


def with_z_loss(logits: Tensor, target: Tensor) -> Tensor:
    z = torch.logsumexp(logits.float(), -1)
    return functional.cross_entropy(logits.float(), target) + 1e-3 * z.square().mean()


def scaled_softmax(x: Tensor) -> Tensor:
    return torch.softmax(x * 0.125, -1)


def unit_length(x: Tensor) -> Tensor:
    return x / x.norm(dim=-1, keepdim=True)


@dataclass(frozen=True)
class Case:
    """``found`` are the regions of the forward and of the backward graph, ``sums`` the sums over all rows in them."""

    function: Callable[..., Any]
    inputs: Callable[[], tuple[Tensor, ...]]
    found: tuple[int, ...] = (1, 1)
    sums: int = 0


HALF = torch.bfloat16
CASES = {
    "softmax": Case(lambda x: torch.softmax(x, -1), lambda: (normal(5, 1300),)),
    "scaled softmax": Case(scaled_softmax, lambda: (normal(4, 1100, dtype=HALF),)),
    "log-softmax": Case(lambda x: functional.log_softmax(x.float(), -1), lambda: (normal(4, 1032, dtype=HALF),)),
    "softmax in the middle": Case(lambda x: torch.softmax(x, 1), lambda: (normal(2, 1100, 9),)),
    "log of a sum of exponentials": Case(lambda x: torch.logsumexp(x, -1), lambda: (normal(4, 1100),), (1, 0)),
    "layer norm": Case(layer_norm, lambda: (normal(67, 1100), normal(1100), normal(1100)), sums=2),
    "layer norm of sequences": Case(
        layer_norm, lambda: (normal(3, 5, 1088, dtype=HALF), normal(1088), normal(1088)), sums=2
    ),
    "root mean square": Case(rms_norm, lambda: (normal(9, 1200), normal(1200)), sums=1),
    "of halves": Case(rms_norm, lambda: (normal(9, 1280, dtype=HALF), normal(1280, dtype=HALF)), sums=1),
    "residual": Case(residual_norm, lambda: (normal(5, 1100), normal(5, 1100), normal(1100)), sums=1),
    "group norm": Case(group_norm, lambda: (normal(3, 8, 16, 32), normal(8), normal(8)), (1, 0)),
    "unit length": Case(unit_length, lambda: (normal(4, 1100),)),
    "cross-entropy": Case(functional.cross_entropy, lambda: (normal(6, 1500), classes(6, 1500))),
    "of half logits": Case(functional.cross_entropy, lambda: (normal(6, 1504, dtype=HALF), classes(6, 1504))),
    "smoothed": Case(smoothed, lambda: (normal(6, 1500), classes(6, 1500), torch.rand(1500))),
    "evenly smoothed": Case(evenly_smoothed, lambda: (normal(6, 1504, dtype=HALF).detach(), classes(6, 1504)), (1,)),
    "z-loss": Case(with_z_loss, lambda: (normal(6, 1504, dtype=HALF), classes(6, 1504))),
    # Rows side by side in memory, of which each program leaves sums of its own.
    "layer norm of columns": Case(layer_norm, lambda: (turned(150, 70), normal(70), normal(70)), sums=2),
    # Rows side by side in memory, in runs that no tile divides.
    "variance in the middle": Case(lambda x: torch.var(x, 1), lambda: (normal(2, 66, 70).detach(),), (1,)),
    "least of the middle": Case(lambda x: x.amin(1).exp(), lambda: (normal(3, 70, 47).detach(),), (1,)),
    "first log-sum-exp": Case(lambda x: x.logsumexp(0), lambda: (normal(80, 132, dtype=HALF).detach(),), (1,)),
}


@cache
def graphs_for(name: str) -> list[Found]:
    torch.manual_seed(0)
    return graphs_of(CASES[name].function, CASES[name].inputs())


def found_on(name: str, device: str) -> list[Found]:
    """The graphs of a case in which something is found, with it, however small it is."""
    whole, worth.LEAST_ELEMENTS = worth.LEAST_ELEMENTS, 1
    enough, worth.LEAST_FAR_ROWS = worth.LEAST_FAR_ROWS, 100
    try:
        graphs = graphs_for(name)
        if device != "cpu":
            return [on_gpu(found) for found in graphs]
        return [replace(found, results=list(FAMILY.find(found.graph, "cpu"))) for found in graphs]
    finally:
        worth.LEAST_ELEMENTS, worth.LEAST_FAR_ROWS = whole, enough


# --- what is found ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_graphs_become_one_region_each(name: str) -> None:
    case = CASES[name]
    graphs = found_on(name, "cuda")
    assert tuple(len(found.matches) for found in graphs) == case.found, [found.results for found in graphs]
    programs: list[RowProgram] = [match.plan for found in graphs for match in found.matches]
    assert sum(len(program.column_sums) for program in programs) == case.sums
    for found in graphs:
        for match in found.matches:
            assert all(node.op == "placeholder" for node in match.inputs) and match.region_class == "hot"


def test_few_rows_that_lie_apart_are_left_to_inductor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worth, "LEAST_ELEMENTS", 1)
    for shape in ((2, 66, 1100), (2, 60, 2100)):
        found = on_gpu(graphs_of(lambda x: x.amin(1), [torch.randn(shape)])[0])
        assert not found.matches


def test_what_inductor_holds_well_is_left_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worth, "LEAST_ELEMENTS", 1)

    def is_taken(dim: int, *shape: int) -> bool:
        return bool(on_gpu(graphs_of(lambda x: torch.softmax(x, dim), [torch.randn(shape)])[0]).matches)

    # Tiles as long as the next power of two, of which half lies behind the row.
    assert is_taken(1, 64, 274) and is_taken(1, 64, 599) and is_taken(1, 64, 1040)
    assert not any(is_taken(1, 64, columns) for columns in (100, 256, 768, 1000, 1024))
    # Neighbouring rows, which are short.
    assert is_taken(1, 2, 38, 2100) and not is_taken(1, 2, 11, 2100) and not is_taken(1, 2, 38, 1100)


def sweeps(program: RowProgram) -> int:
    short = simplified(program, online=True)
    return sum(bool(step.sweep) for step in passes(short, online_pairs(short)))


@pytest.mark.parametrize("name", ["variance in the middle", "first log-sum-exp"])
def test_what_lies_apart_is_read_once(name: str) -> None:
    match = found_on(name, "cuda")[0].match
    walked = prepared(match.plan, simplify=True, online=True)
    joined = (*online_pairs(walked), *deviation_pairs(walked))
    assert sum(bool(step.sweep) for step in passes(walked, joined)) == 1
    space = FAMILY.space(match, CUDA)
    loop = {**space.default, "algorithm": "loop", "rows": 32, "lanes": 4, "depth": 4}
    sources = [kernel_of(FAMILY, match, {**loop, "online": online}, "triton").source for online in (True, False)]
    assert [source.count("for c0 in ") for source in sources] == [1, 2]


@pytest.mark.parametrize("name", ["cross-entropy", "of half logits", "z-loss"])
def test_cross_entropy_reads_its_logits_once_in_each_direction(name: str) -> None:
    for found in found_on(name, "cuda"):
        assert sweeps(found.match.plan) == 1


def test_sums_of_one_hot_rows_know_targets_that_are_no_column(tmp_path: Path) -> None:
    def weights(x: Tensor, target: Tensor) -> Tensor:
        hot = torch.where(target[:, None] == torch.arange(x.shape[1]), 2.5, -0.5)
        return x.exp() * hot.sum(-1, keepdim=True) + hot

    inputs = [torch.randn(1100, 1000), torch.randint(-300, 1300, (1100,))]
    found = find(FAMILY, weights, inputs)
    match = found.match
    assert sweeps(match.plan) == 1
    expected = values_of(found, match.outputs)
    call = build(FAMILY, match, FAMILY.space(match, CPU).default, tmp_path)
    assert_same(run_cpp(call, values_of(found, match.inputs), expected), expected)


def test_neighbours_that_inductor_fuses_are_part_of_the_region() -> None:
    def block(x: Tensor, weight: Tensor, matrix: Tensor) -> tuple[Tensor, Tensor]:
        total = x + 1
        normed = functional.rms_norm(total, x.shape[-1:], weight)
        return total + normed @ matrix, functional.gelu(normed)

    found = find(FAMILY, block, [torch.randn(1100, 1000), torch.randn(1000), torch.randn(1000, 1000)])
    match = found.match
    assert [node.op for node in match.inputs] == ["placeholder"] * 2
    # The sum with the product has to wait for it: what it adds is written.
    assert len(match.outputs) == 3 and not any("mm" in str(node.target) for node in match.nodes)


@pytest.mark.parametrize(
    ("function", "shape", "code"),
    [
        (lambda x: x.sum(-1), (600, 2000), "slower"),
        (lambda x: x.sum(), (600, 2000), "slower"),
        (lambda x: torch.softmax(x, -1), (4096, 1024), "slower"),
        (lambda x: torch.cat([torch.softmax(x, -1), x]), (600, 2000), "slower"),
    ],
    ids=["read once", "a number, soon", "short enough for registers", "fused with what follows"],
)
def test_what_cannot_win_on_a_gpu_says_why(function: Callable[..., Any], shape: tuple[int, ...], code: str) -> None:
    assert {result.code for result in on_gpu(find(FAMILY, function, [torch.empty(shape)])).rejections} == {code}


def test_small_reductions_are_not_looked_at() -> None:
    assert not find(FAMILY, lambda x: torch.softmax(x, -1), [torch.randn(100, 2000)]).results


def test_kernels_are_the_same_every_time_and_pass_the_gate() -> None:
    for name in ("layer norm", "of half logits", "group norm"):
        for device, target, language in (("cpu", CPU, "cpp"), ("cuda", CUDA, "triton")):
            for match in (match for found in found_on(name, device) for match in found.matches):
                digests = set()
                for schedule in schedules_of(FAMILY, match, target):
                    try:
                        kernel = kernel_of(FAMILY, match, schedule, language)
                    except EmissionError:
                        continue
                    assert kernel == kernel_of(FAMILY, match, schedule, language)
                    digests.add(kernel.digest)
                assert len(digests) > 2


# --- C++ -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_cpp_agrees_with_eager(name: str, tmp_path: Path) -> None:
    for found in found_on(name, "cpu"):
        for match in found.matches:
            call = build(FAMILY, match, FAMILY.space(match, CPU).default, tmp_path)
            expected = values_of(found, match.outputs)
            outputs = run_cpp(call, values_of(found, match.inputs), expected)
            assert_same(outputs, expected)
            again = run_cpp(call, values_of(found, match.inputs), expected)
            assert all(torch.equal(one, two) for one, two in zip(outputs, again, strict=True))


@pytest.mark.parametrize("name", ["softmax", "log of a sum of exponentials", "layer norm"])
def test_numbers_that_are_not_finite_go_where_eager_has_them(name: str, tmp_path: Path) -> None:
    """But for means of infinities, of which it depends on eager's order whether they are infinite or no numbers."""
    found = found_on(name, "cpu")[0]
    match = found.match
    region = region_of(match)
    inputs = [value.detach().clone() for value in values_of(found, match.inputs)]
    (rows,) = (value for value in inputs if value.dim() == 2)
    rows[0, 3], rows[1, 5], rows[2], rows[3, 7] = math.nan, math.inf, -math.inf, -math.inf
    expected = to_graph_module(region)(*inputs)
    outputs = run_cpp(build(FAMILY, match, FAMILY.space(match, CPU).default, tmp_path), inputs, expected)
    for number, means in enumerate(zip(*evaluate_with_other_means(region, inputs), strict=True)):
        infinite, lost = (mean.to(expected[number].dtype) for mean in means)
        where = outputs[number].isinf() & infinite.isinf() | outputs[number].isnan() & lost.isnan()
        expected[number].copy_(torch.where(where & ~expected[number].isfinite(), outputs[number], expected[number]))
    assert_same(outputs, expected)


# Caches so small that every output goes past them.
STREAMED = replace(CPU, shared_bytes=64, threads=1)


@pytest.mark.parametrize("name", CASES)
def test_every_choice_in_cpp_agrees_with_eager(name: str, tmp_path: Path) -> None:
    """Of the choices that change the order or the precision of what is summed, or the way that results are written."""
    kinds, turn = ("stores", "terms", "online", "keep", "block"), list(CASES).index(name)
    for found in found_on(name, "cpu"):
        for match in found.matches:
            space = FAMILY.space(match, STREAMED)
            expected = values_of(found, match.outputs)
            # Half of them for each case, in turn.
            for kind in [kind for kind in kinds if kind in space.choices][turn % 2 :: 2]:
                schedule = {**space.default, kind: space.choices[kind][-1]}
                assert_same(
                    run_cpp(build(FAMILY, match, schedule, tmp_path), values_of(found, match.inputs), expected),
                    expected,
                )


def test_what_is_streamed_is_whole_wherever_rows_begin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of odd lengths begin anywhere within a line of memory, and may be shorter than one."""
    monkeypatch.setattr(worth, "LEAST_ELEMENTS", 1)
    for columns, dtype in ((7, torch.float32), (77, torch.bfloat16), (1301, torch.float32), (1301, torch.bfloat16)):
        found = find(
            FAMILY, lambda x: torch.softmax(x.float() * 2, -1).to(x.dtype), [torch.randn(9, columns).to(dtype)]
        )
        space = FAMILY.space(found.match, STREAMED)
        schedule = {**space.default, "algorithm": "scan"}
        assert "kv_stream(" in kernel_of(FAMILY, found.match, schedule).source
        expected = values_of(found, found.match.outputs)
        call = build(FAMILY, found.match, schedule, tmp_path)
        assert_same(run_cpp(call, values_of(found, found.match.inputs), expected), expected)


def test_only_what_no_cache_holds_goes_past_the_caches() -> None:
    found = find(FAMILY, lambda x: torch.softmax(x, -1), [torch.randn(1100, 1000)])
    assert "stores" in FAMILY.space(found.match, STREAMED).choices
    assert "stores" not in FAMILY.space(found.match, replace(CPU, shared_bytes=2**22)).choices
    assert "stores" not in FAMILY.space(found.match, replace(STREAMED, features=("asimd",))).choices


def test_a_row_that_ends_in_its_maximum_is_as_good_as_one_that_begins_with_it(tmp_path: Path) -> None:
    """What was summed and kept below lower maxima is scaled when a higher one comes; whole blocks may be -inf."""
    rows = torch.stack([torch.linspace(-60, 70, 9000), torch.linspace(70, -60, 9000), torch.randn(9000)])
    rows = rows.repeat(100, 1)
    rows[3, :5000], rows[4, 4000:] = -math.inf, -math.inf
    rows[5, 8999], rows[6, 4500], rows[7] = math.inf, math.nan, -math.inf
    found = find(FAMILY, lambda x: torch.softmax(x, -1), [rows])
    expected = torch.softmax(rows.double(), -1)
    for choice in ({}, {"keep": False}, {"block": 256}, {"online": False}):
        schedule = {**FAMILY.space(found.match, CPU).default, **choice}
        source = kernel_of(FAMILY, found.match, schedule).source
        assert ("kv_online(" in source) == schedule["online"] and ("kv_online_share(" in source) == (
            choice in ({}, {"block": 256})
        )
        (output,) = run_cpp(build(FAMILY, found.match, schedule, tmp_path), [rows], [rows])
        torch.testing.assert_close(output.double(), expected, rtol=2e-6, atol=1e-12, equal_nan=True)


def test_sums_over_rows_lose_no_more_than_eager_does(tmp_path: Path) -> None:
    """16384 numbers of either sign, some a hundred times as large: added up in one float32 they lose four times as much."""
    found = find(
        FAMILY, gradients_by_hand, [*(torch.randn(16384, 80) for _ in "gx"), torch.randn(80), torch.rand(16384, 1)]
    )
    match = found.match
    inputs = values_of(found, match.inputs)
    for which in (value for value in inputs if value.shape == (16384, 80)):
        which *= torch.where(torch.rand(16384, 80) < 0.06, 100.0, 1.0)
    region = to_graph_module(region_of(match))
    exact, eager = region(*(value.double() for value in inputs)), region(*inputs)
    outputs = run_cpp(build(FAMILY, match, FAMILY.space(match, CPU).default, tmp_path), inputs, eager)
    for output, value, truth in zip(outputs, eager, exact, strict=True):
        assert (output - truth).norm() < 1.1 * (value - truth).norm()


def test_a_channel_of_many_columns_is_looked_up_once_a_block() -> None:
    found = find(FAMILY, group_norm, [torch.randn(9, 4, 256, 256), torch.randn(4), torch.randn(4)])
    space = FAMILY.space(found.match, CPU)
    assert "(c0 / int64_t(65536))" in kernel_of(FAMILY, found.match, space.default).source
    odd = find(FAMILY, group_norm, [torch.randn(9, 4, 259, 259), torch.randn(4), torch.randn(4)])
    assert "(c / int64_t(67081))" in kernel_of(FAMILY, odd.match, FAMILY.space(odd.match, CPU).default).source


def gradients_by_hand(x: Tensor, gradient: Tensor, weight: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    normal, scaled = x * scale, gradient * weight
    of_input = (scaled - normal * (scaled * normal).mean(-1, keepdim=True)) * scale
    return of_input, (gradient * normal).sum(0)


def by_hand(monkeypatch: pytest.MonkeyPatch) -> Found:
    """A number of rows that is known at run time only."""
    monkeypatch.setattr(worth, "LEAST_ELEMENTS", 1)
    inputs = [torch.randn(7, 1100), torch.randn(7, 1100), torch.randn(1100), torch.rand(7, 1)]
    for which in (0, 1, 3):
        torch._dynamo.mark_dynamic(inputs[which], 0)
    return find(FAMILY, gradients_by_hand, inputs)


def test_any_number_of_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = by_hand(monkeypatch)
    match = found.match
    assert region_of(match).symbol_names == ("s0",) and len(match.plan.column_sums) == 1
    call = build(FAMILY, match, FAMILY.space(match, CPU).default, tmp_path)
    for rows in (0, 1, 2, 65, 130):
        shapes = [found.examples[node.name].shape for node in match.inputs]
        inputs = [torch.randn([rows if size == 7 else size for size in shape]) for shape in shapes]
        expected = to_graph_module(region_of(match))(*inputs)
        assert_same(run_cpp(call, inputs, expected, rows), expected)


# --- Triton ----------------------------------------------------------------------------------------------------------

# What else than the default is interpreted, as far as a program's space has it.
CHOICES: tuple[dict[str, Any], ...] = (
    {"algorithm": "loop", "lanes": 32, "depth": 8},
    {"algorithm": "loop", "lanes": 32, "depth": 8, "online": False, "simplify": False},
    {"rows": 2, "stages": 1},
    {"rows": 2, "stages": 0},
    {"beside": 4, "stages": 0, "lanes": 32},
    {"algorithm": "spread", "rows": 2},
    {"algorithm": "loop", "rows": 64, "lanes": 4, "depth": 4},
)


class InterpretedFamily(ReductionFamily):
    """The interpreter does not have CUDA's library."""

    def emit(self, match: Match, schedule: Schedule, language: Language) -> Kernel:
        kernel = super().emit(match, schedule, language)
        plain = {"libdevice.rsqrt": "tl.rsqrt", "libdevice.fast_dividef(a, b)": "a / b"}
        for name, text in plain.items():
            kernel = replace(kernel, source=kernel.source.replace(name, text))
        return kernel


def interpret() -> None:
    few = replace(CUDA, units=2)
    for turn, name in enumerate(CASES):
        for found in found_on(name, "cuda"):
            for match in found.matches:
                space = FAMILY.space(match, few)
                fitting = [
                    choice for choice in CHOICES if all(v in space.choices.get(k, ()) for k, v in choice.items())
                ]
                # Half of them for each case, in turn.
                schedules = [space.default, *({**space.default, **choice} for choice in fitting[turn % 2 :: 2])]
                assert_triton_agrees(InterpretedFamily(), found, schedules)
    with pytest.MonkeyPatch.context() as patch:
        dynamic = by_hand(patch)
    assert_triton_agrees(FAMILY, dynamic, [FAMILY.space(dynamic.match, few).default])


def test_triton_agrees_with_eager_under_the_interpreter() -> None:
    interpreted("test_rows_reductions", "interpret")


def interpret_what_is_not_finite() -> None:
    for name in ("softmax", "scaled softmax", "log of a sum of exponentials", "evenly smoothed", "z-loss"):
        found = found_on(name, "cuda")[0]
        rows = next(value for value in found.examples.values() if value.dim() == 2).detach()
        rows[0, 3], rows[1, 5], rows[2], rows[3, 7] = math.nan, math.inf, -math.inf, -math.inf
        default = FAMILY.space(found.match, CUDA).default
        loops = ({**default, "algorithm": "loop", "lanes": 32, "depth": depth} for depth in (1, 4))
        assert_triton_agrees(InterpretedFamily(), found, [default, *loops])


def test_triton_has_numbers_that_are_not_finite_where_eager_has_them() -> None:
    interpreted("test_rows_reductions", "interpret_what_is_not_finite")


SHARES = (
    {"algorithm": "tile", "lanes": 32, "parts": 3}, {"algorithm": "tile", "lanes": 64, "parts": 8},
    {"algorithm": "loop", "lanes": 32, "depth": 2, "parts": 3},
)  # fmt: skip


def assert_shared_agrees(found: Found, schedules: Sequence[Schedule]) -> None:
    """Programs come one after another here: none waits, and what it asks of later ones it finds from another run."""
    from kevolve_inductor.platforms import build_folder
    from kevolve_inductor.platforms.cuda import launch_functions
    from kevolve_inductor.platforms.triton_build import load_triton

    inputs, expected = values_of(found, found.match.inputs), values_of(found, found.match.outputs)
    for schedule in schedules:
        kernel = kernel_of(InterpretedFamily(), found.match, schedule, "triton")
        text, exchanges = re.subn(r"    while seen < \d+:\n        seen = .*\n", "", kernel.source)
        assert (exchanges or "if seen == " in text) and len(kernel.workspaces) == 2
        kernel = replace(kernel, source=text)
        functions = load_triton(kernel, build_folder())
        sizes = [int(ast.literal_eval(workspace.numel)) for workspace in kernel.workspaces]
        lent = [torch.full((sizes[0],), math.nan), torch.empty(sizes[1], dtype=torch.int32)]
        outputs = [empty_like(value) for value in expected]
        for _ in range(exchanges + 1):
            launch_functions(kernel, functions, inputs, outputs, {}, lent)
        assert_same(outputs, expected)
        parts = lent[1][1:].unique()
        assert len(parts) == 1 and int(lent[1][0]) % int(parts) == 0 and int(parts) > 1


def interpret_shared() -> None:
    for name, shares in (("softmax", 2), ("group norm", 1)):
        found = found_on(name, "cuda")[0]
        default = FAMILY.space(found.match, CUDA).default
        ways = [{**default, "rows": 1, **way} for way in SHARES[-shares:]]
        if name == "softmax":
            ways.append({**ways[-1], "online": False})
        assert_shared_agrees(found, ways)


SHARED_TILES: dict[str, tuple[Callable[..., Any], tuple[int, ...]]] = {
    "softmax": (lambda x: torch.softmax(x.t(), -1), (300, 21)),
    "layer norm": (lambda x: functional.layer_norm(x.t(), (x.shape[0],)), (300, 37)),
    "middle": (lambda x: x - x.logsumexp(1, keepdim=True), (3, 290, 20)),
    "variance": (lambda x: x.var(0), (320, 32)),
    "one sweep": (lambda x: x.abs().logsumexp(0), (301, 19)),
}


def interpret_shared_tiles() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(worth, "LEAST_ELEMENTS", 1)
        patch.setattr(worth, "_LEAST_OF_FEW", 1)
        for function, shape in SHARED_TILES.values():
            found = on_gpu(graphs_of(function, [torch.randn(shape)])[0])
            space = FAMILY.space(found.match, CUDA)
            assert any(int(seed["parts"]) > 1 for seed in space.seeds)
            loop = {**space.default, "algorithm": "loop", "rows": 16, "lanes": 16, "depth": 4, "parts": 3}
            ways = [loop, {**loop, "algorithm": "tile", "lanes": 64, "parts": 5}, {**loop, "parts": 8, "rows": 32}]
            assert_shared_agrees(found, ways + ([{**loop, "online": False}] if "online" in space.choices else []))


def test_programs_that_share_tiles_of_rows_agree_with_eager_under_the_interpreter() -> None:
    interpreted("test_rows_reductions", "interpret_shared_tiles")


def interpret_few_rows() -> None:
    """Of rows that are read once the program that comes last adds up what all have left: of numbers, and of a few rows."""
    functions: tuple[Callable[..., Any], ...] = (
        lambda a, b: functional.mse_loss(a, b), lambda a, b: (a * b).abs().amax(1), lambda a, b: (a + b).logsumexp(1),
        lambda a, b: functional.smooth_l1_loss(a, b, reduction="sum") * 2,
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(worth, "LEAST_ELEMENTS", 1)
        patch.setattr(worth, "_LEAST_OF_FEW", 1)
        for function in functions:
            found = on_gpu(graphs_of(function, [torch.randn(3, 3001), torch.randn(3, 3001)])[0])
            space = FAMILY.space(found.match, CUDA)
            loop = {**space.default, "algorithm": "loop", "lanes": 32, "rows": 1}
            schedules = [{**loop, "depth": depth, "parts": parts} for depth, parts in ((4, 5), (8, 2))]
            for schedule in schedules:
                source = kernel_of(FAMILY, found.match, schedule, "triton").source
                assert "if seen == " in source and "while" not in source
            assert_triton_agrees(InterpretedFamily(), found, schedules)


def test_short_rows_stand_beside_each_other_where_their_sums_are_left() -> None:
    inputs = [torch.empty(20_000, 380), torch.empty(20_000, 380), torch.empty(380), torch.empty(20_000, 1)]
    match = on_gpu(find(FAMILY, gradients_by_hand, inputs)).match
    for seed in FAMILY.space(match, CUDA).seeds:
        kernel = kernel_of(FAMILY, match, seed, "triton")
        (left,) = kernel.workspaces
        assert kernel.launches[0].num_warps >= 8 and evaluate(left.numel, {}) < 20_000 * 380 // 16


def test_programs_that_share_few_rows_agree_with_eager_under_the_interpreter() -> None:
    interpreted("test_rows_reductions", "interpret_few_rows")


def test_programs_that_share_rows_agree_with_eager_under_the_interpreter() -> None:
    interpreted("test_rows_reductions", "interpret_shared")


def assert_sharing_programs_agree(functions: Sequence[Callable[..., Any]], shape: tuple[int, ...]) -> None:
    from kevolve_inductor.platforms.cuda import launch

    for function in functions:
        x = torch.randn(shape, device="cuda")
        found = find(FAMILY, function, [x], device="cuda")
        expected = to_graph_module(region_of(found.match))(x)
        shared = [seed for seed in FAMILY.space(found.match, CUDA).seeds if int(seed["parts"]) > 1]
        assert len(shared) >= 3
        for schedule in shared:
            kernel = kernel_of(FAMILY, found.match, schedule, "triton")
            results = []
            for _ in range(5):
                outputs = [torch.empty_like(value) for value in expected]
                launch(kernel, [x], outputs, {})
                results.append(outputs)
            assert_same(results[0], expected)
            assert all(torch.equal(one, two) for other in results for one, two in zip(results[0], other, strict=True))


@pytest.mark.gpu
@pytest.mark.parametrize("shape", [(1, 13_000_017), (40, 131_072), (700, 70_001)])
def test_programs_that_share_rows_wait_for_each_other_on_the_gpu(shape: tuple[int, ...]) -> None:
    functions = [lambda x: torch.softmax(x, -1), lambda x: functional.layer_norm(x, x.shape[1:])]
    functions += [lambda x: x.square().mean(), lambda x: x.logsumexp(1)] if shape[0] == 1 else []
    assert_sharing_programs_agree(functions, shape)


@pytest.mark.gpu
@pytest.mark.parametrize("shape", [(30_317, 511), (5, 60_000, 40), (200_000, 64)])
def test_programs_that_share_tiles_of_rows_wait_for_each_other_on_the_gpu(shape: tuple[int, ...]) -> None:
    dim = len(shape) - 2
    functions = [lambda x: torch.softmax(x, dim), lambda x: x.var(dim), lambda x: x.logsumexp(dim)]
    functions += [lambda x: functional.layer_norm(x.t(), (x.shape[0],))] if dim == 0 else []
    assert_sharing_programs_agree(functions, shape)


@pytest.mark.parametrize("columns", [2, 16, 200, 768, 4096, 20000, 50257, 1 << 20])
@pytest.mark.parametrize("kind", [{"sums": 2, "weights": 1}, {"online": True}, {"loads": 1, "pointwise": True}])
def test_seeds_are_of_their_space_for_any_length(columns: int, kind: dict[str, Any]) -> None:
    facts = {"loads": 2, "weights": 0, "sums": 0, "sweeps": 2, "online": False, "pointwise": False, **kind}
    vector = 8 if columns % 8 == 0 else 1
    for rows in (0, 3, 5000):
        row = RowFacts(rows, columns, vector, row_bytes=2 * columns, units=132, shared_bytes=227 * 1024, **facts)
        seeds = seeds_of(row)
        choices = choices_of(row, seeds, 1)
        assert 0 < len(seeds) < 24 and all(seed[name] in values for seed in seeds for name, values in choices.items())
        assert all(values[0] == seeds[0][name] for name, values in choices.items())


@pytest.mark.parametrize("runs", [1, 3, 5, 10, 11, 16, 49, 128])
def test_pieces_hold_a_row_with_little_in_vain(runs: int) -> None:
    depth, pieces = pieces_of(runs)
    assert depth & (depth - 1) == 0 and pieces <= 8 and runs <= depth * pieces <= runs + depth - 1
    assert runs != 10 or (depth, pieces) == (2, 5)


@pytest.mark.parametrize(
    ("function", "inputs", "registers"),
    [
        (layer_norm, lambda: (normal(300, 4096, dtype=HALF), normal(4096, dtype=HALF), normal(4096, dtype=HALF)), 128),
        (functional.cross_entropy, lambda: (normal(520, 40000, dtype=HALF), classes(520, 40000)), 100),
        (lambda x: torch.softmax(x, -1), lambda: (normal(40, 32768, dtype=HALF),), 128),
    ],
    ids=["layer norm", "cross-entropy", "softmax"],
)
def test_defaults_compile_for_hopper(
    function: Callable[..., Any], inputs: Callable[[], tuple[Tensor, ...]], registers: int, tmp_path: Path
) -> None:
    """No spills, and few enough registers for what is to run at once."""
    pytest.importorskip("triton")
    from kevolve_inductor.platforms.triton_build import compile_for

    for found in map(on_gpu, graphs_of(function, inputs())):
        match = found.match
        kernel = kernel_of(FAMILY, match, FAMILY.space(match, CUDA).default, "triton")
        resources = compile_for(kernel, region_of(match), "sm_90", tmp_path)
        assert resources.spills in (0, None) and (resources.registers or 0) <= registers
