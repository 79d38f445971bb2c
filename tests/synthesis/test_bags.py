"""Embedding bags: which spellings are taken, many tables at once, and whether kernels compute what eager computes."""

from __future__ import annotations

import copy
import math
import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from family_checks import (
    CPU,
    CUDA,
    Found,
    assert_matches_eager,
    assert_same,
    assert_triton_agrees,
    build,
    find,
    interpreted,
    kernel_of,
    region_of,
    run_cpp,
    schedules_of,
    values_of,
)
from torch import Tensor
from torch.nn import functional

from kevolve_inductor.evaluate.closeness import allowed_error
from kevolve_inductor.exc import KernelIndexError
from kevolve_inductor.graph.meta import target_name
from kevolve_inductor.graph.reference import evaluate_fp64
from kevolve_inductor.synthesis.families.bags import BagsFamily
from kevolve_inductor.synthesis.families.bags.family import groups_of
from kevolve_inductor.synthesis.families.bags.plan import joined
from kevolve_inductor.synthesis.family import Match, Rejection

FAMILY = BagsFamily()
ROWS, BAGS, LENGTH = 70, 45, 6


def table(width: int = 24, rows: int = ROWS, dtype: torch.dtype = torch.float32) -> Tensor:
    values = torch.randn(rows, width)
    values[3, 2], values[5, 4] = math.nan, math.inf
    return values.to(dtype)


def ids(*shape: int, rows: int = ROWS, dtype: torch.dtype = torch.int64) -> Tensor:
    return torch.randint(rows, shape or (BAGS, LENGTH), dtype=dtype)


def offsets(events: int, bags: int = BAGS, last: bool = False) -> Tensor:
    inside = torch.randint(events, (bags - 1,)).sort().values
    inside[4] = inside[3]
    return torch.cat([torch.zeros(1, dtype=torch.int64), inside, torch.full((int(last),), events)])


def bag(mode: str = "sum", **options: Any) -> Callable[..., Tensor]:
    return lambda weight, indices, *starts: functional.embedding_bag(indices, weight, *starts, mode=mode, **options)


def ragged(events: int = 400, last: bool = False) -> list[Tensor]:
    return [table(), ids(events), offsets(events, last=last)]


def weighted_bag(weight: Tensor, indices: Tensor, starts: Tensor, scale: Tensor) -> Tensor:
    return functional.embedding_bag(indices, weight, starts, mode="sum", per_sample_weights=scale)


def many_bags(*tensors: Tensor) -> Tensor:
    count = len(tensors) // 2
    return torch.cat([functional.embedding_bag(tensors[count + k], tensors[k], mode="mean") for k in range(count)], 1)


def stacked(first: Tensor, second: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """Tables of different lengths, index types and spellings."""
    return torch.stack([first[left].sum(1), functional.embedding(right, second).sum(dim=1)], dim=1).relu()


def beside_numbers(numbers: Tensor, weight: Tensor, indices: Tensor) -> Tensor:
    return torch.cat([numbers * 2, weight[indices].sum(1), functional.embedding(indices, weight).mean(1)], dim=1)


def masked_mean(weight: Tensor, indices: Tensor) -> Tensor:
    real = indices != 0
    return (functional.embedding(indices, weight) * real[..., None]).sum(1) / real.sum(1, keepdim=True).clamp(min=1)


def weighted_mean(weight: Tensor, indices: Tensor, scale: Tensor) -> Tensor:
    words = weight[indices] * scale.softmax(1).unsqueeze(-1)
    return torch.sigmoid(words.sum(dim=-2))


def weighted_across(weight: Tensor, indices: Tensor, scale: Tensor) -> Tensor:
    """Weights that sum to one over all bags."""
    return (weight[indices] * scale.softmax(0).unsqueeze(-1)).sum(1)


def factorization_machine(weight: Tensor, indices: Tensor) -> Tensor:
    rows = functional.embedding(indices, weight)
    return 0.5 * (rows.sum(1) ** 2 - (rows * rows).sum(1))


def rows_and_numbers(weight: Tensor, linear: Tensor, indices: Tensor) -> Tensor:
    return torch.cat([factorization_machine(weight, indices), linear[indices].sum(1)], dim=1)


def one_table_of_many(weight: Tensor, indices: Tensor) -> Tensor:
    """Every position has its own part of one long table."""
    return weight[indices % 10 + torch.arange(LENGTH) * 10].amax(1)


def sequences_of_bags(weight: Tensor, indices: Tensor) -> Tensor:
    return functional.embedding(indices, weight).sum(2) + 1


def remapped(weight: Tensor, remap: Tensor, indices: Tensor) -> Tensor:
    return weight.index_select(0, remap[indices].view(-1)).view(BAGS, LENGTH, -1).sum(1)


def product_of_weights(weight: Tensor, indices: Tensor, scale: Tensor) -> Tensor:
    return torch.bmm(scale.unsqueeze(1), functional.embedding(indices, weight)).squeeze(1)


def columns_of_weights(weight: Tensor, indices: Tensor, scale: Tensor) -> Tensor:
    return torch.einsum("bld,bl->bd", weight[indices], scale.softmax(-1)) + 1


@dataclass(frozen=True)
class Case:
    function: Callable[..., Any]
    inputs: Callable[[], Sequence[Tensor]]
    groups: int = 1


CASES: dict[str, Case] = {
    "sum": Case(bag(), ragged),
    "mean": Case(bag("mean"), ragged),
    "maximum": Case(bag("max"), ragged),
    "mean with the last offset": Case(bag("mean", include_last_offset=True), lambda: ragged(last=True)),
    "mean without padding": Case(bag("mean", padding_idx=-5), ragged),
    "sum of bfloat16": Case(bag(), lambda: [table(dtype=torch.bfloat16), *ragged()[1:]]),
    "sum of float64, int32": Case(
        bag(padding_idx=1), lambda: [table(dtype=torch.float64), *(part.int() for part in ragged()[1:])]
    ),
    "weighted": Case(weighted_bag, lambda: [*ragged(), torch.randn(400)]),
    "maximum of a matrix": Case(bag("max"), lambda: [table(), ids()]),
    "many means": Case(many_bags, lambda: [table(rows=70 + k) for k in range(5)] + [ids() for _ in range(5)]),
    "stacked": Case(stacked, lambda: [table(), table(rows=33), ids(), ids(BAGS, 3, rows=33, dtype=torch.int32)], 2),
    "beside numbers": Case(beside_numbers, lambda: [torch.randn(BAGS, 7), table(dtype=torch.float16), ids()], 3),
    "masked mean": Case(masked_mean, lambda: [table(), ids(dtype=torch.int32) * ids(rows=2, dtype=torch.int32)]),
    "weighted mean": Case(weighted_mean, lambda: [table(width=21), ids(), torch.randn(BAGS, LENGTH)]),
    "weighted across": Case(weighted_across, lambda: [table(width=21), ids(), torch.randn(BAGS, LENGTH)]),
    "product of weights": Case(product_of_weights, lambda: [table(width=21), ids(), torch.randn(BAGS, LENGTH)]),
    "columns of weights": Case(columns_of_weights, lambda: [table(), ids(), torch.randn(BAGS, LENGTH)]),
    "product of bfloat16": Case(
        product_of_weights,
        lambda: [table(dtype=torch.bfloat16), ids(), torch.randn(BAGS, LENGTH, dtype=torch.bfloat16)],
    ),
    "factorization machine": Case(factorization_machine, lambda: [table(width=16), ids(BAGS, 70)]),
    "rows and numbers": Case(rows_and_numbers, lambda: [table(width=16), torch.randn(ROWS, 1), ids(BAGS, 39)], 2),
    "one table of many": Case(one_table_of_many, lambda: [table(), ids()]),
    "sequences of bags": Case(sequences_of_bags, lambda: [table(), ids(9, 5, 4)]),
    "remapped": Case(remapped, lambda: [table(), ids(200), ids(rows=200)]),
    "turned table": Case(lambda w, i: w[i].sum(1), lambda: [torch.randn(24, ROWS).t(), ids()]),
    "turned result": Case(lambda w, i: w[i].sum(1).t().contiguous() + 1, lambda: [table(), ids()]),
}
_FOUND: dict[str, Found] = {}


def found_of(name: str) -> Found:
    if name not in _FOUND:
        torch.manual_seed(len(name))
        _FOUND[name] = find(FAMILY, CASES[name].function, CASES[name].inputs())
    return _FOUND[name]


# --- structure -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_every_spelling_is_one_region(name: str) -> None:
    match = found_of(name).match
    assert len(region_of(match).nodes) == len(match.nodes)
    # Tables, indices, weights: rows that were gathered are never read from memory.
    assert all(len(spec.shape) <= 3 for spec in region_of(match).inputs)
    assert len(groups_of(match.plan, match.plan.bags)) == CASES[name].groups


def test_counts_and_masks_are_computed_with_the_bags() -> None:
    assert len(found_of("masked mean").match.inputs) == 2
    # So are weights that sum to one over the positions of a bag, but not over all bags.
    assert len(found_of("weighted mean").match.inputs) == 3
    assert len(found_of("weighted across").match.inputs) > 3


def test_inductor_s_own_softmax_step_is_computed_with_the_bags() -> None:
    """On a GPU one operator gives the greatest score and the sum of the exponentials below it."""
    found = found_of("weighted mean")
    graph = copy.deepcopy(found.graph)
    (top,) = (node for node in graph.nodes if target_name(node) == "aten.amax.default")
    (total,) = (node for node in graph.nodes if target_name(node) == "aten.sum.dim_IntList" and node.args[1] == [1])
    with graph.inserting_before(top):
        both = graph.call_function(torch.ops.prims.prepare_softmax_online.default, (top.args[0], 1))
        both.meta["val"] = (top.meta["val"], total.meta["val"])
        for k, old in enumerate((top, total)):
            new = graph.call_function(operator.getitem, (both, k))
            new.meta["val"] = old.meta["val"]
            old.replace_all_uses_with(new)
            graph.erase_node(old)
    (match,) = FAMILY.find(graph, "cpu")
    assert isinstance(match, Match) and both in match.nodes and len(match.inputs) == 3
    schedule = FAMILY.space(match, CPU).default
    assert kernel_of(FAMILY, match, schedule).source == kernel_of(FAMILY, found.match, schedule).source
    assert len(found_of("factorization machine").match.inputs) == 2


def test_what_gathers_nothing_is_left_alone() -> None:
    weight, indices = table(), ids()
    quiet: list[Callable[[Tensor, Tensor], Any]] = [
        lambda w, i: w.sum(0),
        lambda w, i: functional.embedding(i, w) * 2,
        lambda w, i: (w[3:40] * 2).sum(1),
    ]
    for function in quiet:
        assert find(FAMILY, function, [weight, indices]).results == []
    # Along a row of the table, or at places that count on from given ones.
    others: list[Callable[[Tensor, Tensor], Any]] = [
        lambda w, i: functional.embedding(i, w).sum(2),
        lambda w, i: w[(i[:, 0, None] + torch.arange(30)).clamp(max=ROWS - 1)].sum(1),
    ]
    for function in others:
        (rejection,) = find(FAMILY, function, [weight, indices]).results
        assert isinstance(rejection, Rejection) and rejection.code == "structure" and rejection.message


@pytest.mark.parametrize(
    "function, inputs, code",
    [
        (bag(), lambda: [table(), ids(8, 4)], "size"),
        (bag("max", padding_idx=1), ragged, "unsupported"),
        (lambda w, i: w[i].sum(1), lambda: [torch.randn(40, 9000), ids(3, 2, rows=40)], "size"),
        (lambda w, i: w[i].sum(1), lambda: [torch.randn(40, 90, dtype=torch.complex64), ids(30, 2, rows=40)], "dtype"),
    ],
)
def test_rejections_say_why(function: Callable[..., Any], inputs: Callable[[], Sequence[Tensor]], code: str) -> None:
    (rejection,) = find(FAMILY, function, inputs()).results
    assert isinstance(rejection, Rejection) and rejection.code == code and rejection.message


def test_bags_that_need_one_another_are_apart() -> None:
    def chained(weight: Tensor, indices: Tensor) -> Tensor:
        first = weight[indices].sum(1)
        return weight[(first[:, :LENGTH].relu() * 10).long().clamp(max=ROWS - 1)].sum(1)

    finite = torch.randn(ROWS, 24)
    assert len(find(FAMILY, chained, [finite, ids(200, LENGTH)]).matches) == 2


def elsewhere(graph: torch.fx.Graph) -> torch.fx.Graph:
    """The graph as if it were on another device than a CPU."""
    for node in graph.nodes:
        value = node.meta.get("val")
        if isinstance(value, Tensor):
            node.meta["val"] = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")
    return graph


def test_the_last_offset_counts_on_a_cpu_only() -> None:
    def last_ends(match: Match) -> list[str]:
        return [loop.span.high.op for bag in match.plan.bags for loop in bag.loops]

    found = find(FAMILY, bag("sum", include_last_offset=True), ragged(last=True))
    (other,) = FAMILY.find(elsewhere(copy.deepcopy(found.graph)), "meta")
    assert isinstance(other, Match)
    # There the last bag goes on to the last index.
    assert last_ends(found.match) == ["read"] and last_ends(other) == ["where"]


# --- C++ -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_cpp_agrees_with_eager(name: str, folder: Path) -> None:
    found, turn = found_of(name), list(CASES).index(name)
    match = found.match
    schedules = schedules_of(FAMILY, match, CPU)
    inputs, expected = values_of(found, match.inputs), values_of(found, match.outputs)
    reference = evaluate_fp64(region_of(match), inputs)
    outputs = run_cpp(build(FAMILY, match, schedules[turn % len(schedules)], folder), inputs, expected)
    assert_same(outputs, expected)
    for output, exact, eager in zip(outputs, reference.exact, reference.eager, strict=True):
        error = (output.double() - exact.double()).abs().nan_to_num(0.0, 0.0, 0.0)
        assert bool((error <= allowed_error(exact, eager)).all())


def test_indices_and_offsets_out_of_range_are_reported(folder: Path) -> None:
    found = found_of("sum")
    call = build(FAMILY, found.match, FAMILY.space(found.match, CPU).default, folder)
    inputs, expected = values_of(found, found.match.inputs), values_of(found, found.match.outputs)
    kinds = [("offsets" if len(value) == BAGS else "ids") if value.dim() == 1 else "table" for value in inputs]
    wrong = [("ids", 399, ROWS), ("ids", 0, -1), ("ids", 7, 2**40), ("offsets", 0, 1), ("offsets", BAGS - 1, 401),
             ("offsets", 9, 395), ("offsets", 9, -3), ("offsets", BAGS - 1, 2**40)]  # fmt: skip
    for kind, place, value in wrong:
        changed = [given.clone() if own == kind else given for own, given in zip(kinds, inputs, strict=True)]
        changed[kinds.index(kind)][place] = value
        with pytest.raises(KernelIndexError):
            run_cpp(call, changed, expected)


def test_long_bags_stay_exact(folder: Path) -> None:
    weight, indices = torch.rand(500, 8) + 100, torch.randint(500, (130, 9000))
    found = find(FAMILY, lambda w, i: w[i].sum(1), [weight, indices])
    inputs, expected = values_of(found, found.match.inputs), values_of(found, found.match.outputs)
    (output,) = run_cpp(build(FAMILY, found.match, FAMILY.space(found.match, CPU).default, folder), inputs, expected)
    torch.testing.assert_close(output.double(), weight.double()[indices].sum(1), rtol=1e-6, atol=0.0)


def test_any_number_of_bags(folder: Path) -> None:
    def pooled(indices: Tensor, weight: Tensor) -> Tensor:
        return functional.embedding(indices, weight).sum(1) * 3

    match = find(FAMILY, pooled, [ids(60, 4, rows=50), torch.randn(50, 24)], dynamic=True).match
    schedule = FAMILY.space(match, CPU).default
    for bags in (1, 2, 301):
        given = {"int64": ids(bags, 4, rows=90), "float32": torch.randn(90, 24)}
        inputs = [given[spec.dtype] for spec in region_of(match).inputs]
        sizes = [inputs[which].shape[dim] for _, which, dim in region_of(match).symbols]
        assert_matches_eager(FAMILY, match, inputs, sizes, folder, schedule)


def test_rows_are_fetched_ahead() -> None:
    found = found_of("many means")
    space = FAMILY.space(found.match, CPU)
    source = kernel_of(FAMILY, found.match, space.default).source
    assert source.count("__builtin_prefetch") == 2
    assert "prefetch" not in kernel_of(FAMILY, found.match, {**space.default, "ahead": 0}).source


def test_kernels_are_the_same_every_time_and_pass_the_gate() -> None:
    for name in ("mean", "many means", "stacked"):
        match = found_of(name).match
        for target, language in ((CPU, "cpp"), (CUDA, "triton")):
            schedules = schedules_of(FAMILY, match, target)
            kernels = [kernel_of(FAMILY, match, schedule, language) for schedule in schedules]
            assert kernels[0] == kernel_of(FAMILY, match, schedules[0], language)
            # Short bags have all rows in flight by fewer loads too.
            least = len(schedules) - (2 if language == "triton" else 0)
            assert len({kernel.digest for kernel in kernels}) >= least, (name, language)


# --- Triton ----------------------------------------------------------------------------------------------------------


def interpret() -> None:
    # The interpreter takes its time.
    names = ("mean", "maximum", "mean without padding", "weighted", "sum of bfloat16", "many means", "stacked",
             "masked mean", "beside numbers", "remapped", "rows and numbers", "weighted mean",
             "weighted mean", "weighted mean", "weighted across")  # fmt: skip
    for turn, name in enumerate(names):
        found = found_of(name)
        space = FAMILY.space(found.match, CUDA)
        changes: list[dict[str, int | str]] = [
            {}, {"across": 2, "loads": 2, "bags": 2}, {"across": 1, "vector": 8, "order": "bags", "num_warps": 2}
        ]  # fmt: skip
        chosen = {key: value for key, value in changes[turn % 3].items() if value in space.choices.get(key, ())}
        assert_triton_agrees(FAMILY, found, [{**space.default, **chosen}])


def test_triton_agrees_with_eager_under_the_interpreter() -> None:
    interpreted("test_bags", "interpret")


def compiled(found: Found, schedule: dict[str, Any], folder: Path) -> tuple[str, Any]:
    pytest.importorskip("triton")
    from kevolve_inductor.platforms.triton_build import compile_for

    kernel = kernel_of(FAMILY, found.match, schedule, "triton")
    resources = compile_for(kernel, region_of(found.match), "sm_90", folder)
    assert resources.spills in (0, None)
    return kernel.source, resources


def test_triton_reads_all_indices_before_one_check_and_then_all_rows(folder: Path) -> None:
    tables = [torch.randn(100, 128, dtype=torch.bfloat16) for _ in range(26)]
    found = find(FAMILY, many_bags, [*tables, *(ids(64, 20) for _ in tables)])
    (group,) = groups_of(found.match.plan, found.match.plan.bags)
    assert group.size == 26
    space = FAMILY.space(found.match, CUDA)
    for change, count in (({}, 10), ({"across": 1, "vector": 8}, 20)):
        source, resources = compiled(found, {**space.default, **change}, folder)
        reads = [pointer for pointer, _ in re.findall(r"tl\.load\((\w+)|tl\.device_assert\((\S)", source)]
        assert len(set(reads[:count])) == 1 and reads[count] == "" and len(set(reads[count + 1 :])) == 1
        assert len(reads) == 2 * count + 1 and reads[0] != reads[-1]
        assert (resources.registers or 0) <= 96


def test_numbers_are_gathered_beside_rows(folder: Path) -> None:
    found = found_of("rows and numbers")
    default = FAMILY.space(found.match, CUDA).default
    assert len(groups_of(found.match.plan, joined(found.match.plan.bags))) == 1
    source, resources = compiled(found, default, folder)
    # Five steps of eight positions: the indices of each are read once, and neither table's rows are gathered twice.
    assert source.count("tl.load(") == 15
    assert (resources.registers or 0) <= 64
    assert compiled(found, {**default, "joined": False}, folder)[0].count("tl.load(") == 20


@pytest.mark.parametrize(
    "width, dtype", [(16, torch.float32), (1, torch.float32), (100, torch.float16), (700, torch.float32)]
)
def test_seeds_fit_into_registers(width: int, dtype: torch.dtype, folder: Path) -> None:
    found = find(FAMILY, lambda w, i: w[i].sum(1), [torch.randn(ROWS, width, dtype=dtype), ids(5000, 50)])
    seeds = FAMILY.space(found.match, CUDA).seeds
    assert len(seeds) >= 5
    for seed in seeds[:3]:
        compiled(found, dict(seed), folder)
