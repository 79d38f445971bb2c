"""Scans: which graphs are taken, and whether their kernels compute what eager computes."""

from __future__ import annotations

import math
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
    interpreted,
    kernel_of,
    region_of,
    run_cpp,
    schedules_of,
    values_of,
)
from torch import Tensor
from torch.nn.functional import pad

from kevolve_inductor.evaluate.closeness import allowed_error
from kevolve_inductor.evaluate.overflow import index_overflow
from kevolve_inductor.graph.reference import evaluate_fp64
from kevolve_inductor.synthesis.families.scans import ScansFamily
from kevolve_inductor.synthesis.family import Rejection

FAMILY = ScansFamily()


def awkward(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Numbers with ties, signed zeros, infinities and NaN, some of them first in their lines."""
    generator = torch.Generator().manual_seed(sum(shape))
    values = torch.randn(shape, generator=generator) * 2
    values.view(-1)[::3] = values.view(-1)[::3].round()
    flat = values.view(-1)
    flat[5::97] = -0.0
    flat[3::211] = math.inf
    flat[::223] = -math.inf
    flat[113::307] = math.nan
    return values.to(dtype)


def finite(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


def integers(*shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
    return torch.randint(-100, 100, shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


# --- spellings -------------------------------------------------------------------------------------------------------


def reversed_sum(x: Tensor) -> Tensor:
    return x.flip(-1).cumsum(-1).flip(-1) * 2


def reversed_behind_a_view(x: Tensor) -> Tensor:
    return (x.transpose(0, 1).flip([0, 1]).logcumsumexp(1)).flip([1]).relu()


def exclusive_by_difference(x: Tensor) -> Tensor:
    return x.cumsum(1) - x


def exclusive_by_padding(x: Tensor) -> Tensor:
    return pad(x.cumsum(1)[:, :-1], (1, 0)) + 1


def exclusive_by_concatenation(x: Tensor) -> Tensor:
    return torch.cat([torch.ones(1, x.shape[1]), x.cumprod(0)[:-1]], 0)


def exclusive_from_the_end(x: Tensor) -> Tensor:
    return pad(x.flip(1).cummax(1)[1][:, :-1], (1, 0), value=-1).flip(1)


def offsets(x: Tensor, scale: Tensor) -> Tensor:
    return pad(x.cumsum(1), (1, 0), value=5) * scale


def both(x: Tensor) -> Tensor:
    total = x.logcumsumexp(1)
    return total + pad(total[:, :-1], (1, 0), value=3.0)


def masked(x: Tensor, mask: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    total = torch.where(mask, x * scale, 0.0).cumsum(1)
    return total, (total > 3.0) & mask


def positions(mask: Tensor) -> Tensor:
    return torch.where(mask, mask.cumsum(1) - 1, -1)


def extremes(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    values, places = x.cummin(0)
    return values, places, values * 2 + places


@dataclass(frozen=True)
class Case:
    function: Callable[..., Any]
    inputs: Callable[[], Sequence[Tensor]]
    regions: int = 1


def unary(
    name: str, dim: int, *shape: int, dtype: torch.dtype = torch.float32, of: Any = awkward, **options: Any
) -> Case:
    return Case(lambda x: getattr(torch, name)(x, dim, **options), lambda: [of(*shape, dtype=dtype)])


CASES: dict[str, Case] = {
    "sum of rows": unary("cumsum", 1, 33, 1003),
    "sum of columns": unary("cumsum", 0, 67, 1033),
    "sum of the middle": Case(lambda x: (x * 2).cumsum(1) + x, lambda: [awkward(3, 31, 5, 17)]),
    "sum of rows bfloat16": unary("cumsum", -1, 9, 300, dtype=torch.bfloat16),
    "sum of columns float16": unary("cumsum", 0, 50, 77, dtype=torch.float16),
    "sum of bool": Case(lambda x: (x > 0).cumsum(0), lambda: [awkward(50, 77)]),
    "sum of int32": unary("cumsum", 1, 40, 77, dtype=torch.int32, of=integers),
    "sum as int32": Case(lambda x: (x * 2**29).cumsum(1, dtype=torch.int32), lambda: [integers(40, 77)]),
    "sum as float64": Case(lambda x: x.cumsum(1, dtype=torch.float64), lambda: [awkward(30, 77)]),
    "product of rows": unary("cumprod", 1, 30, 205),
    "product of columns float64": unary("cumprod", 0, 70, 30, dtype=torch.float64),
    "maximum of rows": unary("cummax", 1, 30, 1100),
    "maximum of rows, values": Case(lambda x: x.cummax(1).values + 1, lambda: [awkward(30, 205)]),
    "maximum of columns bfloat16": unary("cummax", 0, 90, 70, dtype=torch.bfloat16),
    "maximum of int64": unary("cummax", 1, 30, 70, of=integers),
    "minimum of bool": Case(lambda x: torch.cummin(x > 0, 1), lambda: [awkward(30, 70)]),
    "minimum of columns": Case(extremes, lambda: [awkward(60, 70)]),
    "logarithm of rows": unary("logcumsumexp", 1, 33, 1003),
    "logarithm of columns": unary("logcumsumexp", 0, 67, 133),
    "logarithm of rows float64": unary("logcumsumexp", 1, 33, 70, dtype=torch.float64),
    "reversed": Case(reversed_sum, lambda: [awkward(20, 131)]),
    "reversed behind a view": Case(reversed_behind_a_view, lambda: [awkward(20, 131)]),
    "exclusive by difference": Case(exclusive_by_difference, lambda: [awkward(20, 131)]),
    "exclusive by padding": Case(exclusive_by_padding, lambda: [awkward(20, 531)]),
    "exclusive by concatenation": Case(exclusive_by_concatenation, lambda: [awkward(31, 131)]),
    "exclusive from the end": Case(exclusive_from_the_end, lambda: [awkward(20, 131)]),
    "with and without": Case(both, lambda: [awkward(20, 131)]),
    "offsets": Case(lambda x: pad(x.cumsum(0), (1, 0)), lambda: [integers(1500)]),
    "offsets of rows": Case(offsets, lambda: [integers(40, 77), finite(78)]),
    "offsets of columns": Case(
        lambda x: torch.cat([torch.full((1, 77), -1.0), x.logcumsumexp(0) * 2], 0), lambda: [awkward(40, 77)]
    ),
    "masked": Case(masked, lambda: [awkward(20, 131), integers(20, 131) > 0, finite(131)]),
    "positions": Case(positions, lambda: [integers(20, 131) > 50]),
    "every other row": Case(lambda x: x[::2, 1::3].cumsum(1), lambda: [awkward(90, 331)]),
    "turned": Case(lambda x: x.t().cumsum(1).exp(), lambda: [finite(90, 31)]),
    "turned in memory": Case(lambda x: x.cumsum(0).t().contiguous() * 2, lambda: [awkward(90, 31)]),
    "one line": unary("cumsum", 0, 2500),
    "lines of one": unary("cumsum", 1, 1500, 1),
    "one row of lanes": unary("logcumsumexp", 0, 1, 1500),
    "one after the other": Case(lambda x: x.cumsum(0).relu().cumsum(1), lambda: [finite(50, 60)], regions=2),
}  # fmt: skip
_FOUND: dict[str, Found] = {}


def found_of(name: str) -> Found:
    if name not in _FOUND:
        _FOUND[name] = find(FAMILY, CASES[name].function, CASES[name].inputs())
    return _FOUND[name]


# --- structure -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_every_spelling_is_found_whole(name: str) -> None:
    found = found_of(name)
    assert len(found.matches) == len(found.results) == CASES[name].regions
    taken = [node for match in found.matches for node in match.nodes]
    assert len(taken) == len(set(taken))
    assert set(taken) == {node for node in found.graph.nodes if node.op == "call_function"}
    for match in found.matches:
        assert len(region_of(match).nodes) == len(match.nodes)


def twice(total: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
    return function(total)


def test_what_is_read_in_another_order_stays_outside() -> None:
    afters: list[Callable[[Tensor], Tensor]] = [
        lambda x: x.cumsum(1)[:, -1],
        lambda x: x.cumsum(1).sum(1),
        lambda x: torch.roll(x.cumsum(1), 1, 1) + 1,
        lambda x: twice(x.cumsum(1), lambda total: total + total.t()),
        lambda x: x.cumsum(1)[None] * x[:, None],
        lambda x: twice(x.cumsum(1), lambda total: total[:, 3:] - total[:, :-3]),
    ]
    for after in afters:
        found = find(FAMILY, after, [finite(40, 40)])
        assert [node.name for node in found.match.outputs] == ["cumsum"]


def test_a_scan_against_itself_stays_outside() -> None:
    """Each output's element reads two positions: written in the scan's order only those on the diagonal would be."""

    def differences(x: Tensor) -> Tensor:
        running = x.cumsum(-1)
        return (running[..., :, None] - running[..., None, :]).exp()

    match = find(FAMILY, differences, [torch.randn(40, 60)]).match
    assert [tuple(node.meta["val"].shape) for node in match.outputs] == [(40, 60)]


def test_regions_do_not_wait_for_each_other() -> None:
    def crossed(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        first, second = x.cumsum(1), y.cumsum(0)
        return first * second, second - first

    first, second = find(FAMILY, crossed, [finite(40, 40), finite(40, 40)]).matches
    assert not set(second.outputs) & set(first.inputs)
    assert len(second.outputs) >= 2


def test_two_scans_may_read_through_one_reversal() -> None:
    def reversed_twice(x: Tensor) -> tuple[Tensor, Tensor]:
        turned = x.flip(1)
        return turned.cumsum(1), turned.cummax(1).values

    found = find(FAMILY, reversed_twice, [finite(40, 40)])
    assert [[node.op for node in match.inputs] for match in found.matches] == [["placeholder"]] * 2


@pytest.mark.parametrize(
    "function, inputs, code",
    [
        (lambda x: x.cumsum(0), [torch.ones(20, 20)], "size"),
        (lambda x: x.cumsum(1), [torch.ones(20, 0)], "size"),
        (lambda x: (x.sum() * 2).cumsum(0), [torch.ones(2000)], "structure"),
        (lambda x: x.cumsum(0), [torch.ones(2000, dtype=torch.complex64)], "dtype"),
    ],
)
def test_rejections_say_why(function: Callable[..., Any], inputs: list[Tensor], code: str) -> None:
    (rejection,) = find(FAMILY, function, inputs).results
    assert isinstance(rejection, Rejection) and rejection.code == code and rejection.message


def on_meta(function: Callable[..., Any], *shape: int) -> list[Any]:
    """What is found for a device that is not a CPU, whatever the size."""
    graph = find(FAMILY, function, [finite(16, 256)]).graph
    for node in graph.nodes:
        if isinstance(node.meta.get("val"), Tensor):
            node.meta["val"] = torch.empty(shape, dtype=node.meta["val"].dtype, device="meta")
    return list(FAMILY.find(graph, "meta"))


def test_one_long_line_is_left_to_eager_on_a_gpu_where_nothing_joins_it() -> None:
    (rejection,) = on_meta(lambda x: x.cumsum(1), 1, 2**24)
    assert isinstance(rejection, Rejection) and rejection.code == "size" and "read twice" in rejection.message
    for shape in ((2, 2**24), (1, 2**20)):
        assert not any(isinstance(result, Rejection) for result in on_meta(lambda x: x.cumsum(1), *shape))


def test_lines_too_few_for_a_gpu_are_cut_into_parts() -> None:
    for dim, shape in ((1, (3, 200000)), (0, (200000, 5))):
        match = find(FAMILY, lambda x: x.cumsum(dim), [torch.empty(shape)]).match  # noqa: B023 - called at once
        space = FAMILY.space(match, CUDA)
        parts = int(space.default["parts"])
        kernel = kernel_of(FAMILY, match, space.default, "triton")
        assert 8 < parts <= CUDA.units * 4 and 1 in space.choices["parts"]
        assert [launch.function for launch in kernel.launches] == ["kevolve_totals", "kevolve_kernel"]
        assert [work.dtype for work in kernel.workspaces] == ["float32"]


def test_seeds_stay_within_what_a_program_may_have() -> None:
    for dim, shape in ((1, (9, 5000)), (1, (50000, 40)), (0, (300, 2000)), (1, (70, 900, 33)), (0, (100000, 2))):
        match = find(FAMILY, lambda x: x.cumsum(dim), [torch.empty(shape)]).match  # noqa: B023 - called at once
        seeds = FAMILY.space(match, CUDA).seeds
        kernels = [kernel_of(FAMILY, match, seed, "triton") for seed in seeds]
        assert len(seeds) >= 3 and all(launch.num_warps <= 32 for kernel in kernels for launch in kernel.launches)


# --- C++ -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_cpp_agrees_with_eager(name: str, folder: Path) -> None:
    found, turn = found_of(name), list(CASES).index(name)
    for match in found.matches:
        schedules = schedules_of(FAMILY, match, CPU)
        inputs, expected = values_of(found, match.inputs), values_of(found, match.outputs)
        reference = evaluate_fp64(region_of(match), inputs)
        outputs = run_cpp(build(FAMILY, match, schedules[turn % len(schedules)], folder), inputs, expected)
        assert_same(outputs, expected)
        for output, exact, eager in zip(outputs, reference.exact, reference.eager, strict=True):
            error = (output.double() - exact.double()).abs().nan_to_num(0.0, 0.0, 0.0)
            assert not output.is_floating_point() or bool((error <= allowed_error(exact, eager)).all())


@pytest.mark.parametrize("name", ["sum of columns", "maximum of rows"])
def test_every_schedule_agrees(name: str, folder: Path) -> None:
    found = found_of(name)
    inputs, expected = values_of(found, found.match.inputs), values_of(found, found.match.outputs)
    for schedule in schedules_of(FAMILY, found.match, CPU):
        if schedule["order"] == "static":
            assert_same(run_cpp(build(FAMILY, found.match, schedule, folder), inputs, expected), expected)


@pytest.mark.parametrize(
    "function, shape, of",
    [
        (lambda x: x.cumsum(1), (1, 20011), awkward),
        (lambda x: x.cummax(0), (20011, 2), awkward),
        (lambda x: x.cummin(1), (1, 20011), finite),
        (lambda x: x.logcumsumexp(0), (10007, 1, 3), finite),
        (lambda x: pad(x.logcumsumexp(1)[:, :-1], (1, 0)), (1, 20011), awkward),
    ],
)
def test_few_long_lines_are_cut_into_parts(
    function: Callable[..., Any], shape: tuple[int, ...], of: Callable[..., Tensor], folder: Path
) -> None:
    found = find(FAMILY, function, [of(*shape)])
    match = found.match
    assert FAMILY.space(match, CPU).choices["parts"] == (2, 1, 8)
    inputs, expected = values_of(found, match.inputs), values_of(found, match.outputs)
    schedule = {**FAMILY.space(match, CPU).default, "parts": 8}
    assert_same(run_cpp(build(FAMILY, match, schedule, folder), inputs, expected), expected)


def test_sums_of_long_lines_stay_exact(folder: Path) -> None:
    for dim, shape in ((1, (2, 50000)), (0, (50000, 2))):
        found = find(FAMILY, lambda x: x.cumsum(dim), [finite(*shape) + 100])  # noqa: B023 - called at once
        match = found.match
        (values,) = values_of(found, match.inputs)
        exact = values.double().cumsum(dim)
        call = build(FAMILY, match, FAMILY.space(match, CPU).default, folder)
        (output,) = run_cpp(call, [values], [exact.float()])
        assert torch.equal(output, exact.float())


def test_increasing_logarithms_neither_overflow_nor_vanish(folder: Path) -> None:
    values = torch.cat([torch.full((1500,), -math.inf), torch.linspace(-1e4, 300.0, 3000), finite(500)])
    for shape, dim in (((1, 5000), 1), ((5000, 1, 2), 0)):
        lines = values.view(1, -1) if dim == 1 else values.view(-1, 1, 1).expand(shape).contiguous()
        found = find(FAMILY, lambda x: x.logcumsumexp(dim), [lines])  # noqa: B023 - called at once
        (inputs, expected) = (values_of(found, nodes) for nodes in (found.match.inputs, found.match.outputs))
        call = build(FAMILY, found.match, FAMILY.space(found.match, CPU).default, folder)
        assert_same(run_cpp(call, inputs, expected), expected)


@pytest.mark.parametrize("dim", [0, 1])
def test_a_dynamic_axis_takes_any_size(dim: int, folder: Path) -> None:
    def shifted(x: Tensor) -> Tensor:
        return (x * 2).cumsum(dim) * 3

    match = find(FAMILY, shifted, [finite(150, 20)], dynamic=True).match
    assert region_of(match).symbol_names == ("s0",)
    for size in (1, 2, 1301):
        schedule = FAMILY.space(match, CPU).default
        assert_matches_eager(FAMILY, match, [awkward(size, 20)], [size], folder, schedule)


def test_kernels_are_the_same_every_time_and_pass_the_gate() -> None:
    for name in ("sum of columns", "maximum of rows", "with and without"):
        match = found_of(name).match
        for target, language in ((CPU, "cpp"), (CUDA, "triton")):
            schedules = schedules_of(FAMILY, match, target)
            kernels = [kernel_of(FAMILY, match, schedule, language) for schedule in schedules]
            assert kernels[0] == kernel_of(FAMILY, match, schedules[0], language)
            assert len({kernel.digest for kernel in kernels}) == len(schedules), (name, language)


# --- Triton ----------------------------------------------------------------------------------------------------------

# Small, since the interpreter takes its time; several blocks per line.
TRITON_CASES: dict[str, Case] = {
    "sum of rows": unary("cumsum", 1, 9, 118),
    "product of the middle": Case(lambda x: (x * 2).cumprod(1) + x, lambda: [awkward(3, 24, 3, 5)]),
    "maximum of rows": unary("cummax", 1, 9, 118),
    "maximum of columns bfloat16": unary("cummax", 0, 23, 46, dtype=torch.bfloat16),
    "values of bool": Case(lambda x: torch.cummin(x > 0, 1).values, lambda: [awkward(17, 62)]),
    "logarithm of rows": unary("logcumsumexp", 1, 9, 118),
    "exclusive from the end": Case(exclusive_from_the_end, lambda: [awkward(17, 62)]),
    "with and without": Case(both, lambda: [awkward(17, 62)]),
    "offsets of rows": Case(offsets, lambda: [integers(17, 62), finite(63)]),
    "masked": Case(masked, lambda: [awkward(17, 62), integers(17, 62) > 0, finite(62)]),
    "numbers": Case(lambda x: torch.arange(62.0).expand(17, 62).cumsum(1) * x, lambda: [finite(17, 62)]),
    "logarithm of columns": unary("logcumsumexp", 0, 23, 46),
    "minimum of columns": Case(extremes, lambda: [awkward(23, 46)]),
    "exclusive by concatenation": Case(exclusive_by_concatenation, lambda: [awkward(31, 41)]),
    "offsets of columns": Case(
        lambda x: torch.cat([torch.full((1, 47), -1.0), x.logcumsumexp(0) * 2], 0), lambda: [awkward(23, 47)]
    ),
    "sum of the middle, divided": Case(lambda x: x.cumsum(1) - x, lambda: [finite(4, 64, 16)]),
    "sum of rows, divided": Case(lambda x: x.cumsum(1) - x, lambda: [finite(16, 128)]),
}


# Of rows and of columns: one pass over whole lines, tiles that divide nothing, and lines cut into parts.
ROW_SCHEDULES: tuple[dict[str, Any], ...] = (
    {"block": 128, "lines": 2, "num_warps": 2, "steps": 0, "parts": 1},
    {"block": 16, "lines": 4, "num_warps": 1, "steps": 0, "parts": 1},
    {"block": 16, "lines": 8, "num_warps": 1, "steps": 4, "parts": 1},
    {"block": 16, "lines": 2, "num_warps": 1, "steps": 0, "parts": 4},
)
COLUMN_SCHEDULES: tuple[dict[str, Any], ...] = (
    {"steps": 4, "pieces": 1, "lanes": 32, "vector": 1, "parts": 1},
    {"steps": 2, "pieces": 4, "lanes": 16, "vector": 1, "parts": 1},
    {"steps": 4, "pieces": 8, "lanes": 16, "vector": 2, "parts": 1},
    {"steps": 2, "pieces": 1, "lanes": 32, "vector": 1, "parts": 4},
    {"steps": 2, "pieces": 2, "lanes": 16, "vector": 1, "parts": 2},
)


def interpret_dynamic() -> None:
    """A dynamic size along the lines and across them, whole and in parts."""
    from kevolve_inductor.platforms.cuda import launch

    for dim, schedules in ((0, COLUMN_SCHEDULES), (1, ROW_SCHEDULES)):
        found = find(FAMILY, lambda x: (x * 2).cumsum(dim) * 3, [finite(45, 30)], dynamic=True)  # noqa: B023 - called at once
        region = region_of(found.match)
        (values,) = inputs = [finite(37, 30)]
        expected = (values * 2).cumsum(dim) * 3
        for schedule in (schedules[1], schedules[-1]):
            kernel = kernel_of(FAMILY, found.match, schedule, "triton")
            assert index_overflow(kernel, region.symbol_names) is None
            output = empty_like(expected)
            launch(kernel, inputs, [output], {"s0": 37})
            assert_same([output], [expected])


def interpret() -> None:
    for number, case in enumerate(TRITON_CASES.values()):
        found = find(FAMILY, case.function, case.inputs())
        schedules = ROW_SCHEDULES if "lines" in FAMILY.space(found.match, CUDA).choices else COLUMN_SCHEDULES
        assert_triton_agrees(FAMILY, found, [schedules[number % len(schedules)]])
    interpret_dynamic()


def test_triton_agrees_with_eager_under_the_interpreter() -> None:
    interpreted("test_scans", "interpret")


@pytest.mark.parametrize("name", ["sum of columns", "maximum of rows", "logarithm of rows"])
def test_triton_compiles_without_spilling(name: str, folder: Path) -> None:
    pytest.importorskip("triton")
    from kevolve_inductor.platforms.triton_build import compile_for

    match = found_of(name).match
    kernel = kernel_of(FAMILY, match, FAMILY.space(match, CUDA).default, "triton")
    resources = compile_for(kernel, region_of(match), "sm_90", folder)
    assert resources.spills in (0, None) and (resources.registers or 0) <= 128
