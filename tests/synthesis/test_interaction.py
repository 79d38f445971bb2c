"""Dot interaction: which graphs are taken, and whether their kernels compute what eager computes."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.fx
from family_checks import fits_gpu, interpreted
from torch import Tensor
from torch._inductor.compile_fx import compile_fx
from torch._inductor.custom_graph_pass import CustomGraphPass
from torch.nn import functional

from kevolve_inductor.evaluate.closeness import allowed_error
from kevolve_inductor.evaluate.gate import check_kernel
from kevolve_inductor.exc import BuildError, CompilerMissingError, EmissionError, KernelIndexError
from kevolve_inductor.graph.capture import canonical_kernel, capture
from kevolve_inductor.graph.dims import evaluate
from kevolve_inductor.graph.reference import evaluate_fp64, to_graph_module
from kevolve_inductor.graph.region import Region, TensorSpec
from kevolve_inductor.kernel import Kernel
from kevolve_inductor.platforms.cpu import CpuPlatform
from kevolve_inductor.platforms.platform import Target
from kevolve_inductor.synthesis.families.interaction import InteractionFamily
from kevolve_inductor.synthesis.family import Match, Rejection

FAMILY = InteractionFamily()
CPU = Target("cpu", "a chip", (), threads=2, units=2, shared_bytes=2**20, warp_size=16)
CUDA = Target("cuda", "a chip", ("sm_90",), threads=0, units=132, shared_bytes=227 * 1024, warp_size=32)


# --- spellings -------------------------------------------------------------------------------------------------------


def stacked(rows: Tensor) -> Tensor:
    """Every pair of different features, after the first feature itself."""
    products = torch.bmm(rows, rows.transpose(1, 2))
    left, right = torch.tril_indices(rows.shape[1], rows.shape[1], offset=-1)
    return torch.cat([rows[:, 0], products[:, left, right]], dim=1)


def dense_and_rows(dense: Tensor, rows: Tensor) -> Tensor:
    both = torch.cat([dense.unsqueeze(1), rows], dim=1)
    products = both @ both.mT
    left, right = torch.tril_indices(both.shape[1], both.shape[1], offset=0)
    return torch.cat([products[:, left, right], dense], dim=1)


def separate(*features: Tensor) -> Tensor:
    both = torch.stack(features, dim=1)
    left, right = torch.triu_indices(both.shape[1], both.shape[1], offset=1)
    return torch.cat([features[0], (both @ both.transpose(-1, -2))[:, left, right]], dim=-1)


def glued(*features: Tensor) -> Tensor:
    """As the published DLRM writes it: one concatenation, then a view."""
    both = torch.cat(features, dim=1).view(features[0].shape[0], -1, features[0].shape[1])
    products = torch.bmm(both, both.permute(0, 2, 1))
    left = torch.tensor([i for i in range(both.shape[1]) for _ in range(i)])
    right = torch.tensor([j for i in range(both.shape[1]) for j in range(i)])
    return torch.cat([features[0], products[:, left, right]], dim=1)


def flat_index(rows: Tensor, pairs: Tensor) -> Tensor:
    return torch.einsum("bnd,bmd->bnm", rows, rows).flatten(1)[:, pairs]


def flat_constant_index(rows: Tensor) -> Tensor:
    count = rows.shape[1]
    left, right = torch.tril_indices(count, count, offset=-1)
    return torch.bmm(rows, rows.mT).view(-1, count * count)[:, left * count + right]


def scaled(rows: Tensor) -> Tensor:
    products = torch.matmul(rows, rows.mT) / math.sqrt(rows.shape[2])
    left, right = torch.triu_indices(rows.shape[1], rows.shape[1], offset=1)
    return torch.relu(products[:, left, right])


def multiplied_and_summed(rows: Tensor) -> Tensor:
    """Without a matrix product: rows selected twice, multiplied and summed."""
    left, right = torch.triu_indices(rows.shape[1], rows.shape[1], offset=1)
    return (rows[:, left] * rows[:, right]).sum(-1)


def expanded(dense: Tensor, rows: Tensor) -> Tensor:
    both = torch.cat([dense.unsqueeze(1), rows], 1)
    products = (both.unsqueeze(2) * both.unsqueeze(1)).sum(-1)
    left, right = torch.triu_indices(both.shape[1], both.shape[1], offset=1)
    return torch.cat([dense, products[:, left, right]], 1)


def whole_square(dense: Tensor, rows: Tensor) -> Tensor:
    return torch.cat([dense, torch.bmm(rows, rows.mT).flatten(1)], 1)


def looked_up(dense: Tensor, table: Tensor, ids: Tensor) -> Tensor:
    both = torch.cat([torch.relu(dense)[:, None], table[ids]], 1)
    products = both @ both.mT
    left, right = torch.tril_indices(both.shape[1], both.shape[1], offset=-1)
    return torch.cat([torch.relu(dense), products[:, left, right]], 1)


def biased(rows: Tensor, bias: Tensor) -> Tensor:
    """An epilogue that differs from column to column, in another precision."""
    products = torch.bmm(rows, rows.mT)
    left, right = torch.tril_indices(rows.shape[1], rows.shape[1], offset=-1)
    return products[:, left, right].float() * 0.5 + bias


def shuffled(rows: Tensor) -> Tensor:
    """Pairs in no order at all, known when the graph is compiled."""
    count = rows.shape[1]
    order = (torch.arange(count * count) * 7 + 3) % (count * count)
    return torch.bmm(rows, rows.mT).view(-1, count * count)[:, order]


def every_other(rows: Tensor) -> Tensor:
    left, right = torch.triu_indices(rows.shape[1], rows.shape[1], offset=1)[:, ::2]
    return torch.bmm(rows, rows.mT)[:, left, right]


def padded(rows: Tensor) -> Tensor:
    """Sizes rounded up for the matrix product, as Inductor does it on GPUs."""
    count = rows.shape[1]
    more, deeper = -count % 8, -rows.shape[2] % 4
    both = functional.pad(rows, (0, deeper, 0, more))
    products = torch.bmm(both, functional.pad(rows.mT, (0, more, 0, deeper)))[:, :count, :count]
    left, right = torch.triu_indices(count, count)
    return products[:, left, right]


@dataclass(frozen=True)
class Case:
    function: Callable[..., Tensor]
    inputs: Callable[[], Sequence[Tensor]]
    loaded: bool = False
    ids: int = 0


def normal(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape).to(dtype)


CASES: dict[str, Case] = {
    "stacked": Case(stacked, lambda: [normal(19, 27, 16)]),
    "stacked bfloat16": Case(stacked, lambda: [normal(9, 10, 24, dtype=torch.bfloat16)]),
    "stacked float64": Case(stacked, lambda: [normal(7, 6, 13, dtype=torch.float64)]),
    "transposed rows": Case(stacked, lambda: [normal(9, 16, 5).transpose(1, 2)]),
    "sliced rows": Case(stacked, lambda: [normal(20, 9, 40)[::2, 1:8, 3:35]]),
    "dense and rows": Case(dense_and_rows, lambda: [normal(17, 32), normal(17, 7, 32)]),
    "dense and rows float16": Case(
        dense_and_rows, lambda: [normal(5, 8, dtype=torch.float16), normal(5, 3, 8, dtype=torch.float16)]
    ),
    "separate": Case(separate, lambda: [normal(19, 16) for _ in range(6)]),
    "separate bfloat16": Case(separate, lambda: [normal(6, 16, dtype=torch.bfloat16) for _ in range(4)]),
    "glued": Case(glued, lambda: [normal(8, 16) for _ in range(5)], loaded=True, ids=5),
    "flat index": Case(flat_index, lambda: [normal(8, 5, 16), torch.randint(-25, 25, (11,))], loaded=True, ids=25),
    "flat constant index": Case(flat_constant_index, lambda: [normal(8, 5, 16)]),
    "scaled": Case(scaled, lambda: [normal(10, 16, 16)]),
    "multiplied and summed": Case(multiplied_and_summed, lambda: [normal(9, 7, 20)]),
    "expanded": Case(expanded, lambda: [normal(9, 20), normal(9, 4, 20)]),
    "whole square": Case(whole_square, lambda: [normal(9, 3), normal(9, 5, 12)]),
    "looked up": Case(looked_up, lambda: [normal(9, 16), normal(50, 16), torch.randint(0, 50, (9, 4))], ids=50),
    "biased": Case(biased, lambda: [normal(9, 6, 16, dtype=torch.bfloat16), normal(15)]),
    "shuffled": Case(shuffled, lambda: [normal(9, 5, 16)], loaded=True, ids=25),
    "every other": Case(every_other, lambda: [normal(9, 6, 16)]),
    "padded": Case(padded, lambda: [normal(9, 6, 15)]),
    "one sample": Case(stacked, lambda: [normal(1, 4, 2)]),
}  # fmt: skip
_MATCHES: dict[str, Match] = {}


def find(
    function: Callable[..., Any], inputs: Sequence[Tensor], dynamic: bool | None = False
) -> list[Match | Rejection]:
    return list(FAMILY.find(graph_of(function, inputs, dynamic), "cpu"))


class _FirstGraph(CustomGraphPass):
    """Stops the compilation where the backend would act; what follows takes longest and is not needed here."""

    graph: torch.fx.Graph | None = None

    def __call__(self, graph: torch.fx.Graph) -> None:
        self.graph = copy.deepcopy(graph)
        raise StopIteration

    def uuid(self) -> None:
        return None


def graph_of(function: Callable[..., Any], inputs: Sequence[Tensor], dynamic: bool | None) -> torch.fx.Graph:
    first = _FirstGraph()

    def backend(gm: torch.fx.GraphModule, example_inputs: Sequence[Any]) -> Any:
        return compile_fx(gm, example_inputs, config_patches={"post_grad_custom_post_pass": first})

    torch._dynamo.reset()
    with torch.no_grad(), pytest.raises(torch._dynamo.exc.BackendCompilerFailed):
        torch.compile(function, backend=backend, dynamic=dynamic)(*inputs)
    assert first.graph is not None
    return first.graph


def match_of(name: str) -> Match:
    if name not in _MATCHES:
        case = CASES[name]
        (match,) = find(case.function, case.inputs())
        assert isinstance(match, Match), match
        _MATCHES[name] = match
    return _MATCHES[name]


def region_of(match: Match) -> Region:
    return capture(match.nodes, match.inputs, match.outputs).region


def kernel_of(match: Match, schedule: Mapping[str, Any], language: Any = "cpp") -> Kernel:
    return canonical_kernel(FAMILY.emit(match, schedule, language), match.inputs)


def inputs_of(region: Region, ids: int, batch: int = 0) -> list[Tensor]:
    return [tensor_of(spec, ids, batch) for spec in region.inputs]


def tensor_of(spec: TensorSpec, ids: int, batch: int) -> Tensor:
    symbols = {f"s{k}": batch for k in range(4)}
    shape, stride = ([evaluate(size, symbols) for size in sizes] for sizes in (spec.shape, spec.stride))
    value = torch.empty_strided(shape, stride, dtype=getattr(torch, spec.dtype))
    if value.is_floating_point():
        return value.copy_(torch.randn(shape))
    return value.copy_(torch.randint(0, ids, shape))


def build(match: Match, schedule: Mapping[str, Any], folder: Path) -> Callable[..., None]:
    try:
        return CpuPlatform().build(kernel_of(match, schedule), region_of(match), folder).call
    except CompilerMissingError as error:
        pytest.skip(str(error))


def assert_agrees(region: Region, inputs: Sequence[Tensor], output: Tensor) -> None:
    """As near to the fp64 result as the judge of candidates wants it."""
    reference = evaluate_fp64(region, inputs)
    exact, eager = reference.exact[0], reference.eager[0]
    assert output.dtype == eager.dtype and output.stride() == eager.stride()
    assert torch.equal(output.isnan(), eager.isnan())
    infinite = eager.isinf()
    assert torch.equal(output[infinite], eager[infinite])
    finite = exact.isfinite() & eager.isfinite()
    excess = (output.double() - exact).abs() - allowed_error(exact, eager)
    assert not bool((excess[finite] > 0).any()), float(excess[finite].max())


# --- structure -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_every_spelling_is_found_whole(name: str) -> None:
    match = match_of(name)
    region = region_of(match)
    # The whole graph is one region: nothing but its inputs and its output touches memory.
    (returned,) = match.nodes[0].graph.find_nodes(op="output")
    assert returned.args[0] == match.outputs and match.region_class == "long tail"
    assert name == "shuffled" or all(node.op in ("placeholder", "get_attr") for node in match.inputs)
    module = to_graph_module(region)
    inputs = inputs_of(region, CASES[name].ids)
    (result,) = module(*inputs)
    assert result.shape == tuple(region.output_specs[0].shape)
    assert match.flops == 2 * result.shape[0] * match.plan.pair_count * match.plan.shape.width


def test_known_pairs_are_no_inputs() -> None:
    for name, case in CASES.items():
        integers = [spec for spec in region_of(match_of(name)).inputs if spec.dtype == "int64"]
        if name == "looked up":
            assert len(integers) == 1
        else:
            assert bool(integers) == case.loaded, name


def test_parts_are_read_where_they_are_unless_the_whole_is_needed() -> None:
    def keeps(dense: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        both = torch.cat([dense[:, None], rows], 1)
        left, right = torch.tril_indices(4, 4, offset=-1)
        return torch.bmm(both, both.mT)[:, left, right], both

    parts = region_of(match_of("dense and rows"))
    assert sorted(spec.shape for spec in parts.inputs) == [(17, 7, 32), (17, 32)]
    (match,) = find(keeps, [normal(6, 8), normal(6, 3, 8)])
    assert isinstance(match, Match)
    assert [spec.shape for spec in region_of(match).inputs] == [(6, 4, 8)]


def test_products_needed_elsewhere_are_left() -> None:
    def returned(rows: Tensor) -> tuple[Tensor, Tensor]:
        products = torch.bmm(rows, rows.mT)
        return products, products[:, [1, 2], [0, 1]]

    (rejection,) = find(returned, [normal(4, 3, 8)])
    assert isinstance(rejection, Rejection) and rejection.code == "structure"


def test_a_matrix_product_alone_is_left() -> None:
    (rejection,) = find(lambda rows: torch.bmm(rows, rows.mT), [normal(4, 3, 8)])
    assert isinstance(rejection, Rejection) and rejection.code == "structure" and rejection.family == "interaction"


def test_products_of_different_values_are_no_interaction() -> None:
    assert find(lambda a, b: torch.bmm(a, b.mT).flatten(1).relu(), [normal(4, 3, 8), normal(4, 3, 8)]) == []


def test_different_rows_of_one_value_are_rejected() -> None:
    def halves(rows: Tensor) -> Tensor:
        return torch.cat([torch.bmm(rows[:, :3], rows[:, 3:].mT).flatten(1), rows[:, 0]], 1)

    (rejection,) = find(halves, [normal(4, 6, 8)])
    assert isinstance(rejection, Rejection) and rejection.code == "structure"


def test_dynamic_features_are_rejected() -> None:
    rows = normal(8, 5, 16)
    torch._dynamo.mark_dynamic(rows, 1)
    (rejection,) = find(flat_index, [rows, torch.randint(0, 20, (7,))], dynamic=None)
    assert isinstance(rejection, Rejection) and rejection.code == "dynamic"


def test_too_many_features_for_a_tile_are_rejected_on_a_gpu_only() -> None:
    assert isinstance(find(stacked, [normal(2, 150, 4)])[0], Match)
    match = find(stacked, [normal(2, 150, 4)])[0]
    assert isinstance(match, Match)
    with pytest.raises(EmissionError):
        FAMILY.emit(match, FAMILY.space(match, CUDA).default, "triton")


# --- C++ -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_cpp_agrees_with_eager(name: str, folder: Path) -> None:
    match, number = match_of(name), list(CASES).index(name)
    space = FAMILY.space(match, CPU)
    # The other schedules take turns, so that the compiler is not the slowest part of the whole suite.
    schedules = [space.default, space.seeds[number // 2 % len(space.seeds)]][: 1 + number % 2]
    with ThreadPoolExecutor(2) as pool:
        calls = list(pool.map(lambda schedule: build(match, schedule, folder), schedules))
    region = region_of(match)
    for call in calls:
        inputs = inputs_of(region, CASES[name].ids)
        output = torch.full_like(to_graph_module(region)(*inputs)[0], math.nan)
        call(*inputs, output)
        assert_agrees(region, inputs, output)


@pytest.mark.parametrize("tile", ["dots 5x5", "panel 16x1", "panel 12x2", "lanes 4x6"])
def test_every_algorithm_survives_special_values(tile: str, folder: Path) -> None:
    match = match_of("stacked")
    schedule = {**FAMILY.space(match, CPU).default, "tile": tile, "vector_bytes": 32}
    call = build(match, schedule, folder)
    region = region_of(match)
    (rows,) = inputs_of(region, 0)
    flat = rows.view(-1)
    for position, value in enumerate((math.nan, math.inf, -math.inf, -0.0, 1e-40, 3e38)):
        flat[(position + 1) * 1009 % flat.numel()] = value
    output = torch.full_like(stacked(rows), -1.0)
    call(rows, output)
    assert_agrees(region, [rows], output)


def dynamic_match(function: Callable[..., Tensor], inputs: Sequence[Tensor], dim: int) -> Match:
    for value in inputs:
        torch._dynamo.mark_dynamic(value, dim)
    (match,) = find(function, inputs, dynamic=None)
    assert isinstance(match, Match), match
    return match


def feature_major(features: Tensor) -> Tensor:
    """The batch is not the outermost dimension, so that strides grow with it."""
    return stacked(features.transpose(0, 1))


@pytest.mark.parametrize("kind", ["separate", "feature major"])
def test_a_dynamic_batch_takes_any_size(kind: str, folder: Path) -> None:
    if kind == "separate":
        match = dynamic_match(separate, [normal(9, 16) for _ in range(4)], 0)
    else:
        match = dynamic_match(feature_major, [normal(5, 9, 16)], 1)
    region = region_of(match)
    assert region.symbol_names == ("s0",)
    default = FAMILY.space(match, CPU).default
    for schedule in (default, {**default, "tile": "lanes 4x4"}):
        call = build(match, schedule, folder)
        for batch in (0, 1, 5, 33):
            inputs = inputs_of(region, 0, batch)
            output = torch.full_like(to_graph_module(region)(*inputs)[0], math.nan)
            call(*inputs, output, batch)
            assert_agrees(region, inputs, output)


def test_indices_out_of_range_are_reported(folder: Path) -> None:
    for name, bad in (("flat index", 25), ("flat index", -26), ("looked up", 50)):
        match = match_of(name)
        region = region_of(match)
        call = build(match, FAMILY.space(match, CPU).default, folder)
        inputs = inputs_of(region, CASES[name].ids)
        output = to_graph_module(region)(*inputs)[0]
        call(*inputs, output)
        integers = next(value for value in inputs if value.dtype == torch.int64)
        integers.view(-1)[-1] = bad
        with pytest.raises(KernelIndexError):
            call(*inputs, output)


def test_kernels_are_the_same_every_time_and_pass_the_gate() -> None:
    match = match_of("dense and rows")
    for target, language in ((CPU, "cpp"), (CUDA, "triton")):
        space = FAMILY.space(match, target)
        assert kernel_of(match, space.default, language) == kernel_of(match, space.default, language)
        kernels = {
            kernel.digest: kernel for kernel in (kernel_of(match, s, language) for s in (space.default, *space.seeds))
        }
        assert len(kernels) > len(space.seeds) // 2
        for kernel in kernels.values():
            check_kernel(kernel)
        assert all(set(seed) == set(space.choices) for seed in space.seeds)


def test_features_that_no_cache_keeps_may_leave_it_first() -> None:
    matches = [find(stacked, [torch.empty(batch, 27, 128, dtype=torch.bfloat16)])[0] for batch in (1024, 16384)]
    assert all(isinstance(match, Match) for match in matches)
    spaces = [FAMILY.space(match, CUDA) for match in matches]
    assert [space.choices["once"] for space in spaces] == [(False,), (False, True)]
    source = kernel_of(matches[1], {**spaces[1].default, "once": True}, "triton").source
    assert source.count("evict_first") == 1 and source.index("evict_first") < source.index("tl.dot(")


# --- Triton ----------------------------------------------------------------------------------------------------------

# The interpreter multiplies bfloat16 numbers as the integers they are stored in.
INTERPRETED = [name for name in CASES if "bfloat16" not in name and name != "biased"]


def triton_schedules(match: Match) -> list[dict[str, Any]]:
    default = FAMILY.space(match, CUDA).default
    changes: list[dict[str, Any]] = [
        {},
        {"store": "gather", "group": 1, "loop": 2, "chunk": 16},
        {"store": "gather", "group": 1, "precision": "tf32x3"},
        {"group": 1, "programs": 3, "once": True},
        {"group": 2, "loop": 3},
        {"group": 2, "programs": 2},
    ]
    schedules = [{**default, **change} for change in changes]
    return schedules if not any(spec.dtype == "int64" for spec in region_of(match).inputs) else schedules[:4]


def interpret() -> None:
    from kevolve_inductor.platforms.cuda import launch

    torch.manual_seed(0)
    matches = {name: match_of(name) for name in INTERPRETED}
    matches["dynamic"] = dynamic_match(feature_major, [normal(5, 9, 16)], 1)
    for name, match in matches.items():
        region, batch = region_of(match), 7
        for schedule in triton_schedules(match):
            inputs = inputs_of(region, CASES[name].ids if name in CASES else 0, batch)
            (expected,) = to_graph_module(region)(*inputs)
            output = torch.full_like(expected, math.nan)
            launch(kernel_of(match, schedule, "triton"), inputs, [output], dict.fromkeys(region.symbol_names, batch))
            worst = float(((output - expected).abs() / expected.abs().clamp(min=1)).max())
            assert worst <= (4e-3 if "float16" in name else 1e-5), (name, schedule, worst)


def test_triton_agrees_with_eager_under_the_interpreter() -> None:
    interpreted("test_interaction", "interpret")


@pytest.mark.parametrize("name", ["stacked bfloat16", "separate", "looked up", "flat index"])
def test_triton_compiles_without_spilling(name: str, folder: Path) -> None:
    pytest.importorskip("triton")
    from kevolve_inductor.platforms.triton_build import compile_for

    match = match_of(name)
    kernel = kernel_of(match, FAMILY.space(match, CUDA).default, "triton")
    try:
        resources = compile_for(kernel, region_of(match), "sm_90", folder)
    except BuildError as error:
        pytest.fail(str(error))
    assert resources.spills in (0, None) and (resources.shared_bytes or 0) <= 64 * 1024


def test_a_click_through_batch_compiles_for_hopper_with_vector_loads(folder: Path) -> None:
    """Twenty-seven features of 128 bfloat16 numbers, from one tensor and from twenty-seven."""
    pytest.importorskip("triton")
    from kevolve_inductor.platforms.triton_build import compile_for

    one = find(stacked, [normal(64, 27, 128, dtype=torch.bfloat16)])[0]
    many = find(separate, [normal(64, 128, dtype=torch.bfloat16) for _ in range(27)])[0]
    for match in (one, many):
        assert isinstance(match, Match)
        kernel = kernel_of(match, FAMILY.space(match, CUDA).default, "triton")
        resources = compile_for(kernel, region_of(match), "sm_90", folder)
        assert resources.spills in (0, None) and (resources.registers or 0) <= 128
        assert (resources.shared_bytes or 0) <= 16 * 1024


def on_gpu(value: Tensor) -> Tensor:
    """With the same strides, which a plain copy gives up where rows have gaps."""
    memory = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="cuda")
    return memory.copy_(value)


@pytest.mark.gpu
@pytest.mark.parametrize("name", CASES)
def test_triton_agrees_with_eager_on_a_gpu(name: str, folder: Path) -> None:
    from kevolve_inductor.platforms.cuda import launch

    match = match_of(name)
    region = region_of(match)
    space = FAMILY.space(match, CUDA)
    more = [{**space.default, "precision": one} for one in space.choices["precision"] if one not in ("ieee", "tf32x3")]
    for schedule in (*triton_schedules(match), *more):
        kernel = kernel_of(match, schedule, "triton")
        if not fits_gpu(kernel, region, folder):
            continue
        inputs = [on_gpu(value) for value in inputs_of(region, CASES[name].ids)]
        reference = evaluate_fp64(region, inputs)
        output = torch.full_like(reference.eager[0], math.nan)
        launch(kernel, inputs, [output], {})
        assert_agrees(region, inputs, output)
