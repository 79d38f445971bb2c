"""Gradients of dot interactions: which spellings are taken, and whether kernels compute what eager computes."""

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

from kevolve_inductor.evaluate.closeness import allowed_error
from kevolve_inductor.exc import KernelIndexError
from kevolve_inductor.graph.reference import evaluate_fp64
from kevolve_inductor.synthesis.families.pair_gradients import PairGradientsFamily
from kevolve_inductor.synthesis.family import Rejection
from kevolve_inductor.testing.graphs import post_grad_graphs

FAMILY = PairGradientsFamily()


def written(like: Tensor, places: Sequence[Tensor], gradient: Tensor, *shape: int) -> Tensor:
    zeros = torch.zeros(shape, dtype=like.dtype, device=like.device)
    return torch.ops.aten.index_put(zeros, [None, *places], gradient, True)


def gradient_of_pairs(gradient: Tensor, x: Tensor, left: Tensor, right: Tensor) -> Tensor:
    square = written(x, [left, right], gradient, len(x), x.shape[1], x.shape[1])
    return torch.bmm(square, x) + torch.bmm(x.mT, square).mT


def of_places(gradient: Tensor, x: Tensor, places: Tensor) -> Tensor:
    """Places in the flattened products; the transposed product comes first."""
    rows = x.shape[1]
    square = written(x, [places], gradient, len(x), rows * rows).view(len(x), rows, rows)
    return torch.bmm(square.mT, x) + torch.bmm(square, x)


def of_a_layer(gradient: Tensor, dense: Tensor, others: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """What comes in belongs to dense features as well; the rows are put together anew."""
    x = torch.cat([dense.unsqueeze(1), others.relu()], 1)
    return gradient_of_pairs(gradient[:, dense.shape[1] :] * 2, x, left, right)


def with_the_first(gradient: Tensor, x: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """Of ``cat([x[:, 0], products / 8])``: a term between the products, and a number that these are scaled by."""
    width, zeros = x.shape[2], torch.zeros_like(x)
    square = written(x, [left, right], gradient[:, width:], len(x), x.shape[1], x.shape[1]) / 8
    first = torch.select_scatter(zeros, gradient[:, :width], 1, 0)
    return first + torch.bmm(square, x) + torch.bmm(x.mT, square).mT


def below(rows: int, offset: int = -1) -> tuple[Tensor, Tensor]:
    left, right = torch.tril_indices(rows, rows, offset)
    return left, right


def pairs(batch: int, rows: int, width: int, *, offset: int = -1, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    left, right = below(rows, offset)
    return [torch.randn(batch, len(left), dtype=dtype), torch.randn(batch, rows, width, dtype=dtype), left, right]


def meeting(batch: int, rows: int, width: int, count: int) -> list[Tensor]:
    """Pairs of which some are one and the same, up to all of a kind; negative numbers count from the end."""
    left, right = torch.randint(-rows, rows, (2, count))
    left[: count // 3], right[: count // 3] = 2, 1
    return [torch.randn(batch, count), torch.randn(batch, rows, width), left, right]


def layer(batch: int, rows: int, width: int) -> list[Tensor]:
    left, right = below(rows)
    gradient = torch.randn(batch, width + len(left))
    return [gradient, torch.randn(batch, width), torch.randn(batch, rows - 1, width), left, right]


@dataclass(frozen=True)
class Case:
    function: Callable[..., Any]
    inputs: Callable[[], list[Tensor]]


CASES = {
    "below the diagonal": Case(gradient_of_pairs, lambda: pairs(9, 7, 24)),
    "with the diagonal": Case(gradient_of_pairs, lambda: pairs(5, 20, 7, offset=0)),
    "bfloat16": Case(gradient_of_pairs, lambda: pairs(4, 27, 64, dtype=torch.bfloat16)),
    "float16": Case(gradient_of_pairs, lambda: pairs(3, 16, 40, dtype=torch.float16)),
    "float64": Case(gradient_of_pairs, lambda: pairs(3, 6, 33, dtype=torch.float64)),
    "pairs that meet": Case(gradient_of_pairs, lambda: meeting(6, 5, 16, 150)),
    "places": Case(of_places, lambda: [torch.randn(6, 70), torch.randn(6, 9, 12), torch.randint(81, (70,))]),
    "a layer": Case(of_a_layer, lambda: layer(7, 34, 20)),
    "with the first": Case(with_the_first, lambda: [torch.randn(5, 12 + 21), *pairs(5, 7, 12)[1:]]),
    "rows side by side": Case(
        lambda g, x, i, j: gradient_of_pairs(g, x.mT, i, j),
        lambda: [torch.randn(6, 15), torch.randn(6, 48, 6), *below(6)],
    ),
}
_FOUND: dict[str, Found] = {}


def found_of(name: str) -> Found:
    if name not in _FOUND:
        torch.manual_seed(len(name))
        _FOUND[name] = find(FAMILY, CASES[name].function, CASES[name].inputs())
    return _FOUND[name]


@pytest.mark.parametrize("name", CASES)
def test_every_spelling_is_one_region(name: str) -> None:
    match = found_of(name).match
    (returned,) = match.nodes[0].graph.find_nodes(op="output")
    assert returned.args[0] == match.outputs
    assert len(region_of(match).nodes) == len(match.nodes)


def test_the_gradient_of_an_interaction_is_found() -> None:
    left, right = below(8)
    _, backward = post_grad_graphs(lambda x: torch.bmm(x, x.mT)[:, left, right].relu(), [normal(4, 8, 16)], train=True)
    assert [type(one).__name__ for one in FAMILY.find(backward, "cpu")] == ["Match"]


def normal(*shape: int) -> Tensor:
    return torch.randn(shape).requires_grad_()


def put_once(gradient: Tensor, x: Tensor, left: Tensor, right: Tensor) -> Tensor:
    square = torch.ops.aten.index_put(x @ x.mT * 0, [None, left, right], gradient, False)
    return torch.bmm(square, x) + torch.bmm(square.mT, x)


def once_only(gradient: Tensor, x: Tensor, left: Tensor, right: Tensor) -> Tensor:
    square = written(x, [left, right], gradient, len(x), x.shape[1], x.shape[1])
    return torch.bmm(square, x) + torch.bmm(square, x.flip(1).contiguous().flip(1))


def onto_products(gradient: Tensor, x: Tensor, left: Tensor, right: Tensor) -> Tensor:
    square = torch.ops.aten.index_put(x @ x.mT, [None, left, right], gradient, True)
    return torch.bmm(square, x) + torch.bmm(square.mT, x)


def needed_elsewhere(gradient: Tensor, x: Tensor, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    square = written(x, [left, right], gradient, len(x), x.shape[1], x.shape[1])
    one = torch.bmm(square, x)
    return one + torch.bmm(square.mT, x), one


@pytest.mark.parametrize("function", [put_once, onto_products, needed_elsewhere])
def test_other_sums_of_products_are_rejected(function: Callable[..., Any]) -> None:
    (rejection,) = find(FAMILY, function, pairs(4, 6, 8)).results
    assert isinstance(rejection, Rejection) and rejection.code == "structure"


def test_twice_the_same_product_is_no_gradient() -> None:
    assert all(isinstance(one, Rejection) for one in find(FAMILY, once_only, pairs(4, 6, 8)).results)


@pytest.mark.parametrize("name", CASES)
def test_cpp_agrees_with_eager(name: str, folder: Path) -> None:
    found, turn = found_of(name), list(CASES).index(name)
    schedules = schedules_of(FAMILY, found.match, CPU)
    inputs, expected = values_of(found, found.match.inputs), values_of(found, found.match.outputs)
    reference = evaluate_fp64(region_of(found.match), inputs)
    for schedule in (schedules[turn % len(schedules)], schedules[(2 * turn + 1) % len(schedules)]):
        (output,) = run_cpp(build(FAMILY, found.match, schedule, folder), inputs, expected)
        error = (output.double() - reference.exact[0]).abs()
        assert bool((error <= allowed_error(reference.exact[0], reference.eager[0])).all())


def test_what_is_not_finite_goes_where_eager_has_it(folder: Path) -> None:
    found = found_of("below the diagonal")
    inputs = [value.clone() for value in values_of(found, found.match.inputs)]
    features = next(value for value in inputs if value.dim() == 3)
    features[0, 3, 5], features[1, 2, 0] = torch.inf, torch.nan
    assert_matches_eager(FAMILY, found.match, inputs, [], folder, FAMILY.space(found.match, CPU).default)


@pytest.mark.parametrize("wrong", [7, -8, 2**40])
def test_rows_out_of_range_are_reported(wrong: int, folder: Path) -> None:
    found = found_of("below the diagonal")
    inputs = [value.clone() for value in values_of(found, found.match.inputs)]
    next(value for value in inputs if value.dtype is torch.int64)[3] = wrong
    expected = values_of(found, found.match.outputs)
    with pytest.raises(KernelIndexError):
        run_cpp(build(FAMILY, found.match, FAMILY.space(found.match, CPU).default, folder), inputs, expected)


def test_any_number_of_samples(folder: Path) -> None:
    left, right = below(6)

    def function(gradient: Tensor, x: Tensor) -> Tensor:
        return gradient_of_pairs(gradient, x, left, right)

    match = find(FAMILY, function, pairs(9, 6, 16)[:2], dynamic=True).match
    for batch in (2, 40):
        given = {2: torch.randn(batch, len(left)), 3: torch.randn(batch, 6, 16)}
        constants = iter((left, right))
        inputs = [
            given[len(spec.shape)] if spec.dtype == "float32" else next(constants) for spec in region_of(match).inputs
        ]
        sizes = [batch] * len(region_of(match).symbols)
        assert_matches_eager(FAMILY, match, inputs, sizes, folder, FAMILY.space(match, CPU).default)


def test_kernels_are_the_same_every_time_and_pass_the_gate() -> None:
    for language, target in (("cpp", CPU), ("triton", CUDA)):
        match = found_of("a layer").match
        schedules = schedules_of(FAMILY, match, target)
        kernels = [kernel_of(FAMILY, match, schedule, language) for schedule in schedules if _fits(match, schedule)]
        assert kernels[0] == kernel_of(FAMILY, match, schedules[0], language)
        assert len({kernel.digest for kernel in kernels}) == len(kernels)


def _fits(match: Any, schedule: dict[str, Any]) -> bool:
    return int(schedule.get("num_warps", 4)) >= 4


def interpret() -> None:
    # The interpreter multiplies bit patterns of bfloat16.
    for turn, name in enumerate(name for name in CASES if name != "bfloat16"):
        found = found_of(name)
        schedules = [one for one in schedules_of(FAMILY, found.match, CUDA) if one["num_warps"] >= 4]
        programs = {"programs": 3} if turn % 2 else {}
        assert_triton_agrees(FAMILY, found, [{**schedules[turn % len(schedules)], **programs}])


def test_triton_agrees_with_eager_under_the_interpreter() -> None:
    interpreted("test_pair_gradients", "interpret")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_seeds_compile_for_hopper_without_spilling(dtype: torch.dtype, folder: Path) -> None:
    pytest.importorskip("triton")
    from kevolve_inductor.platforms.triton_build import compile_for

    match = find(FAMILY, gradient_of_pairs, pairs(4096, 27, 64, dtype=dtype)).match
    for schedule in FAMILY.space(match, CUDA).seeds[:2]:
        resources = compile_for(kernel_of(FAMILY, match, schedule, "triton"), region_of(match), "sm_90", folder)
        assert resources.spills in (0, None)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("count", [351, 2000])
def test_every_seed_agrees_with_eager_on_the_gpu(dtype: torch.dtype, count: int) -> None:
    """Pairs that are each there once, and such as meet one another."""
    from kevolve_inductor.platforms.cuda import launch

    inputs = pairs(500, 27, 64, dtype=dtype) if count == 351 else meeting(500, 27, 64, count)
    inputs = [value.to("cuda", dtype if value.is_floating_point() else None) for value in inputs]
    found = find(FAMILY, gradient_of_pairs, inputs, device="cuda")
    given, region = values_of(found, found.match.inputs), region_of(found.match)
    reference = evaluate_fp64(region, given)
    for schedule in FAMILY.space(found.match, CUDA).seeds:
        kernel = kernel_of(FAMILY, found.match, schedule, "triton")
        results = [torch.full_like(reference.eager[0], torch.nan) for _ in range(3)]
        for result in results:
            launch(kernel, given, [result], {})
        error = (results[0].double() - reference.exact[0]).abs()
        assert bool((error <= allowed_error(reference.exact[0], reference.eager[0])).all()), schedule
        assert all(torch.equal(results[0], again) for again in results[1:])
