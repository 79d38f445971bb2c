"""Scatters on a CPU: which spellings are taken, and whether kernels compute what eager computes, in eager's order."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from family_checks import (
    CPU,
    Found,
    assert_matches_eager,
    assert_same,
    build,
    find,
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
from kevolve_inductor.synthesis.families.scatter import ScatterFamily
from kevolve_inductor.synthesis.family import Rejection

FAMILY = ScatterFamily()
EVENTS, ROWS, WIDTH = 1500, 37, 40


def values(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    drawn = torch.randn(shape or (EVENTS, WIDTH)) * 3
    drawn.view(-1)[7], drawn.view(-1)[500] = math.nan, -math.inf
    return drawn.to(dtype)


def places(*shape: int, rows: int = ROWS, dtype: torch.dtype = torch.int64) -> Tensor:
    return torch.randint(rows, shape or (EVENTS,), dtype=dtype)


def zeros(x: Tensor, *shape: int) -> Tensor:
    return torch.zeros(*shape, dtype=x.dtype)


def by_index_put(x: Tensor, at: Tensor) -> Tensor:
    return zeros(x, ROWS, *x.shape[at.dim() :]).index_put((at,), x, accumulate=True)


def by_scatter_add(x: Tensor, at: Tensor) -> Tensor:
    return torch.ones(ROWS, x.shape[1], dtype=x.dtype).scatter_add(0, at[:, None].expand(-1, x.shape[1]), x)


def reduced(how: str) -> Callable[[Tensor, Tensor], Tensor]:
    def scatter(x: Tensor, at: Tensor) -> Tensor:
        return zeros(x, ROWS, x.shape[1]).scatter_reduce(0, at[:, None].expand_as(x), x, how)

    return scatter


def onto_a_base(x: Tensor, at: Tensor, base: Tensor) -> Tensor:
    return (base * 2).index_add(0, at, x.relu(), alpha=3)


def gradient_of_bags(gradient: Tensor, at: Tensor) -> Tensor:
    """Each bag's gradient goes to every row that it pooled; rows of number 3 are padding."""
    rows = gradient[:, None].expand(*at.shape, WIDTH) / at.shape[1]
    real = ((at >= 0) & (at < ROWS) & (at != 3)).unsqueeze(-1)
    return torch.ops.aten._unsafe_masked_index_put_accumulate(zeros(gradient, ROWS, WIDTH), real, [at], rows)


def gradient_of_a_table(
    gradient: Tensor, at: Tensor, bags: Tensor, sizes: Tensor, *scale: Tensor, mode: int, padding: int = -1
) -> Tensor:
    """What ``EmbeddingBag`` leaves to be called backward; the number of events is that of ``at``."""
    starts, none, weights = torch.arange(len(gradient)), at[:0], scale[0] if scale else None
    return torch.ops.aten._embedding_bag_backward(
        gradient, at, starts, bags, sizes, none, ROWS, False, mode, False, weights, padding
    )


def of_bags(count: int = 90) -> list[Tensor]:
    bags = torch.randint(count, (EVENTS,)).sort().values
    return [torch.randn(count, WIDTH), places(), bags, torch.bincount(bags, minlength=count).clamp(min=1)]


@dataclass(frozen=True)
class Case:
    function: Callable[..., Any]
    inputs: Callable[[], Sequence[Tensor]]


CASES: dict[str, Case] = {
    "index_put": Case(by_index_put, lambda: [values(), places() - ROWS]),
    "index_put of a matrix": Case(by_index_put, lambda: [values(50, 30, WIDTH), places(50, 30)]),
    "index_put of numbers": Case(by_index_put, lambda: [values(7000), places(7000)]),
    "index_put of blocks": Case(by_index_put, lambda: [values(300, 3, 17), places(300)]),
    "index_put bfloat16": Case(by_index_put, lambda: [values(dtype=torch.bfloat16), places(dtype=torch.int32)]),
    "many float16 events in few rows": Case(lambda x, i: zeros(x, 3, x.shape[1]).index_add(0, i, x), lambda: [
        torch.randn(WIDTH, 5000, dtype=torch.float16).t(), torch.randint(3, (5000,))]),
    "index_put int64": Case(by_index_put, lambda: [places(EVENTS, 8), places()]),
    "two indices": Case(
        lambda x, i, j: zeros(x, ROWS, 5, WIDTH).index_put((i, j), x, accumulate=True),
        lambda: [values(), places(), places(rows=5)],
    ),
    "one row of values": Case(
        lambda x, i: zeros(x, ROWS, WIDTH).index_put((i,), x, accumulate=True),
        lambda: [values(1, 600)[:, :WIDTH], places(5000)],
    ),
    "index_add": Case(lambda x, i: zeros(x, ROWS, WIDTH).index_add(0, i, x * 2), lambda: [values(), places()]),
    "onto a base": Case(onto_a_base, lambda: [values(), places(), torch.randn(WIDTH, ROWS).t().contiguous()]),
    "scatter_add": Case(by_scatter_add, lambda: [values(dtype=torch.float64), places()]),
    "greatest": Case(reduced("amax"), lambda: [values(), places()]),
    "least float16": Case(reduced("amin"), lambda: [values(dtype=torch.float16), places()]),
    "gradient of bags": Case(gradient_of_bags, lambda: [values(200, WIDTH), places(200, 6)]),
    "gradient of a table": Case(partial(gradient_of_a_table, mode=0), of_bags),
    "of means without padding": Case(partial(gradient_of_a_table, mode=1, padding=3), of_bags),
    "of weighted bags": Case(partial(gradient_of_a_table, mode=0), lambda: [*of_bags(), torch.randn(EVENTS)]),
    "turned values": Case(by_index_put, lambda: [values(WIDTH, EVENTS).t(), places()]),
}  # fmt: skip
_FOUND: dict[str, Found] = {}


def found_of(name: str) -> Found:
    if name not in _FOUND:
        torch.manual_seed(len(name))
        _FOUND[name] = find(FAMILY, CASES[name].function, CASES[name].inputs())
    return _FOUND[name]


@pytest.mark.parametrize("name", CASES)
def test_cpp_agrees_with_eager(name: str, folder: Path) -> None:
    found, turn = found_of(name), list(CASES).index(name)
    match = found.match
    assert len(region_of(match).nodes) == len(match.nodes)
    schedules = schedules_of(FAMILY, match, CPU)
    inputs, expected = values_of(found, match.inputs), values_of(found, match.outputs)
    reference = evaluate_fp64(region_of(match), inputs)
    (output,) = outputs = run_cpp(build(FAMILY, match, schedules[turn % len(schedules)], folder), inputs, expected)
    # Eager rounds sums of half precision after every event; it is not to be followed in that.
    if output.dtype not in (torch.bfloat16, torch.float16):
        assert_same(outputs, expected)
    if output.is_floating_point():
        error = (output.double() - reference.exact[0]).abs().nan_to_num(0.0, 0.0, 0.0)
        assert bool((error <= allowed_error(reference.exact[0], reference.eager[0])).all())


def test_producers_are_computed_inside() -> None:
    """Gradients are neither repeated for every row of a bag nor divided before; fills are not read."""
    assert [len(spec.shape) for spec in region_of(found_of("gradient of bags").match).inputs] == [2, 2]
    assert all(node.op == "placeholder" for node in found_of("onto a base").match.inputs)


def test_every_schedule_gives_the_same_bits(folder: Path) -> None:
    found = found_of("index_add")
    inputs, expected = values_of(found, found.match.inputs), values_of(found, found.match.outputs)
    schedules = schedules_of(FAMILY, found.match, CPU)
    assert any(schedule["parts"] > 1 for schedule in schedules) and any(s["ranges"] == 1 for s in schedules)
    results = [run_cpp(build(FAMILY, found.match, s, folder), inputs, expected)[0] for s in schedules]
    assert all(torch.equal(result.nan_to_num(1.5), results[0].nan_to_num(1.5)) for result in results)


def test_one_row_may_take_everything(folder: Path) -> None:
    match = found_of("index_put").match
    given = [values().nan_to_num(0.0, 0.0, 0.0), torch.full((EVENTS,), -1)]
    inputs = [given[0] if spec.dtype == "float32" else given[1] for spec in region_of(match).inputs]
    assert_matches_eager(FAMILY, match, inputs, [], folder, FAMILY.space(match, CPU).default)


@pytest.mark.parametrize(
    "name, wrong",
    [("index_put", ROWS), ("index_put", -ROWS - 1), ("index_add", ROWS), ("scatter_add", -1), ("greatest", ROWS)],
)
def test_indices_out_of_range_are_reported(name: str, wrong: int, folder: Path) -> None:
    found = found_of(name)
    inputs, expected = values_of(found, found.match.inputs), values_of(found, found.match.outputs)
    for value in (wrong, 2**40):
        changed = [tensor.clone() for tensor in inputs]
        next(tensor for tensor in changed if tensor.dtype is torch.int64)[3] = value
        with pytest.raises(KernelIndexError):
            run_cpp(build(FAMILY, found.match, FAMILY.space(found.match, CPU).default, folder), changed, expected)


def test_any_number_of_events(folder: Path) -> None:
    def added(x: Tensor, at: Tensor) -> Tensor:
        return torch.zeros(300, 8).index_add(0, at, x)

    match = find(FAMILY, added, [torch.randn(600, 8), places(600, rows=300)], dynamic=True).match
    for events in (2, 2000):
        given = {"float32": torch.randn(events, 8), "int64": places(events, rows=300)}
        inputs = [given[spec.dtype] for spec in region_of(match).inputs]
        assert_matches_eager(FAMILY, match, inputs, [events], folder, FAMILY.space(match, CPU).default)


@pytest.mark.parametrize(
    "function, inputs, code",
    [
        (by_index_put, lambda: [torch.randn(40, 5), places(40)], "size"),
        (lambda x, i: zeros(x, EVENTS, ROWS).scatter_add(1, i, x), lambda: [values(), places(EVENTS, WIDTH)], "structure"),
        (lambda x, i: zeros(x, ROWS, WIDTH).scatter_add(0, i, x), lambda: [values(), places(EVENTS, WIDTH)], "structure"),
        (reduced("mean"), lambda: [values(), places()], "structure"),
        (lambda x, i: zeros(x, EVENTS, ROWS).index_put((torch.arange(EVENTS)[:, None] * 0, i), x, accumulate=True),
         lambda: [values().to(torch.complex64), places(EVENTS, WIDTH)], "dtype"),
        (lambda x, i: torch.zeros((), dtype=x.dtype).index_add(0, i, x),
         lambda: [torch.randn(()).to(torch.bfloat16), torch.zeros(1, dtype=torch.int64)], "structure"),
    ],
)  # fmt: skip
def test_rejections_say_why(function: Callable[..., Any], inputs: Callable[[], Sequence[Tensor]], code: str) -> None:
    (rejection,) = find(FAMILY, function, inputs()).results
    assert isinstance(rejection, Rejection) and rejection.code == code and rejection.message


def test_writes_that_do_not_combine_are_left_alone() -> None:
    assert find(FAMILY, lambda x, i: zeros(x, ROWS, WIDTH).index_put((i,), x), [values(), places()]).results == []


def test_kernels_are_the_same_every_time_and_pass_the_gate() -> None:
    for name in ("index_put", "gradient of bags"):
        match = found_of(name).match
        schedules = schedules_of(FAMILY, match, CPU)
        kernels = [kernel_of(FAMILY, match, schedule) for schedule in schedules]
        assert kernels[0] == kernel_of(FAMILY, match, schedules[0])
        assert len({kernel.digest for kernel in kernels}) == len(schedules)
