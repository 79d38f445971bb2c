"""Row selection: which neighbours a selection takes along, and whether its kernels choose what eager chooses."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
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
from torch._subclasses import FakeTensorMode
from torch.nn import functional

from kevolve_inductor.exc import EmissionError, KernelIndexError
from kevolve_inductor.graph.reference import to_graph_module
from kevolve_inductor.synthesis.families.common import check_acyclic
from kevolve_inductor.synthesis.families.rows import RowFamily
from kevolve_inductor.synthesis.families.rows.program import Reduce, Select
from kevolve_inductor.synthesis.families.rows.simplify import simplified
from kevolve_inductor.synthesis.family import Match, Rejection

FAMILY = RowFamily()


def awkward(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Many equal values, NaN, infinities and zeros of both signs; the ends of the range for integers."""
    values = torch.randint(-4, 5, shape).to(torch.float64) / 2
    flat = values.view(-1)
    if dtype.is_floating_point:
        for place, value in enumerate((math.nan, math.inf, -math.inf, 0.0, -0.0, -0.0)):
            flat[place::13] = value
        return values.to(dtype)
    result = values.to(dtype)
    result.view(-1)[::7], result.view(-1)[3::11] = torch.iinfo(dtype).max, torch.iinfo(dtype).min
    return result


# --- spellings -------------------------------------------------------------------------------------------------------


def router(logits: Tensor) -> tuple[Tensor, Tensor]:
    weights, experts = torch.topk(torch.softmax(logits, dim=-1), 3)
    return weights, experts


def gate(logits: Tensor) -> tuple[Tensor, Tensor]:
    weights, experts = torch.topk(torch.softmax(logits.float(), dim=-1), 2)
    return (weights / weights.sum(dim=-1, keepdim=True)).to(logits.dtype), experts


def biased_router(logits: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    scores = logits.float().sigmoid()
    experts = torch.topk(scores + bias, 6, dim=-1).indices
    weights = scores.gather(-1, experts)
    return 2.5 * weights / (weights.sum(dim=-1, keepdim=True) + 1e-20), experts.int()


def softmax_of_selected(logits: Tensor) -> tuple[Tensor, Tensor]:
    weights, experts = torch.topk(logits, 4)
    return torch.softmax(weights, dim=-1), experts


def beams(logits: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
    best, tokens = (functional.log_softmax(logits.float(), dim=-1) + scores[:, None]).topk(4, dim=-1)
    return best, tokens


def sampling_filter(logits: Tensor) -> Tensor:
    kept = logits.masked_fill(logits < torch.topk(logits, 5).values[..., -1, None], -math.inf)
    return torch.softmax(kept, dim=-1)


def kept_probabilities(logits: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    probabilities = torch.softmax(logits, dim=-1)
    weights, experts = torch.topk(probabilities, 2)
    return probabilities, probabilities.mean(0), weights, experts


def extremes(values: Tensor) -> tuple[Tensor, ...]:
    return values.argmax(1), values.argmin(1, keepdim=True), *values.max(1), *values.min(1)


def both_orders(values: Tensor) -> tuple[Tensor, ...]:
    return *torch.sort(values, dim=-1, stable=True), *torch.sort(values, dim=-1, stable=True, descending=True)


def first_axis_sorted(values: Tensor) -> tuple[Tensor, ...]:
    return tuple(torch.sort(values, dim=0, stable=True))


def one_row_sorted(values: Tensor) -> tuple[Tensor, ...]:
    return tuple(torch.sort(values, stable=True))


def normalised_argmax(values: Tensor) -> Tensor:
    return functional.layer_norm(values, values.shape[-1:]).argmax(-1)


def distances(values: Tensor) -> tuple[Tensor, Tensor]:
    best, place = values.max(-1, keepdim=True)
    return values - best, place


def sorted_choice(values: Tensor) -> tuple[Tensor, Tensor]:
    return tuple(torch.sort(torch.topk(values, 5).indices, dim=-1))


@dataclass(frozen=True)
class Case:
    """``scores``: where equal scores may come in any order, what the index output must be compared by."""

    function: Callable[..., Any]
    inputs: Callable[[], tuple[Tensor, ...]]
    scores: Callable[..., Tensor] | None = None
    choices: tuple[dict[str, Any], ...] = ()


def smallest(values: Tensor) -> tuple[Tensor, Tensor]:
    return tuple(torch.topk(values, 3, largest=False))


def _same(values: Tensor, *_: Tensor) -> Tensor:
    return values


SCAN, NETWORK, INSERT = {"algorithm": "scan"}, {"lane_select": "network"}, {"lane_select": "insert"}
CASES = {
    "router": Case(router, lambda: (torch.randn(37, 20),), _same, (INSERT, {**SCAN, "row_select": "filter"})),
    "router as written": Case(router, lambda: (torch.randn(37, 20),), _same, ({"simplify": False},)),
    "gate": Case(gate, lambda: (torch.randn(33, 16, dtype=torch.bfloat16),), _same, (SCAN,)),
    "biased router": Case(
        biased_router, lambda: (torch.randn(35, 24, dtype=torch.float16), torch.randn(24)), None, ({"lane_select": "rank"}, SCAN)
    ),
    "softmax of selected": Case(softmax_of_selected, lambda: (torch.randn(2, 9, 40),), None, (NETWORK,)),
    "beams": Case(beams, lambda: (torch.randn(5, 300), torch.randn(5)), None, ({"algorithm": "lanes", "lanes": 8, "block": 64},)),
    "sampling filter": Case(sampling_filter, lambda: (torch.randn(7, 70),), None, (SCAN,)),
    "kept probabilities": Case(kept_probabilities, lambda: (torch.randn(21, 24),), None, ({"keep": False},)),
    "extremes": Case(extremes, lambda: (awkward(3, 10, 18),), None, (SCAN,)),
    "extremes of doubles": Case(extremes, lambda: (awkward(18, 10, dtype=torch.float64),), None, (SCAN,)),
    "extremes of integers": Case(extremes, lambda: (awkward(18, 10, dtype=torch.int64).t().contiguous().t(),), None, (SCAN,)),
    "sort": Case(both_orders, lambda: (awkward(19, 33),), None, ({**SCAN}, {**SCAN, "row_sort": "std"})),
    "sort of halves": Case(both_orders, lambda: (awkward(17, 40, dtype=torch.bfloat16),), None, ({"lanes": 32},)),
    "sort of bytes": Case(first_axis_sorted, lambda: (awkward(20, 18, dtype=torch.uint8),), None, (SCAN,)),
    "sort of one row": Case(one_row_sorted, lambda: (torch.randint(0, 9, (300,)),), None, ({"row_sort": "std"},)),
    "smallest": Case(smallest, lambda: (awkward(18, 21)[:, 1:],), _same, (INSERT, {**SCAN, "row_select": "split"})),
    "smallest of doubles": Case(smallest, lambda: (awkward(18, 20, dtype=torch.float64),), _same, (SCAN,)),
    "wide": Case(lambda v: torch.topk(v, 8), lambda: (awkward(3, 700, dtype=torch.float16),), _same, ({"row_select": "filter"},)),
    "lowest": Case(lambda v: torch.topk(v, 5, largest=False), lambda: (awkward(3, 300),), _same, ({"row_select": "filter"},)),
    "k-th": Case(lambda v: torch.kthvalue(v, 4, dim=-1), lambda: (torch.randn(18, 30),), _same, (SCAN,)),
    "normalised": Case(normalised_argmax, lambda: (torch.randn(20, 50),), None, (SCAN,)),
    "distances": Case(distances, lambda: (torch.randn(18, 1),), None, (SCAN,)),
    "sorted choice": Case(sorted_choice, lambda: (torch.randn(18, 22),), None, (SCAN,)),
}  # fmt: skip


@cache
def found_of(name: str) -> Found:
    torch.manual_seed(0)
    return find(FAMILY, CASES[name].function, CASES[name].inputs())


def assert_chosen_well(case: Case, found: Found, match: Match, outputs: Sequence[Tensor]) -> None:
    """As eager's, up to the order of equal scores where eager promises none; what is only moved keeps its bits."""
    expected = values_of(found, match.outputs)
    if case.scores is None:
        assert_same(outputs, expected)
        return
    scores = case.scores(*found.examples.values())
    for output, value in zip(outputs, expected, strict=True):
        if output.is_floating_point():
            assert_same([output], [value])
            continue
        keepdim = output.dim() < scores.dim()
        chosen, wanted = (scores.gather(-1, i.unsqueeze(-1) if keepdim else i) for i in (output, value))
        assert torch.equal(chosen.nan_to_num(99), wanted.nan_to_num(99))
        assert all(len(set(row.tolist())) == len(row) for row in output.view(-1, 1 if keepdim else output.shape[-1]))


# --- structure -------------------------------------------------------------------------------------------------------


def kinds(match: Match) -> list[str]:
    return [s.op if isinstance(s, Reduce) else type(s).__name__.lower() for s in match.plan.statements]


def test_a_router_is_one_region() -> None:
    match = found_of("gate").match
    assert len(match.inputs) == 1 and len(match.outputs) == 2
    assert kinds(match) == ["amax", "sum", "select", "sum"]
    assert match.region_class == "long tail" and match.flops > 33 * 16


def test_spellings_of_a_softmax_give_the_same_program() -> None:
    def by_hand(logits: Tensor) -> tuple[Tensor, Tensor]:
        top = logits.max(dim=-1, keepdim=True).values
        powers = (logits - top).exp()
        values, places = (powers / powers.sum(-1).unsqueeze(-1)).topk(k=3, dim=1)
        return values, places

    match = find(FAMILY, by_hand, [torch.randn(37, 20)]).match
    assert kinds(match) == kinds(found_of("router").match) == ["amax", "sum", "select"]
    assert [s.value.op for s in simplified(match.plan).selects] == ["load"]


def online_graph() -> torch.fx.Graph:
    """A softmax and its top-k as Inductor leaves them for a GPU."""
    import torch._inductor.inductor_prims

    with FakeTensorMode():
        x = torch.empty(37, 20)
        graph = torch.fx.Graph()

        def add(target: Any, *args: Any) -> torch.fx.Node:
            node = graph.call_function(target, args)
            node.meta["val"] = target(*torch.fx.map_arg(args, lambda a: a.meta["val"]))
            return node

        logits = graph.placeholder("logits")
        logits.meta["val"] = x
        both = add(torch.ops.prims.prepare_softmax_online.default, logits, -1)
        top, total = (add(_item, both, k) for k in range(2))
        powers = add(torch.ops.aten.exp.default, add(torch.ops.aten.sub.Tensor, logits, top))
        chosen = add(torch.ops.aten.topk.default, add(torch.ops.aten.div.Tensor, powers, total), 3)
        graph.output(tuple(add(_item, chosen, k) for k in range(2)))
    for node in graph.nodes:
        if node.target is _item:
            node.target = _GETITEM
    return graph


_GETITEM = __import__("operator").getitem


def _item(values: Any, index: int) -> Any:
    return values[index]


def test_inductor_s_own_softmax_step_is_understood() -> None:
    (match,) = FAMILY.find(online_graph(), "cpu")
    assert isinstance(match, Match)
    schedule = FAMILY.space(match, CPU).default
    assert kernel_of(FAMILY, match, schedule).source == kernel_of(FAMILY, found_of("router").match, schedule).source


def test_a_normalised_gate_needs_no_exponential_of_what_is_not_chosen() -> None:
    short = simplified(found_of("gate").match.plan)
    assert [type(s) for s in short.statements].count(Select) == 1
    assert not any(isinstance(s, Reduce) and s.axis == "c" for s in short.statements)


def test_a_router_s_weights_keep_their_denominator() -> None:
    short = simplified(found_of("router").match.plan)
    (select,) = short.selects
    assert select.value.op == "load"
    assert any(isinstance(s, Reduce) and s.axis == "c" and s.op == "sum" for s in short.statements)


def test_stable_orders_are_not_taken_from_something_else() -> None:
    match = find(FAMILY, lambda v: torch.sigmoid(v).argmax(-1), [torch.randn(9, 20)]).match
    assert simplified(match.plan).selects[0].value.op == "sigmoid"


def test_probabilities_needed_elsewhere_are_written() -> None:
    match = found_of("kept probabilities").match
    assert len(match.outputs) == 3 and len(match.inputs) == 1


def test_what_inductor_computes_on_the_way_is_given_back() -> None:
    def one_hot(logits: Tensor) -> tuple[Tensor, ...]:
        weights, experts = torch.topk(logits, 2)
        return weights, experts, (experts * 3 + 1).unsqueeze(-1) == torch.arange(7)

    match = find(FAMILY, one_hot, [torch.randn(9, 20)]).match
    assert [str(node.target) for node in match.outputs] == [str(_GETITEM)] * 2


def test_regions_stay_convex() -> None:
    def crossed(logits: Tensor, table: Tensor) -> Tensor:
        weights, experts = torch.topk(logits, 4)
        return weights * (experts.float() @ table) + weights

    found = find(FAMILY, crossed, [torch.randn(9, 20), torch.randn(4, 4)])
    for match in found.matches:
        check_acyclic(match.inputs, match.outputs)
    assert found.matches


def test_different_axes_are_different_regions() -> None:
    found = find(FAMILY, lambda v: (v.argmax(0), v.argmax(-1)), [torch.randn(9, 20)])
    assert len(found.matches) == 2


@pytest.mark.parametrize(
    ("function", "code"),
    [
        (lambda v: v.argmax(), "structure"),
        (lambda v: torch.topk(v, 0), "size"),
        (lambda v: torch.sort(v[:0], dim=0), "size"),
    ],
)
def test_what_is_left_alone_says_why(function: Callable[..., Any], code: str) -> None:
    (rejection,) = find(FAMILY, function, [torch.randn(9, 20)]).results
    assert isinstance(rejection, Rejection) and rejection.code == code


def test_a_dynamic_axis_cannot_be_selected_from() -> None:
    (rejection,) = find(FAMILY, lambda v: v.argmax(0), [torch.randn(9, 20)], dynamic=True).results
    assert isinstance(rejection, Rejection) and rejection.code == "dynamic"


def test_long_rows_are_not_sorted_on_a_gpu() -> None:
    found = find(FAMILY, lambda v: torch.sort(v, -1), [torch.randn(2, 5000)])
    assert found.matches
    for node in found.graph.nodes:
        if isinstance(node.meta.get("val"), Tensor):
            node.meta["val"] = torch.empty_like(node.meta["val"], device="meta")
    (rejection,) = FAMILY.find(found.graph, "meta")
    assert isinstance(rejection, Rejection) and rejection.code == "size"


def test_kernels_are_the_same_every_time_and_pass_the_gate() -> None:
    for name in ("router", "sort", "extremes", "beams"):
        match = found_of(name).match
        for target, language in ((CPU, "cpp"), (CUDA, "triton")):
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
def test_cpp_chooses_as_eager(name: str, folder: Path) -> None:
    case, found = CASES[name], found_of(name)
    for match in found.matches:
        default = FAMILY.space(match, CPU).default
        # The other choices take turns, so that the compiler is not the slowest part of the whole suite.
        schedules = [default, *({**default, **choice} for choice in case.choices)]
        with ThreadPoolExecutor(2) as pool:
            calls = list(pool.map(lambda schedule, match=match: build(FAMILY, match, schedule, folder), schedules))
        inputs, expected = values_of(found, match.inputs), values_of(found, match.outputs)
        for call in calls:
            assert_chosen_well(case, found, match, run_cpp(call, inputs, expected))


def test_zeros_keep_their_sign(folder: Path) -> None:
    values = torch.tensor([[0.0, -0.0, 1.0, -0.0, 0.0, -1.0, -0.0, 0.0]] * 17)
    found = find(FAMILY, lambda v: torch.sort(v, dim=-1, stable=True), [values])
    match = found.match
    for choice in ({}, {"algorithm": "scan"}):
        call = build(FAMILY, match, {**FAMILY.space(match, CPU).default, **choice}, folder)
        ordered, places = run_cpp(call, [values], values_of(found, match.outputs))
        assert torch.equal(ordered.view(torch.int32), values.gather(-1, places).view(torch.int32))
        assert places[0].tolist() == [5, 0, 1, 3, 4, 6, 7, 2]


def test_any_number_of_rows(folder: Path) -> None:
    match = find(FAMILY, gate, [torch.randn(30, 16)], dynamic=True).match
    region = region_of(match)
    assert region.symbol_names == ("s0",)
    module, calls = to_graph_module(region), []
    for algorithm in ("lanes", "scan"):
        calls.append(build(FAMILY, match, {**FAMILY.space(match, CPU).default, "algorithm": algorithm}, folder))
    for rows in (0, 1, 15, 16, 33):
        inputs = [torch.randn(rows, 16)]
        expected = module(*inputs)
        for call in calls:
            assert_same(run_cpp(call, inputs, expected, rows), expected)


def test_positions_beyond_a_table_are_reported(folder: Path) -> None:
    def look_up(scores: Tensor, table: Tensor) -> Tensor:
        return table[torch.topk(scores, 2).indices]

    found = find(FAMILY, look_up, [torch.randn(9, 20), torch.randn(20)])
    match = found.match
    short = find(FAMILY, look_up, [torch.arange(20.0).flip(0).repeat(9, 1), torch.randn(12)]).match
    call = build(FAMILY, short, FAMILY.space(short, CPU).default, folder)
    output = torch.empty(9, 2)
    scores, table = torch.arange(20.0).flip(0).repeat(9, 1), torch.randn(12)
    call(scores, table, output)
    assert torch.equal(output, look_up(scores, table))
    with pytest.raises(KernelIndexError):
        call(scores.flip(1), table, output)
    assert len(match.outputs) == 1


def test_rows_are_shared_among_threads(folder: Path) -> None:
    torch.manual_seed(0)
    found = find(FAMILY, gate, [torch.randn(4000, 64)])
    match = found.match
    call = build(FAMILY, match, FAMILY.space(match, CPU).default, folder)
    expected = values_of(found, match.outputs)
    assert_same(run_cpp(call, values_of(found, match.inputs), expected), expected)


# --- Triton ----------------------------------------------------------------------------------------------------------

# In the interpreter every element costs: these say most for their size. It rounds to bfloat16 by cutting off.
INTERPRETED: dict[str, tuple[dict[str, Any], ...]] = {
    "router": ({}, {"select": "extract"}, {"key": "int64", "lanes": 1}),
    "router as written": ({"simplify": False},),
    "biased router": ({},),
    "softmax of selected": ({},),
    "beams": (
        {"algorithm": "loop", "lanes": 4, "online": True},
        {"algorithm": "loop", "lanes": 8, "online": False},
        {"algorithm": "loop", "lanes": 8, "select": "filter"},
    ),
    "sampling filter": ({},),
    "kept probabilities": ({},),
    "extremes": ({"rows": 32}, {"rows": 32, "select": "extract"}),
    "extremes of doubles": ({},),
    "extremes of integers": ({},),
    "sort": ({}, {"lanes": 8, "key": "int64"}),
    "sort of halves": ({},),
    "sort of bytes": ({"rows": 32},),
    "smallest": ({}, {"select": "extract"}),
    "wide": (
        {"algorithm": "loop", "lanes": 32},
        {"algorithm": "loop", "lanes": 32, "select": "extract"},
        {"algorithm": "loop", "lanes": 16, "select": "filter"},
    ),
    "lowest": (
        {"algorithm": "loop", "lanes": 8, "select": "filter"},
        {"algorithm": "loop", "lanes": 16, "rows": 2, "select": "filter"},
    ),
    "k-th": ({},),
    "distances": ({},),
}


def interpret() -> None:
    from kevolve_inductor.platforms.cuda import launch

    for name, choices in INTERPRETED.items():
        case, found = CASES[name], found_of(name)
        for match in found.matches:
            inputs, expected = values_of(found, match.inputs), values_of(found, match.outputs)
            for choice in choices:
                schedule = {**FAMILY.space(match, CUDA).default, **choice}
                outputs = [empty_like(value) for value in expected]
                launch(kernel_of(FAMILY, match, schedule, "triton"), inputs, outputs, {})
                assert_chosen_well(case, found, match, outputs)
    dynamic = find(FAMILY, gate, [torch.randn(30, 16)], dynamic=True)
    assert_triton_agrees(FAMILY, dynamic, [FAMILY.space(dynamic.match, CUDA).default])


def test_triton_chooses_as_eager_under_the_interpreter() -> None:
    interpreted("test_rows", "interpret")


@pytest.mark.parametrize(
    ("function", "inputs", "registers"),
    [
        (lambda v: torch.topk(torch.softmax(v, -1), 8), (torch.empty(32768, 128),), 128),
        (lambda v: torch.sort(v, -1), (torch.empty(65536, 128),), 168),
        (lambda v: v.argmax(1), (torch.empty(64, 512, 512),), 128),
        (beams, (torch.empty(512, 32000, dtype=torch.bfloat16), torch.empty(512)), 128),
    ],
    ids=["router", "sort", "arg-max in the middle", "beams"],
)
def test_defaults_compile_for_hopper(
    function: Callable[..., Any], inputs: Sequence[Tensor], registers: int, folder: Path
) -> None:
    """No spills, and few enough registers for several blocks."""
    pytest.importorskip("triton")
    from kevolve_inductor.platforms.triton_build import compile_for

    match = find(FAMILY, function, inputs).match
    kernel = kernel_of(FAMILY, match, FAMILY.space(match, CUDA).default, "triton")
    resources = compile_for(kernel, region_of(match), "sm_90", folder)
    assert resources.spills in (0, None) and (resources.registers or 0) <= registers
