"""Feature preprocessing: which tasks are merged, and whether their kernels compute what eager computes."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
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

from kevolve_inductor.exc import KernelIndexError
from kevolve_inductor.graph.meta import target_name
from kevolve_inductor.graph.reference import to_graph_module
from kevolve_inductor.synthesis.families.features import FeaturesFamily, PlacesFamily, places
from kevolve_inductor.synthesis.family import Match

FAMILY, PLACES = FeaturesFamily(), PlacesFamily()
PRIME = 2654435761
ROWS = 1300
SIZES = torch.tensor([7, -9, 1, 2**40, 2**62 + 5, -(2**62)])


def hashed(ids: Tensor, size: int) -> Tensor:
    mixed = ids * PRIME
    return ((mixed ^ (mixed >> 29)) & 0x7FFFFFFFFFFFFFFF) % size


def borders(count: int, dtype: torch.dtype = torch.float32, scale: float = 1.0) -> Tensor:
    return (torch.randn(count) * scale).to(dtype).sort().values


def awkward(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Normal values with NaN, infinities, zeros of both signs, and many equal ones."""
    values = (torch.randn(shape) * 8).round() / 8
    flat = values.view(-1)
    for place, value in enumerate((math.nan, math.inf, -math.inf, 0.0, -0.0, 1e-40)):
        flat[place::97] = value
    return values.to(dtype)


def counters(columns: int) -> Tensor:
    return torch.randint(-2, 9000, (ROWS, columns)).float()


def rows_of(count: int, width: int) -> Tensor:
    return torch.stack([borders(width, scale=4.0) for _ in range(count)])


def identifiers(*shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
    high = 2**62 if dtype is torch.int64 else 2**31 - 1
    values = torch.randint(-high, high, shape, dtype=dtype)
    values.view(-1)[:4] = torch.tensor([torch.iinfo(dtype).min, torch.iinfo(dtype).max, 0, -1])
    return values


# --- spellings -------------------------------------------------------------------------------------------------------


def many_buckets(*tensors: Tensor) -> tuple[Tensor, ...]:
    half = len(tensors) // 2
    return tuple(torch.bucketize(v, b) for v, b in zip(tensors[:half], tensors[half:], strict=True))


def closed_right(values: Tensor, edges: Tensor) -> tuple[Tensor, Tensor]:
    return torch.bucketize(values, edges, right=True), torch.searchsorted(edges, values, side="right", out_int32=True)


def missing_is_zero(values: Tensor, edges: Tensor) -> Tensor:
    found = torch.searchsorted(edges, values, out_int32=True) + 1
    return torch.where(torch.isnan(values), torch.zeros_like(found), found)


def many_hashes(*ids: Tensor) -> tuple[Tensor, ...]:
    return tuple(hashed(column, 1009 + 77 * k * k) for k, column in enumerate(ids))


def every_division(ids: Tensor) -> tuple[Tensor, ...]:
    sizes = (1, 2, 3, 1000, 2**20, 10**9 + 7, 2**51 + 3, -7, 2**60 + 1)
    others = [torch.fmod(ids, 1000), ids // 7, torch.div(ids, 9, rounding_mode="trunc"), (ids & 0xFFFF) % 77]
    return (*(ids % size for size in sizes), *others)


def crossed(values: Tensor, edges: Tensor, ids: Tensor) -> Tensor:
    return hashed(ids + torch.bucketize(values, edges), 1_000_003)


def columns(values: Tensor, edges: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
    logs = torch.log1p(values.clamp(min=0.0))
    found = [torch.bucketize(logs[:, k], edges[k]) for k in range(values.shape[1])]
    return (logs - mean).clamp(-5.0, 5.0), torch.stack(found, dim=1)


def scaled_columns(counters: Tensor, *edges: Tensor) -> Tensor:
    parts = [torch.bucketize(v, e) * (2.0 / e.shape[0]) - 1.0 for v, e in zip(counters, edges, strict=True)]
    return torch.stack(parts, dim=1)


def table_sizes(ids: Tensor, salts: Tensor, sizes: Tensor) -> Tensor:
    wide = ids.long()
    mixed = ((wide * 31 + torch.roll(wide, 1, dims=1)) ^ salts) * 0x27D4EB2F165667C5
    return torch.remainder(mixed ^ (mixed >> 32), sizes)


def rows_of_borders(values: Tensor, edges: Tensor) -> tuple[Tensor, Tensor]:
    """A row of borders for each row of values, along memory and across it."""
    return torch.searchsorted(edges, values), torch.searchsorted(edges, values.T.contiguous().T, right=True)


def strided(values: Tensor, edges: Tensor) -> Tensor:
    return torch.bucketize(values[::2, 1:4].t(), edges[::3])


def looked_up(values: Tensor, edges: Tensor, table: Tensor) -> Tensor:
    return table[torch.bucketize(values, edges)] * 2


def cut_and_joined(ids: Tensor, other: Tensor) -> Tensor:
    return (torch.cat([ids[:, :3] ^ 5, other.long() * 3, ids[:, 3:] % 11], dim=1) >> 1) + 1


def shared(values: Tensor, edges: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    found = torch.bucketize(values, edges)
    return found, hashed(found, 97), (found > 3).float()


@dataclass(frozen=True)
class Case:
    function: Callable[..., Any]
    inputs: Callable[[], Sequence[Tensor]]
    tasks: int


CASES: dict[str, Case] = {
    "many buckets": Case(many_buckets, lambda: [*(awkward(ROWS) for _ in range(5)), *map(borders, (1, 5, 40, 64, 200))], 5),
    "one set of borders": Case(lambda a, b, e: many_buckets(a, b, e, e), lambda: [awkward(ROWS), awkward(ROWS), borders(33)], 2),
    "closed right": Case(closed_right, lambda: [awkward(ROWS), torch.arange(-8, 9) / 8], 1),
    "float64": Case(closed_right, lambda: [awkward(ROWS, dtype=torch.float64), borders(100, torch.float64)], 1),
    "bfloat16": Case(closed_right, lambda: [awkward(ROWS, dtype=torch.bfloat16), borders(20, torch.bfloat16)], 1),
    "int64 buckets": Case(closed_right, lambda: [identifiers(ROWS), borders(50, torch.int64, 1e18)], 1),
    "int32 buckets": Case(closed_right, lambda: [identifiers(ROWS, dtype=torch.int32), borders(50, torch.int32, 1e9)], 1),
    "missing is zero": Case(missing_is_zero, lambda: [awkward(ROWS), borders(17)], 1),
    "many hashes": Case(many_hashes, lambda: [identifiers(ROWS, 3) for _ in range(4)], 4),
    "int32 hash": Case(lambda ids: (ids * PRIME ^ (ids >> 7)) % 1000, lambda: [identifiers(ROWS, dtype=torch.int32)], 1),
    "every division": Case(every_division, lambda: [identifiers(ROWS)], 2),
    "crossed": Case(crossed, lambda: [awkward(3 * ROWS), borders(64), identifiers(3 * ROWS)], 1),
    "columns": Case(columns, lambda: [counters(7), rows_of(7, 19), torch.randn(7)], 7),
    "scaled columns": Case(scaled_columns, lambda: [awkward(6, ROWS), *(borders(9 + 4 * (k % 3)) for k in range(6))], 6),
    "table sizes": Case(table_sizes, lambda: [identifiers(ROWS, 6, dtype=torch.int32), identifiers(6), SIZES], 1),
    "rows of borders": Case(rows_of_borders, lambda: [awkward(300, 11), rows_of(300, 13)], 1),
    "strided": Case(strided, lambda: [awkward(ROWS, 5), borders(30)], 1),
    "looked up": Case(looked_up, lambda: [awkward(ROWS), borders(9), torch.randn(10)], 1),
    "cut and joined": Case(cut_and_joined, lambda: [identifiers(ROWS, 5), identifiers(ROWS, 2, dtype=torch.int32)], 3),
    "shared": Case(shared, lambda: [awkward(ROWS), borders(25)], 1),
    "a column of one": Case(closed_right, lambda: [awkward(1, ROWS, 1), borders(1)], 1),
}  # fmt: skip
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
    assert len(match.plan.tasks) == CASES[name].tasks
    assert all(node.op == "placeholder" for node in match.inputs if name != "columns")
    assert len(region_of(match).nodes) == len(match.nodes)


def test_tasks_of_equal_structure_share_one_body() -> None:
    tensors = [torch.randn(64) for _ in range(20)] + [borders(16) for _ in range(20)]
    match = find(FAMILY, many_buckets, tensors).match
    for language, target in (("cpp", CPU), ("triton", CUDA)):
        source = kernel_of(FAMILY, match, FAMILY.space(match, target).default, language).source
        assert "group0" in source and "group1" not in source


def test_columns_of_one_tensor_become_one_space() -> None:
    """Evenly placed inputs and borders need no pointers of their own: the column is one more axis."""

    def even(values: Tensor, edges: Tensor) -> Tensor:
        return torch.stack([torch.bucketize(values[:, k], edges[k]) for k in range(12)], dim=1)

    match = find(FAMILY, even, [torch.randn(200, 12), torch.randn(12, 9).sort(-1).values]).match
    assert len(match.inputs) == 2
    space = FAMILY.space(match, CUDA)
    assert space.default["columns"] == "together"
    source = kernel_of(FAMILY, match, space.default, "triton").source
    assert "at < 2400" in source


def test_plain_arithmetic_is_left_to_inductor() -> None:
    found = find(
        FAMILY, lambda x, i: (torch.log1p(x.clamp(min=0)) * 2, i * 3 + 1), [torch.randn(5000), identifiers(5000)]
    )
    assert found.results == []


def test_one_place_of_each_row_is_written_with_what_surrounds_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = placed(monkeypatch)
    assert {target_name(node) for node in found.match.nodes} >= {"aten.scatter_add.default", "aten.exp.default"}
    inputs, expected = values_of(found, found.match.inputs), values_of(found, found.match.outputs)
    for schedule in schedules_of(PLACES, found.match, CPU):
        assert_same(run_cpp(build(PLACES, found.match, schedule, folder), inputs, expected), expected)
    wrong = [value.clone() for value in inputs]
    next(value for value in wrong if value.dtype is torch.int64)[5] = 700
    with pytest.raises(KernelIndexError):
        run_cpp(build(PLACES, found.match, PLACES.space(found.match, CPU).default, folder), wrong, expected)


def test_few_places_are_left_to_inductor() -> None:
    (rejection,) = find(PLACES, gradient_of_picking, picking()).results
    assert not isinstance(rejection, Match) and rejection.code == "size"


def test_a_fixed_place_is_left_to_inductor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "LEAST_PLACED", 1)
    function = lambda x, y: torch.select_scatter(x * 2, y, 1, 3)  # noqa: E731
    assert find(PLACES, function, [torch.randn(40, 700), torch.randn(40)]).results == []


def test_arithmetic_on_constants_is_left_to_inductor() -> None:
    assert find(FAMILY, lambda x: x + torch.arange(4096) % 7, [torch.randn(4096)]).results == []


def test_little_work_is_rejected() -> None:
    (rejection,) = find(FAMILY, many_buckets, [torch.randn(50), borders(4)]).results
    assert not isinstance(rejection, Match) and rejection.code == "size"


def test_one_hash_is_worth_it_on_a_cpu_only() -> None:
    found = find(FAMILY, many_hashes, [identifiers(5000)])
    assert isinstance(found.match, Match)
    for node in found.graph.nodes:
        node.meta["val"] = (
            torch.empty_like(node.meta["val"], device="meta") if isinstance(node.meta.get("val"), Tensor) else None
        )
    (rejection,) = FAMILY.find(found.graph, "meta")
    assert not isinstance(rejection, Match) and rejection.code == "structure"


def test_what_waits_for_another_region_is_a_region_of_its_own() -> None:
    def two_stages(values: Tensor, edges: Tensor, weight: Tensor) -> Tensor:
        first = torch.bucketize(values, edges).float()
        return torch.bucketize(first @ weight, edges) + 1

    found = find(FAMILY, two_stages, [torch.randn(64, 64), borders(9), torch.randn(64, 64)])
    assert len(found.matches) == 2
    first, second = found.matches
    assert not set(first.outputs) & set(second.nodes) and not set(first.nodes) & set(second.nodes)


def test_computed_borders_are_an_input() -> None:
    match = find(FAMILY, lambda v, e: torch.bucketize(v, e * 2 + 1), [torch.randn(2000), borders(9)]).match
    assert [len(spec.shape) for spec in region_of(match).inputs] == [1, 1]
    assert len(match.nodes) == 1


def test_a_part_that_cannot_be_expressed_does_not_take_the_others_along() -> None:
    def mixed(values: Tensor, edges: Tensor, order: Tensor) -> tuple[Tensor, Tensor]:
        return torch.bucketize(values, edges), torch.searchsorted(edges, values + 1, sorter=order)

    found = find(FAMILY, mixed, [torch.randn(3000), borders(5), torch.arange(5)])
    (match,), (rejection,) = found.matches, found.rejections
    assert len(match.outputs) == 1 and rejection.code == "structure"


# --- C++ -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_cpp_agrees_with_eager(name: str, folder: Path) -> None:
    found = found_of(name)
    match = found.match
    # The other schedules take turns, so that the compiler is not the slowest part of the whole suite.
    schedules, turn = schedules_of(FAMILY, match, CPU), list(CASES).index(name)
    chosen = [schedules[0], schedules[1 + turn // 2 % (len(schedules) - 1)]][: 1 + turn % 2]
    inputs, expected = values_of(found, match.inputs), values_of(found, match.outputs)
    with ThreadPoolExecutor(2) as pool:
        calls = list(pool.map(lambda schedule: build(FAMILY, match, schedule, folder), chosen))
    for call in calls:
        assert_same(run_cpp(call, inputs, expected), expected)


@pytest.mark.parametrize("method", ["table", "count", "lanes", "split"])
def test_every_search_finds_eager_s_place(method: str, folder: Path) -> None:
    counts = (1, 2, 3, 16, 31, 32, 33, 127, 128, 500)
    edges = [borders(count) for count in counts]
    values = torch.cat([awkward(500), *edges, borders(500).nextafter(torch.tensor(math.inf))])

    def all_counts(values: Tensor, *edges: Tensor) -> tuple[Tensor, ...]:
        return tuple(f for e in edges for f in (torch.bucketize(values, e), torch.bucketize(values, e, right=True)))

    found = find(FAMILY, all_counts, [values, *edges])
    match = found.match
    call = build(FAMILY, match, {**FAMILY.space(match, CPU).default, "search": method, "block": 256}, folder)
    expected = values_of(found, match.outputs)
    assert_same(run_cpp(call, values_of(found, match.inputs), expected), expected)


def test_a_dynamic_batch_takes_any_size(folder: Path) -> None:
    edges = borders(12)

    def both(values: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        return torch.stack([torch.bucketize(values, edges), hashed(ids[:, 0], 77)], dim=1), hashed(ids, 1000)

    match = find(FAMILY, both, [torch.randn(900), identifiers(900, 3)], dynamic=True).match
    region = region_of(match)
    call = build(FAMILY, match, FAMILY.space(match, CPU).default, folder)
    module = to_graph_module(region)
    for rows in (0, 1, 7, 5000):
        made = {(12,): edges, ("s0",): awkward(5000)[:rows], ("s1",): awkward(5000)[:rows]}
        inputs = [made[spec.shape] if spec.shape in made else identifiers(5000, 3)[:rows] for spec in region.inputs]
        sizes = [inputs[which].shape[dim] for _, which, dim in region.symbols]
        expected = module(*inputs)
        assert_same(run_cpp(call, inputs, expected, *sizes), expected)


def test_divisors_of_zero_are_reported(folder: Path) -> None:
    found = found_of("table sizes")
    match = found.match
    call = build(FAMILY, match, FAMILY.space(match, CPU).default, folder)
    outputs = [empty_like(value) for value in values_of(found, match.outputs)]
    inputs = values_of(found, match.inputs)
    call(*inputs, *outputs)
    zero = [torch.where(value == 7, 0, value) if value.shape == SIZES.shape else value for value in inputs]
    with pytest.raises(KernelIndexError):
        call(*zero, *outputs)


def test_positions_beyond_a_table_are_reported(folder: Path) -> None:
    # Nine borders give ten buckets, of which this table holds nine.
    found = find(FAMILY, lambda i, t: t[i % 10], [torch.arange(2000) % 9, torch.randn(9)])
    match = found.match
    call = build(FAMILY, match, FAMILY.space(match, CPU).default, folder)
    ids, table = values_of(found, match.inputs)
    output = torch.empty(2000)
    call(ids, table, output)
    assert torch.equal(output, table[ids])
    with pytest.raises(KernelIndexError):
        call(torch.arange(2000), table, output)


def test_kernels_are_the_same_every_time_and_pass_the_gate() -> None:
    for name in ("many buckets", "scaled columns", "table sizes"):
        match = found_of(name).match
        for target, language in ((CPU, "cpp"), (CUDA, "triton")):
            schedules = schedules_of(FAMILY, match, target)
            kernels = [kernel_of(FAMILY, match, schedule, language) for schedule in schedules]
            assert kernels[0] == kernel_of(FAMILY, match, schedules[0], language)
            assert len({kernel.digest for kernel in kernels}) > len(kernels) // 2


# --- Triton ----------------------------------------------------------------------------------------------------------


def six_hashes(*ids: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return tuple(((column ^ (column >> 31)) * 0x9E3779B1) % (1000 + 77 * k) for k, column in enumerate(ids))


def remainders(ids: torch.Tensor, divisors: torch.Tensor) -> torch.Tensor:
    return torch.remainder(ids, divisors)


def two_remainders(a: torch.Tensor, b: torch.Tensor, divisors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return (a * 3) % divisors[0], (b * 5) % divisors[1]


def stacked_remainders(ids: torch.Tensor, divisors: torch.Tensor) -> torch.Tensor:
    return torch.stack([ids[:, k] % divisors[k] for k in range(6)], dim=1)


def gradient_of_picking(logits: Tensor, normaliser: Tensor, at: Tensor, scale: Tensor) -> Tensor:
    """Backward of a cross-entropy with a penalty, of bfloat16 logits."""
    chosen = torch.zeros(logits.shape).scatter_add(1, at[:, None], -scale[:, None])
    return (chosen + (logits.float() - normaliser[:, None]).exp() * scale[:, None]).bfloat16()


def picking() -> list[Tensor]:
    return [torch.randn(40, 700).bfloat16(), torch.rand(40) + 7, torch.randint(700, (40,)), torch.randn(40)]


def placed(monkeypatch: pytest.MonkeyPatch) -> Found:
    monkeypatch.setattr(places, "LEAST_PLACED", 1)
    return find(PLACES, gradient_of_picking, picking())


def interpret() -> None:
    with pytest.MonkeyPatch.context() as patch:
        found = placed(patch)
    assert_triton_agrees(PLACES, found, schedules_of(PLACES, found.match, CUDA)[::3])
    # The interpreter has no logarithm of the device library.
    for number, name in enumerate(name for name in CASES if name != "columns"):
        found = found_of(name)
        schedules = [s for s in schedules_of(FAMILY, found.match, CUDA) if s["num_warps"] == 4]
        chosen = [schedules[0], schedules[1 + number // 2 % (len(schedules) - 1)]]
        assert_triton_agrees(FAMILY, found, chosen[: 1 + number % 2])
    # Six tasks in chunks of four: the last one is not full.
    found = find(FAMILY, six_hashes, [torch.randint(-(2**62), 2**62, (300 + k % 2,)) for k in range(6)])
    default = FAMILY.space(found.match, CUDA).default
    chunks = [{**default, "dispatch": "chunks", "order": order, "block": 256} for order in ("tasks", "rows")]
    assert_triton_agrees(FAMILY, found, chunks)
    # Neighbouring columns: by one program across them, in blocks that end neither with the columns nor with the rows.
    found = found_of("scaled columns")
    default = FAMILY.space(found.match, CUDA).default
    across = [
        {**default, "order": "across", "search": s, "block": 256, "steps": 2} for s in ("binary", "pivots", "count")
    ]
    assert all("[:, None] < 6" in kernel_of(FAMILY, found.match, schedule, "triton").source for schedule in across)
    assert_triton_agrees(FAMILY, found, [*across, {**default, "order": "rows"}])
    # Divisors that only the data tell, of either sign and any size, and dividends around their multiples.
    found = find(FAMILY, remainders, [*border_cases()])
    default = FAMILY.space(found.match, CUDA).default
    for walk, helper in (("flat", "kv_mod_any"), ("columns", "kv_mod_by")):
        walked = [{**default, "walk": walk, "block": block, "steps": 2} for block in (256, 1024)]
        assert all(helper in kernel_of(FAMILY, found.match, schedule, "triton").source for schedule in walked)
        assert_triton_agrees(FAMILY, found, walked)
    # Columns that are spelled one by one.
    ids = [torch.randint(-(2**62), 2**62, (300, 6)), torch.randint(1, 2**40, (6,))]
    found = find(FAMILY, stacked_remainders, ids)
    default = FAMILY.space(found.match, CUDA).default
    for walk, helper in (("flat", "kv_mod_any"), ("columns", "kv_mod_by")):
        for columns in ("together", "apart"):
            schedule = {**default, "walk": walk, "columns": columns, "block": 256}
            by = helper if columns == "together" else "kv_mod_by"
            assert by in kernel_of(FAMILY, found.match, schedule, "triton").source
            assert_triton_agrees(FAMILY, found, [schedule])
    # One divisor for all of a task, and rows of more than one axis.
    ids = [torch.randint(-(2**62), 2**62, (600,)) for _ in "ab"]
    found = find(FAMILY, two_remainders, [*ids, torch.tensor([-77, 1001])])
    default = FAMILY.space(found.match, CUDA).default
    assert "kv_mod_by" in kernel_of(FAMILY, found.match, default, "triton").source
    assert_triton_agrees(FAMILY, found, [default, {**default, "dispatch": "chunks"}])
    found = find(FAMILY, remainders, [torch.randint(-(2**62), 2**62, (5, 70, 6)), torch.tensor([-1_000_003])])
    assert_triton_agrees(FAMILY, found, [FAMILY.space(found.match, CUDA).default])
    found = find(FAMILY, remainders, [torch.randint(-(2**62), 2**62, (5, 70, 6)), torch.randint(1, 2**40, (6,))])
    assert_triton_agrees(FAMILY, found, [{**FAMILY.space(found.match, CUDA).default, "walk": "columns"}])


def border_cases() -> tuple[torch.Tensor, torch.Tensor]:
    """Dividends, a column for each divisor: borders of the number format, and of the divisor's multiples."""
    powers = [2**bits + off for bits in (31, 32, 40, 52, 53, 62) for off in (-1, 0, 1)]
    divisors = [sign * size for size in (1, 2, 3, 7, *powers, 2**63 - 1) for sign in (1, -1)] + [-(2**63)]
    generator = random.Random(0)
    quotients = [0, 1, 2, 3, 1000, 2**31, 2**32 + 1, *(generator.randrange(2**63) for _ in range(40))]
    fixed = [-(2**63), -(2**63) + 1, 2**63 - 1, 2**63 - 2, 0, -1, 1, 2**32, -(2**32), 2**53 + 1]
    columns = []
    for divisor in divisors:
        most = (2**63 - 2) // abs(divisor)
        multiples = [sign * (quotient % (most + 1)) * divisor for quotient in quotients for sign in (1, -1)]
        columns.append([*fixed, *(multiple + off for multiple in multiples for off in (-1, 0, 1))])
    return torch.tensor(columns).T.contiguous(), torch.tensor(divisors)


def test_triton_agrees_with_eager_under_the_interpreter() -> None:
    interpreted("test_features", "interpret")


def test_columns_side_by_side_compile_for_hopper(folder: Path) -> None:
    """Reads and writes go along the rows, searches down the columns: values change places in between."""
    pytest.importorskip("triton")
    from kevolve_inductor.platforms.triton_build import compile_for

    match = found_of("columns").match
    schedule = {**FAMILY.space(match, CUDA).default, "columns": "apart", "order": "across"}
    kernel = kernel_of(FAMILY, match, schedule, "triton")
    resources = compile_for(kernel, region_of(match), "sm_90", folder)
    assert resources.spills in (0, None) and resources.shared_bytes


@pytest.mark.parametrize("walk", ["columns", "flat"])
def test_remainders_by_columns_compile_for_hopper(walk: str, folder: Path) -> None:
    """A walk has none of the conversions between integers and doubles, which take as long as all of the rest."""
    pytest.importorskip("triton")
    from kevolve_inductor.platforms.triton_build import compile_for

    inputs = [torch.randint(0, 2**62, (4096, 26)), torch.randint(1, 2**40, (26,))]
    match = find(FAMILY, remainders, inputs).match
    schedule = {**FAMILY.space(match, CUDA).default, "walk": walk}
    kernel = kernel_of(FAMILY, match, schedule, "triton")
    assert ("float64" in kernel.source) == (walk == "flat")
    resources = compile_for(kernel, region_of(match), "sm_90", folder)
    assert resources.spills in (0, None) and (resources.registers or 0) <= 128


def test_two_divisors_compile_for_hopper(folder: Path) -> None:
    pytest.importorskip("triton")
    from kevolve_inductor.platforms.triton_build import compile_for

    ids = [torch.randint(2**62, (4096,)) for _ in "ab"]
    match = find(FAMILY, two_remainders, [*ids, torch.tensor([-77, 1001])]).match
    kernel = kernel_of(FAMILY, match, FAMILY.space(match, CUDA).default, "triton")
    assert compile_for(kernel, region_of(match), "sm_90", folder).spills in (0, None)


def test_sixty_four_features_compile_for_hopper(folder: Path) -> None:
    """192 pointers in one launch: a few seconds, no spills, and loads of 16 bytes."""
    pytest.importorskip("triton")
    from kevolve_inductor.platforms.triton_build import compile_for

    match = find(
        FAMILY, many_buckets, [*(torch.randn(4096) for _ in range(64)), *(borders(128) for _ in range(64))]
    ).match
    assert len(match.inputs) + len(match.outputs) == 192
    kernel = kernel_of(FAMILY, match, FAMILY.space(match, CUDA).default, "triton")
    resources = compile_for(kernel, region_of(match), "sm_90", folder)
    assert resources.spills in (0, None) and (resources.registers or 0) <= 64
