"""Chains of small products: which graphs are taken, and whether their kernels compute what eager computes."""

from __future__ import annotations

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
    empty_like,
    find,
    fits_gpu,
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

from kevolve_inductor.evaluate.closeness import allowed_error
from kevolve_inductor.exc import EmissionError, KernelIndexError
from kevolve_inductor.graph.reference import evaluate_fp64, to_graph_module
from kevolve_inductor.synthesis.families.chains import ChainsFamily
from kevolve_inductor.synthesis.families.chains.plan import Dot, Pool, Regrouped
from kevolve_inductor.synthesis.family import Match

FAMILY = ChainsFamily()


# --- spellings -------------------------------------------------------------------------------------------------------


def interaction(rows: Tensor, projection: Tensor) -> Tensor:
    return rows @ (rows.transpose(1, 2) @ projection)


def normalised_interaction(rows: Tensor, projection: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    flat = torch.bmm(rows, torch.einsum("bnd,nk->bdk", rows, projection)).flatten(1)
    return functional.layer_norm(flat, flat.shape[1:], weight, bias)


def interaction_of_rows(rows: Tensor, projection: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return functional.layer_norm(interaction(rows, projection), projection.shape[-1:], weight, bias).relu()


def feed_forward(x: Tensor, up: Tensor, down: Tensor, scale: Tensor) -> Tensor:
    hidden = functional.gelu(torch.bmm(x, up))
    return functional.rms_norm(torch.bmm(hidden, down), (x.shape[2],), scale)


def normalised_feed_forward(x: Tensor, up: Tensor, down: Tensor, scale: Tensor) -> Tensor:
    hidden = functional.rms_norm(torch.bmm(x, up), (up.shape[2],)) * 2
    return functional.rms_norm(torch.bmm(hidden, down), (x.shape[2],), scale)


def perceptron(x: Tensor, *layers: Tensor) -> Tensor:
    for number in range(0, len(layers) - 2, 2):
        x = functional.linear(x, layers[number], layers[number + 1]).relu()
    return functional.linear(x, layers[-2], layers[-1]).sigmoid()


def cross(x: Tensor, *layers: Tensor) -> Tensor:
    """Low-rank cross layers: x * (U V x + b) + x, one after another."""
    first = x
    for up, down, bias in zip(layers[0::3], layers[1::3], layers[2::3], strict=True):
        x = first * (functional.linear(functional.linear(x, down), up) + bias) + x
    return x


def gate(x: Tensor, down: Tensor, up: Tensor) -> Tensor:
    """Squeeze and excite: the gate itself is made of two products."""
    return x * torch.sigmoid(torch.relu(x @ down) @ up)


def normalised_first(x: Tensor, weight: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """Two norms in front of the first product, of which one subtracts a mean; rows too wide to be held."""
    rows = functional.rms_norm(functional.layer_norm(x, x.shape[1:]), x.shape[1:], weight)
    return x + functional.gelu(rows @ up) @ down


def gated_feed_forward(x: Tensor, up: Tensor, gate: Tensor, down: Tensor) -> Tensor:
    return (functional.silu(x @ gate) * (x @ up)) @ down


def split_rows(x: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """Linear layers see plain matrices, what stands between them samples of rows."""
    hidden = functional.linear(x, up)
    return functional.linear(functional.layer_norm(hidden + 1, hidden.shape[2:]), down)


def shared_feed_forward(x: Tensor, up: Tensor, own: Tensor) -> Tensor:
    """The first weight is shared by all samples, so that the first product is one of plain matrices."""
    return torch.bmm(functional.silu(functional.linear(x, up)), own) + 1


def padded_layers(x: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """Sizes rounded up for the matrix products, as Inductor does it on GPUs."""
    more = -x.shape[1] % 8
    hidden = functional.pad(x, (0, more)) @ functional.pad(up, (0, 0, 0, more))
    return torch.tanh(hidden) @ down


def pooling(x: Tensor) -> Tensor:
    return x.sum(1).square() - x.square().sum(1)


def second_order(x: Tensor, bias: Tensor) -> Tensor:
    """Factorisation machines as most write them: half the sum over the width, a score per sample."""
    pairs = torch.sum(x, dim=1) ** 2 - torch.sum(x**2, dim=1)
    return 0.5 * pairs.sum(1, keepdim=True) + bias


def by_hand(x: Tensor) -> Tensor:
    total, squares = x.sum(dim=1, keepdim=True), (x * x).sum(dim=1, keepdim=True)
    return (0.5 * (total * total - squares)).sum(-1).squeeze(1)


def weighted(values: Tensor, table: Tensor, ids: Tensor) -> Tensor:
    """Features are looked up and scaled on the way; means in place of sums."""
    x = table[ids] * values[..., None]
    return x.mean(1).pow(2) - x.pow(2).mean(1)


def pooled_perceptron(x: Tensor, *layers: Tensor) -> Tensor:
    return perceptron(pooling(x), *layers)


def moments(x: Tensor) -> Tensor:
    """Sums over an axis in the middle of four, behind two that are one row each."""
    return torch.sqrt((x * x).mean(2) - x.mean(2) ** 2 + 1e-3)


def normal(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return (torch.randn(shape) / 2).to(dtype)


def layers_of(*widths: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    pairs = zip(widths[1:], widths, strict=False)
    return [
        tensor
        for out, into in pairs
        for tensor in (normal(out, into, dtype=dtype) / into**0.5, normal(out, dtype=dtype))
    ]


def cross_layers(count: int, width: int, rank: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    shapes = ((width, rank), (rank, width), (width,))
    return [normal(*shape, dtype=dtype) / shape[-1] ** 0.5 for _ in range(count) for shape in shapes]


@dataclass(frozen=True)
class Case:
    function: Callable[..., Any]
    inputs: Callable[[], Sequence[Tensor]]
    rowwise: bool
    steps: int


HALF = torch.float16
CASES: dict[str, Case] = {
    "interaction": Case(interaction, lambda: [normal(3, 40, 20), normal(40, 24)], False, 2),
    "own projections": Case(
        interaction, lambda: [normal(3, 20, 40, dtype=HALF), normal(3, 20, 17, dtype=HALF)], False, 2
    ),
    "regrouped": Case(interaction, lambda: [normal(3, 9, 100), normal(3, 9, 300)], False, 1),
    "regrouped, small": Case(interaction, lambda: [normal(3, 10, 25), normal(3, 10, 41)], False, 1),
    "regrouped, narrow": Case(interaction, lambda: [normal(3, 9, 100), normal(3, 9, 100)], False, 1),
    "regrouped, 100 rows": Case(
        interaction, lambda: [normal(2, 100, 151, dtype=HALF) / 4, normal(2, 100, 333, dtype=HALF)], False, 1
    ),
    "tall": Case(interaction, lambda: [normal(2, 160, 224, dtype=HALF) / 4, normal(2, 160, 448, dtype=HALF)], True, 1),
    "tall, odd": Case(
        interaction, lambda: [normal(2, 130, 151, dtype=HALF) / 4, normal(2, 130, 333, dtype=HALF)], True, 1
    ),
    "tall, three pieces": Case(
        interaction, lambda: [normal(2, 197, 221, dtype=HALF) / 4, normal(2, 197, 301, dtype=HALF)], True, 1
    ),
    "tall, narrow": Case(interaction, lambda: [normal(2, 130, 150), normal(2, 130, 150)], True, 1),
    "tall interaction of rows": Case(
        interaction_of_rows,
        lambda: [normal(*shape, dtype=HALF) / 4 for shape in ((2, 140, 220), (2, 140, 130), (130,), (130,))],
        True,
        3,
    ),
    "normalised interaction": Case(
        normalised_interaction, lambda: [normal(3, 20, 33), normal(20, 18), normal(360), normal(360)], False, 4
    ),
    "interaction of rows": Case(
        interaction_of_rows, lambda: [normal(3, 20, 33), normal(20, 18), normal(18), normal(18)], False, 4
    ),
    "feed forward": Case(
        feed_forward, lambda: [normal(3, 70, 24), normal(3, 24, 18), normal(3, 18, 24), normal(24)], True, 3
    ),
    "normalised feed forward": Case(
        normalised_feed_forward, lambda: [normal(3, 40, 24), normal(3, 24, 18), normal(3, 18, 24), normal(24)], True, 4
    ),
    "shared feed forward": Case(
        shared_feed_forward, lambda: [normal(3, 33, 24), normal(18, 24), normal(3, 18, 40)], True, 2
    ),
    "normalised first": Case(
        normalised_first, lambda: [normal(40, 300), normal(300), normal(300, 20), normal(20, 300)], True, 5
    ),
    "gated feed forward": Case(
        gated_feed_forward, lambda: [normal(70, 72), normal(72, 40), normal(72, 40), normal(40, 72)], True, 3
    ),
    "split rows": Case(split_rows, lambda: [normal(5, 14, 40), normal(24, 40), normal(40, 24)], True, 4),
    "perceptron": Case(perceptron, lambda: [normal(150, 100), *layers_of(100, 40, 20, 1)], True, 3),
    "wide perceptron": Case(perceptron, lambda: [normal(40, 36), *layers_of(36, 300, 30, 12)], True, 3),
    "perceptron float16": Case(
        perceptron, lambda: [normal(70, 64, dtype=HALF), *layers_of(64, 32, 32, 3, dtype=HALF)], True, 3
    ),
    "cross": Case(cross, lambda: [normal(70, 300), *cross_layers(3, 300, 20)], True, 6),
    "narrow cross": Case(cross, lambda: [normal(70, 90), *cross_layers(2, 90, 20)], True, 4),
    "padded layers": Case(padded_layers, lambda: [normal(70, 27), normal(27, 32), normal(32, 24)], True, 2),
    "gate": Case(gate, lambda: [normal(90, 72), normal(72, 18), normal(18, 72)], True, 2),
}
POOLS: dict[str, Case] = {
    "pooling": Case(pooling, lambda: [normal(150, 39, 16)], True, 2),
    "moments bfloat16": Case(moments, lambda: [normal(15, 10, 13, 24, dtype=torch.bfloat16)], True, 2),
    "turned": Case(pooling, lambda: [normal(150, 20, 7).transpose(1, 2)], True, 2),
    "second order": Case(second_order, lambda: [normal(150, 26, 10), normal(1)], True, 3),
    "by hand": Case(by_hand, lambda: [normal(150, 70, 18)], True, 3),
    "weighted": Case(
        weighted, lambda: [normal(90, 11), normal(70, 20), torch.randint(0, 70, (90, 11))], True, 2
    ),
    "moments": Case(moments, lambda: [normal(15, 10, 12, 20)], True, 2),
}  # fmt: skip
BOTH = {"pooled perceptron": Case(pooled_perceptron, lambda: [normal(90, 9, 24), *layers_of(24, 20, 1)], True, 4)}
ALL = {**CASES, **POOLS, **BOTH}
_FOUND: dict[str, Found] = {}


def on_gpu(found: Found) -> Found:
    """The same graph of tensors on a GPU, which need not be here."""
    mode = FakeTensorMode()

    def moved(value: Any) -> Any:
        if isinstance(value, tuple | list):
            return type(value)(moved(one) for one in value)
        if not isinstance(value, Tensor):
            return value
        with mode:
            return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="cuda")

    for node in found.graph.nodes:
        if "val" in node.meta:
            node.meta["val"] = moved(node.meta["val"])
    return Found(found.graph, list(FAMILY.find(found.graph, "cuda")), found.examples)


def found_of(name: str) -> Found:
    if name not in _FOUND:
        torch.manual_seed(len(name))
        _FOUND[name] = on_gpu(find(FAMILY, ALL[name].function, ALL[name].inputs()))
    return _FOUND[name]


def on_cpu(function: Callable[..., Any], inputs: Sequence[Tensor]) -> Found:
    return find(FAMILY, function, inputs)


# --- structure -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALL)
def test_every_spelling_is_one_region(name: str) -> None:
    found = found_of(name)
    match = found.match
    (returned,) = found.graph.find_nodes(op="output")
    assert returned.args[0] == match.outputs
    assert all(node.op == "placeholder" for node in match.inputs)
    assert match.plan.rowwise == ALL[name].rowwise and len(match.plan.steps) == ALL[name].steps
    assert len(region_of(match).nodes) == len(match.nodes)


def test_the_cheaper_order_of_two_products_is_taken() -> None:
    assert isinstance(found_of("regrouped").match.plan.steps[0], Regrouped)
    assert not any(isinstance(step, Regrouped) for step in found_of("own projections").match.plan.steps)


def test_many_rows_are_regrouped_where_the_written_order_cannot_be_held() -> None:
    steps = {}
    for features, width, columns in ((160, 224, 448), (256, 224, 448), (160, 128, 128), (160, 128, 64)):
        with FakeTensorMode():
            found = find(FAMILY, interaction, halves((1024, features, width), (1024, features, columns)))
        (step, *_) = on_gpu(found).match.plan.steps
        steps[features, width, columns] = type(step)
    assert steps == {(160, 224, 448): Regrouped, (256, 224, 448): Regrouped, (160, 128, 128): Regrouped,
                     (160, 128, 64): Dot}  # fmt: skip


def test_the_written_order_is_there_as_well() -> None:
    match = found_of("regrouped, small").match
    space = FAMILY.space(match, CUDA)
    # Among the first, so that a quick search has both.
    assert {seed["regrouped"] for seed in space.seeds[:3]} == {True, False}
    kernels = [kernel_of(FAMILY, match, {**space.seeds[2], "regrouped": order}, "triton") for order in (True, False)]
    assert ["_square" in kernel.source for kernel in kernels] == [True, False]
    for name in ("own projections", "regrouped, narrow"):
        assert "regrouped" not in FAMILY.space(found_of(name).match, CUDA).choices


def test_a_product_alone_and_products_too_large_are_left() -> None:
    def wide(x: Tensor, up: Tensor, down: Tensor) -> Tensor:
        return functional.gelu(x @ up) @ down

    assert on_gpu(find(FAMILY, lambda x, w: torch.relu(x @ w), [normal(64, 32), normal(32, 32)])).results == []
    assert on_gpu(find(FAMILY, wide, [normal(64, 512), normal(512, 600), normal(600, 512)])).results == []
    # The first product is narrow enough, but not what it would be multiplied with.
    (rejection,) = on_gpu(find(FAMILY, wide, [normal(64, 40), normal(40, 600), normal(600, 512)])).rejections
    assert rejection.code == "size"


def test_what_is_needed_elsewhere_is_written_as_well() -> None:
    def both(x: Tensor, up: Tensor, down: Tensor) -> tuple[Tensor, Tensor]:
        hidden = torch.relu(x @ up)
        return hidden, hidden @ down

    match = on_gpu(find(FAMILY, both, [normal(256, 64), normal(64, 32), normal(32, 64)])).match
    assert len(match.outputs) == 2 and len(match.plan.stores) == 2


def test_what_cannot_be_expressed_ends_a_chain() -> None:
    def function(x: Tensor, up: Tensor, down: Tensor) -> tuple[Tensor, Tensor]:
        hidden = torch.relu((x @ up).relu() @ down)
        return torch.lgamma(hidden).sum(), hidden > 1

    match = on_gpu(find(FAMILY, function, [normal(256, 64), normal(64, 32), normal(32, 64)])).match
    assert [node.name for node in match.outputs] == ["relu_1"]


def test_rows_that_are_joined_end_a_chain() -> None:
    """A softmax over samples needs all of them."""

    def joined(x: Tensor, up: Tensor, down: Tensor, last: Tensor) -> Tensor:
        return torch.softmax((x @ up).relu() @ down, 0) @ last

    found = on_gpu(find(FAMILY, joined, [normal(256, 64), normal(64, 32), normal(32, 64), normal(64, 16)]))
    assert [len(match.plan.steps) for match in found.matches] == [2]


def test_a_dynamic_number_of_rows_is_left_unless_rows_stay_apart() -> None:
    def other_rows(x: Tensor, y: Tensor, values: Tensor) -> Tensor:
        return x @ (y.mT @ values)

    x, y, values = normal(3, 20, 40), normal(3, 9, 40), normal(3, 9, 300)
    torch._dynamo.mark_dynamic(x, 1)
    (rejection,) = on_gpu(find(FAMILY, other_rows, [x, y, values], dynamic=True)).rejections
    assert rejection.code == "dynamic"
    x, up, down = normal(3, 70, 24), normal(3, 24, 18), normal(3, 18, 24)
    torch._dynamo.mark_dynamic(x, 1)
    match = on_gpu(find(FAMILY, feed_forward, [x, up, down, normal(24)], dynamic=True)).match
    assert match.plan.rowwise and len(region_of(match).symbol_names) >= 2
    assert (
        "cdiv"
        in kernel_of(FAMILY, match, {**FAMILY.space(match, CUDA).default, "rows": 32}, "triton").launches[0].grid[0]
    )


def test_sums_that_do_not_meet_or_read_different_memory_are_no_pooling() -> None:
    x, y = normal(150, 9, 16), normal(150, 9, 16)
    assert not on_cpu(lambda x: (x.sum(1), x.square().sum(1)), [x]).matches
    assert not on_cpu(lambda x, y: x.sum(1) * y.sum(1), [x, y]).matches
    assert on_cpu(lambda x: x.sum(1).relu(), [x]).results == []
    assert on_cpu(lambda x: x.sum(-1).square() - x.square().sum(-1), [x]).results == []


def test_half_precision_is_left_to_gpus() -> None:
    found = on_cpu(pooling, [normal(150, 13, 24, dtype=HALF)])
    assert [rejection.code for rejection in found.rejections] == ["dtype"]
    assert on_gpu(found).match


def test_products_are_for_gpus_only() -> None:
    assert on_cpu(perceptron, ALL["perceptron"].inputs()).results == []
    match = on_cpu(pooled_perceptron, ALL["pooled perceptron"].inputs()).match
    assert all(isinstance(step, Pool) for step in match.plan.steps)
    with pytest.raises(EmissionError):
        FAMILY.emit(found_of("perceptron").match, {"lanes": 8, "unroll": 1, "block": 16}, "cpp")


# --- C++ -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", POOLS)
def test_cpp_agrees_with_eager(name: str, folder: Path) -> None:
    found = on_cpu(POOLS[name].function, POOLS[name].inputs())
    match, turn = found.match, list(POOLS).index(name)
    schedules = schedules_of(FAMILY, match, CPU)
    inputs, expected = values_of(found, match.inputs), values_of(found, match.outputs)
    for schedule in (schedules[0], schedules[1 + turn % (len(schedules) - 1)]):
        assert_same(run_cpp(build(FAMILY, match, schedule, folder), inputs, expected), expected)


def test_cpp_keeps_what_is_not_finite(folder: Path) -> None:
    match = on_cpu(pooling, [normal(150, 39, 16)]).match
    x = normal(150, 39, 16)
    x.view(-1)[::97], x.view(-1)[1::131] = float("nan"), float("inf")
    assert_matches_eager(FAMILY, match, [x], [], folder, FAMILY.space(match, CPU).default)


def test_a_dynamic_batch_takes_any_size(folder: Path) -> None:
    match = find(FAMILY, pooling, [normal(150, 39, 16)], dynamic=True).match
    assert region_of(match).symbol_names == ("s0",)
    for rows in (1, 2, 333):
        assert_matches_eager(FAMILY, match, [normal(rows, 39, 16)], [rows], folder, FAMILY.space(match, CPU).default)


def test_indices_out_of_range_are_reported(folder: Path) -> None:
    found = on_cpu(weighted, POOLS["weighted"].inputs())
    call = build(FAMILY, found.match, FAMILY.space(found.match, CPU).default, folder)
    inputs = [value.clone() for value in values_of(found, found.match.inputs)]
    (ids,) = [value for value in inputs if value.dtype is torch.int64]
    ids[3, 4] = 70
    with pytest.raises(KernelIndexError):
        call(*inputs, *[empty_like(value) for value in values_of(found, found.match.outputs)])


def test_kernels_are_the_same_every_time_and_pass_the_gate() -> None:
    for name, target, language in (("pooling", CPU, "cpp"), ("regrouped", CUDA, "triton"), ("cross", CUDA, "triton")):
        match = found_of(name).match
        schedules = schedules_of(FAMILY, match, target)
        kernels = [kernel_of(FAMILY, match, schedule, language) for schedule in schedules]
        assert kernels[0] == kernel_of(FAMILY, match, schedules[0], language)
        assert len({kernel.digest for kernel in kernels}) > 2


def test_units_behind_the_last_one_repeat_it() -> None:
    """Four tiles of rows fill a program of eight only by half."""
    inputs = [normal(256, 64), *layers_of(64, 32, 20)]
    match = on_gpu(find(FAMILY, perceptron, inputs)).match
    default = FAMILY.space(match, CUDA).default
    sources = [kernel_of(FAMILY, match, {**default, "rows": 64, "loop": n}, "triton").source for n in (1, 4, 8)]
    assert ["tl.minimum(" in source for source in sources] == [False, False, True]


# --- Triton ----------------------------------------------------------------------------------------------------------


def teach_interpreter() -> None:
    """The interpreter knows no functions of the device's own library."""
    import triton.language as tl
    from triton.language.extra import libdevice

    libdevice.rsqrt, libdevice.erf = lambda x: tl.rsqrt(x), lambda x: tl.erf(x)
    libdevice.tanh = lambda x: 2 * tl.sigmoid(2 * x) - 1


def interpret() -> None:
    teach_interpreter()
    for number, name in enumerate(ALL):
        found = found_of(name)
        schedules = [s for s in schedules_of(FAMILY, found.match, CUDA) if s["precision"] == "ieee"]
        schedules = schedules or [{**FAMILY.space(found.match, CUDA).default, "precision": "ieee"}]
        looped = [s for s in schedules if s["loop"] != 1]
        written = [s for s in schedules if not s.get("regrouped", True)][:1]
        assert_triton_agrees(FAMILY, found, [schedules[0], *written, *(looped or schedules)[number % 2 :][:1]])
    interpret_what_is_not_finite()
    interpret_dynamic_rows()


def interpret_many_rows() -> None:
    """Some rows at a time, and all of them in pieces."""
    teach_interpreter()
    for name, sizes in (
        ("tall", ((64, 64), (256, 64))),
        ("tall, odd", ((128, 64), (256, 32))),
        ("tall, three pieces", ((64, 64),)),
        ("tall, narrow", ((256, 128),)),
    ):
        found = found_of(name)
        schedule = {**FAMILY.space(found.match, CUDA).default, "precision": "ieee"}
        assert_triton_agrees(FAMILY, found, [{**schedule, "rows": rows, "block": block} for rows, block in sizes])
    interpret_many_rows_that_are_not_finite()


def interpret_many_rows_that_are_not_finite() -> None:
    torch.manual_seed(3)
    found = on_gpu(find(FAMILY, interaction, [normal(2, 135, 150), normal(2, 135, 149)]))
    rows, projection = sorted(found.examples.values(), key=lambda value: -value.shape[-1])[:2]
    default = {**FAMILY.space(found.match, CUDA).default, "precision": "ieee", "block": 64}
    schedules = [{**default, "rows": rows} for rows in (64, 256)]
    # One column: what stands beside it is computed anew from all rows.
    for change in (float("inf"), float("nan")):
        projection[1, 40, 7] = change
        assert not values_of(found, found.match.outputs)[0][1, :, 7].isfinite().any()
        assert_triton_agrees(FAMILY, found, schedules)
    # One of the last rows, whose square overflows, but is multiplied by zero.
    rows[1, :, 7], projection[1] = rows[1, :, 7].abs(), projection[0].abs()
    rows[1, 131, 7], projection[1, 131] = 1e25, 0.0
    assert values_of(found, found.match.outputs)[0].isfinite().all()
    assert_triton_agrees(FAMILY, found, schedules)


def interpret_what_is_not_finite() -> None:
    """Both orders of a product of three give NaN in different places: the written one counts."""
    # In half precision what is stored is a number of its own, which is made anew as well.
    halves = [120 * normal(40, 32, 50, dtype=torch.float16) for _ in range(2)]
    assert 0 < interaction(*halves).isnan().sum() < 1000
    found = on_gpu(find(FAMILY, interaction, halves))
    assert isinstance(found.match.plan.steps[0], Regrouped)
    assert_triton_agrees(FAMILY, found, [FAMILY.space(found.match, CUDA).default])
    found = found_of("regrouped")
    for change in (float("inf"), float("nan"), 1e25):
        for value in found.examples.values():
            if value.shape[-1] == 300:
                value[1, 2, 7] = change
            else:
                value[2, 3, 5] = change
        schedule = {**FAMILY.space(found.match, CUDA).default, "precision": "ieee"}
        assert_triton_agrees(FAMILY, found, [schedule])


def interpret_dynamic_rows() -> None:
    from kevolve_inductor.platforms.cuda import launch

    match = on_gpu(find(FAMILY, interaction, [normal(3, 20, 40), normal(3, 20, 17)], dynamic=True)).match
    schedule = {**FAMILY.space(match, CUDA).default, "precision": "ieee"}
    inputs = [normal(5, *spec.shape[1:]) for spec in region_of(match).inputs]
    expected = to_graph_module(region_of(match))(*inputs)
    outputs = [empty_like(value) for value in expected]
    launch(kernel_of(FAMILY, match, schedule, "triton"), inputs, outputs, {"s0": 5})
    assert_same(outputs, expected)


def test_triton_agrees_with_eager_under_the_interpreter() -> None:
    interpreted("test_chains", "interpret")


def test_many_rows_agree_with_eager_under_the_interpreter() -> None:
    interpreted("test_chains", "interpret_many_rows")


@pytest.mark.gpu
@pytest.mark.parametrize("name", ALL)
def test_triton_agrees_with_eager_on_a_gpu(name: str, folder: Path) -> None:
    from kevolve_inductor.platforms.cuda import launch

    found = found_of(name)
    region = region_of(found.match)
    inputs = [value.cuda() for value in values_of(found, found.match.inputs)]
    reference = evaluate_fp64(region, inputs)
    fitting = 0
    for schedule in FAMILY.space(found.match, CUDA).seeds:
        kernel = kernel_of(FAMILY, found.match, schedule, "triton")
        if not fits_gpu(kernel, region, folder):
            continue
        outputs = [torch.full_like(value, torch.nan) for value in reference.eager]
        launch(kernel, inputs, outputs, {})
        fitting += 1
        for output, exact, eager in zip(outputs, reference.exact, reference.eager, strict=True):
            assert not bool(((output.double() - exact).abs() > allowed_error(exact, eager)).any())
        if fitting == 4:
            break
    assert fitting


def half(*shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.bfloat16)


def halves(*shapes: tuple[int, ...]) -> list[Tensor]:
    return [half(*shape) for shape in shapes]


CROSS = ((1024, 64), (64, 1024), (1024,))
LARGE: dict[str, tuple[Callable[..., Any], tuple[tuple[int, ...], ...], int]] = {
    "pooling": (pooling, ((65536, 39, 64),), 128),
    "normalised interaction": (normalised_interaction, ((4096, 128, 128), (128, 32), (4096,), (4096,)), 168),
    "regrouped": (interaction, ((1024, 40, 224), (1024, 40, 448)), 255),
    "tall": (interaction, ((1024, 160, 224), (1024, 160, 448)), 255),
    "tall, 256": (interaction, ((1024, 256, 224), (1024, 256, 448)), 255),
    "feed forward": (normalised_feed_forward, ((4096, 64, 128), (4096, 128, 32), (4096, 32, 128), (128,)), 255),
    "perceptron": (perceptron, ((131072, 256), (128, 256), (128,), (64, 128), (64,), (1, 64), (1,)), 255),
    "cross": (cross, ((65536, 1024), *CROSS, *CROSS, *CROSS), 255),
}


@pytest.mark.parametrize("name", LARGE)
def test_triton_compiles_for_hopper_without_spilling(name: str, folder: Path) -> None:
    """At sizes of recommendation models, of which the tensors are never made."""
    pytest.importorskip("triton")
    from kevolve_inductor.platforms.triton_build import compile_for

    function, shapes, registers = LARGE[name]
    with FakeTensorMode():
        found = find(FAMILY, function, halves(*shapes))
    match = on_gpu(found).match
    schedule = FAMILY.space(match, CUDA).seeds[0]
    resources = compile_for(kernel_of(FAMILY, match, schedule, "triton"), region_of(match), "sm_90", folder)
    assert resources.spills in (0, None) and (resources.registers or 0) <= registers
    assert isinstance(match, Match) and (resources.shared_bytes or 0) <= CUDA.shared_bytes
