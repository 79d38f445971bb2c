"""Jagged tensors: which graphs are taken, and whether their kernels compute what eager computes."""

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
from torch.nn import functional

from kevolve_inductor.exc import KernelIndexError
from kevolve_inductor.graph.reference import to_graph_module
from kevolve_inductor.synthesis.families.jagged import JaggedFamily
from kevolve_inductor.synthesis.families.jagged.plan import Dense, Reduce
from kevolve_inductor.synthesis.family import Match

FAMILY = JaggedFamily()
ROWS, KEPT = 150, 12


def offsets_of(rows: int = ROWS, longest: int = 30, first: int = 0) -> Tensor:
    lengths = torch.randint(0, longest + 1, (rows,))
    return functional.pad(lengths.cumsum(0), (1, 0)) + first


def jagged(*inner: int, dtype: torch.dtype = torch.float32, first: int = 0) -> list[Tensor]:
    """Values and their offsets; some values are not finite."""
    offsets = offsets_of(first=first)
    values = torch.randn(int(offsets[-1]), *inner) * 50
    values.view(-1)[::41] = math.nan
    values.view(-1)[1::53] = math.inf
    return [values.nan_to_num(7.0, 9.0).to(dtype) if not dtype.is_floating_point else values.to(dtype), offsets]


# --- spellings: dense ------------------------------------------------------------------------------------------------


def clamped(values: Tensor, offsets: Tensor) -> Tensor:
    position = torch.arange(KEPT)
    lengths = offsets[1:] - offsets[:-1]
    index = (offsets[:-1, None] + position).clamp(max=values.shape[0] - 1)
    return torch.where(position < lengths[:, None], values[index], 0)


def masked_index(values: Tensor, offsets: Tensor) -> Tensor:
    """The index is made safe instead of being clamped, and the condition is turned around."""
    position = torch.arange(KEPT)
    real = ~(position[None] >= (offsets[1:] - offsets[:-1]).clamp(max=KEPT)[:, None])
    index = offsets[:-1].unsqueeze(1) + position
    return torch.where(real, values[torch.where(real, index, 0)], -1)


def multiplied(values: Tensor, offsets: Tensor) -> Tensor:
    """Masked by a product: what stands behind the end of a row, if not finite, makes NaN, as in eager."""
    position = torch.arange(KEPT)
    mask = position[None, :] < (offsets[1:] - offsets[:-1])[:, None]
    index = (offsets[:-1, None] + position[None, :]).clamp(max=values.shape[0] - 1)
    return values[index] * mask[..., None]


def latest(values: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
    end = offsets[1:]
    start = torch.maximum(offsets[:-1], end - KEPT)
    index = start.unsqueeze(1) + torch.arange(KEPT).unsqueeze(0)
    real = index < end.unsqueeze(1)
    gathered = values[torch.where(real, index, torch.zeros_like(index))]
    return gathered.masked_fill(~real.unsqueeze(-1), -1), real


def newest_first(values: Tensor, offsets: Tensor) -> Tensor:
    position = torch.arange(KEPT)
    real = position < (offsets[1:] - offsets[:-1])[:, None]
    return torch.where(real, values[(offsets[1:, None] - 1 - position).clamp(min=0)], -1)


def scattered(values: Tensor, offsets: Tensor) -> Tensor:
    """Every event is written to its place; what is too late falls into a last column that is cut off."""
    rows, events = offsets.shape[0] - 1, values.shape[0]
    row = torch.repeat_interleave(torch.arange(rows), offsets[1:] - offsets[:-1], output_size=events)
    position = torch.arange(events) - offsets[row]
    dense = values.new_zeros(rows, KEPT + 1, *values.shape[1:])
    dense[row, position.clamp(max=KEPT)] = values
    return dense[:, :KEPT]


def scattered_by_search(values: Tensor, offsets: Tensor) -> Tensor:
    events = torch.arange(values.shape[0])
    row = torch.searchsorted(offsets, events, right=True) - 1
    dense = torch.full((offsets.shape[0] - 1, KEPT + 1), -3.0)
    return dense.index_put([row, (events - offsets[row]).clamp(max=KEPT)], values)[:, :KEPT] * 2


def padded(values: Tensor, offsets: Tensor) -> Tensor:
    return torch.ops.aten._jagged_to_padded_dense_forward(values, [offsets], [KEPT], -1.0) + 1


def lengths_given(values: Tensor, lengths: Tensor) -> Tensor:
    start = torch.cumsum(lengths, 0) - lengths
    position = torch.arange(KEPT)
    real = position < lengths[:, None]
    return torch.where(real, values[torch.where(real, start[:, None] + position, 0)], 0)


def hashed(ids: Tensor, offsets: Tensor) -> Tensor:
    events = clamped(ids, offsets)
    return ((events * 2654435761) ^ (events >> 13)) % 1000


def looked_up(ids: Tensor, table: Tensor, offsets: Tensor) -> Tensor:
    position = torch.arange(KEPT)
    real = position < (offsets[1:] - offsets[:-1])[:, None]
    index = (offsets[:-1, None] + position).clamp(max=ids.shape[0] - 1)
    return torch.where(real, table[ids[index]], 0.0)


# --- spellings: one element per row ----------------------------------------------------------------------------------


def pooled(values: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    position = torch.arange(70)
    real = position < (offsets[1:] - offsets[:-1])[:, None]
    events = torch.where(real, values[(offsets[:-1, None] + position).clamp(max=values.shape[0] - 1)], -2.0)
    return events.sum(1) * 2, events.amax(1), events.mean(dim=1)


def mean_pooled(values: Tensor, offsets: Tensor) -> Tensor:
    lengths = (offsets[1:] - offsets[:-1]).clamp(min=1, max=KEPT)
    return multiplied(values.nan_to_num(0.0, 1.0), offsets).sum(dim=1) / lengths[:, None]


def summed(values: Tensor, offsets: Tensor) -> Tensor:
    row = torch.searchsorted(offsets, torch.arange(values.shape[0]), right=True) - 1
    total = torch.zeros(offsets.shape[0] - 1, *values.shape[1:], dtype=values.dtype)
    return total.index_put([row], values, accumulate=True)


def added(values: Tensor, offsets: Tensor) -> Tensor:
    rows = offsets.shape[0] - 1
    row = torch.repeat_interleave(torch.arange(rows), offsets[1:] - offsets[:-1], output_size=values.shape[0])
    return torch.zeros(rows, *values.shape[1:], dtype=values.dtype).index_add(0, row, values).relu()


def reduced(how: str, initial: float | None) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda values, offsets: torch.segment_reduce(values, how, offsets=offsets, initial=initial)


def integers(*shape: int) -> Tensor:
    return torch.randint(-(2**62), 2**62, shape)


def ids_and_table() -> list[Tensor]:
    offsets = offsets_of()
    return [torch.randint(0, 50, (int(offsets[-1]),)), torch.randn(50), offsets]


def given_lengths() -> list[Tensor]:
    values, offsets = jagged()
    return [values, offsets.diff()]


@dataclass(frozen=True)
class Case:
    function: Callable[..., Any]
    inputs: Callable[[], Sequence[Tensor]]
    kind: type[Dense] | type[Reduce] = Dense


CASES: dict[str, Case] = {
    "clamped": Case(clamped, jagged),
    "clamped int64": Case(clamped, lambda: jagged(dtype=torch.int64)),
    "clamped bfloat16": Case(clamped, lambda: jagged(dtype=torch.bfloat16)),
    "int32 offsets": Case(lambda v, o: clamped(v, o.int()), jagged),
    "every other value": Case(lambda v, o: clamped(v[:, 1], o), lambda: jagged(3)),
    "masked index": Case(masked_index, lambda: jagged(dtype=torch.int32)),
    "multiplied": Case(multiplied, lambda: jagged(6)),
    "multiplied and turned": Case(lambda v, o: multiplied(v, o).transpose(1, 2).contiguous() + 1, lambda: jagged(6)),
    "latest": Case(lambda v, o: latest(v, o)[0], lambda: jagged(5, dtype=torch.float64)),
    "newest first": Case(newest_first, jagged),
    "scattered": Case(scattered, lambda: jagged(dtype=torch.int64)),
    "scattered rows": Case(scattered, lambda: jagged(3)),
    "scattered by search": Case(scattered_by_search, jagged),
    "padded": Case(padded, lambda: jagged(4)),
    "lengths given": Case(lengths_given, given_lengths),
    "hashed": Case(hashed, lambda: (lambda o: [integers(int(o[-1])), o])(offsets_of())),
    "looked up": Case(looked_up, ids_and_table),
    "pooled": Case(pooled, jagged, Reduce),
    "pooled rows": Case(mean_pooled, lambda: jagged(6), Reduce),
    "summed": Case(summed, lambda: jagged(7), Reduce),
    "summed int64": Case(summed, lambda: jagged(3, dtype=torch.int64), Reduce),
    "summed bfloat16": Case(added, lambda: jagged(9, dtype=torch.bfloat16), Reduce),
    "added": Case(added, lambda: jagged(20), Reduce),
    "added numbers": Case(added, lambda: jagged(dtype=torch.float64), Reduce),
    "segment sum": Case(reduced("sum", 2.5), lambda: jagged(3), Reduce),
    "segment mean": Case(reduced("mean", None), lambda: jagged(3), Reduce),
    "segment maximum": Case(reduced("max", None), jagged, Reduce),
    "segment minimum": Case(reduced("min", 4.0), lambda: jagged(5), Reduce),
}
_FOUND: dict[str, Found] = {}


def found_of(name: str) -> Found:
    if name not in _FOUND:
        torch.manual_seed(len(name))
        _FOUND[name] = find(FAMILY, CASES[name].function, CASES[name].inputs())
    return _FOUND[name]


def runs_as_eager(match: Match, inputs: Sequence[Tensor], folder: Path, **choices: Any) -> None:
    """The kernel against the region itself."""
    expected = to_graph_module(region_of(match))(*inputs)
    call = build(FAMILY, match, {**FAMILY.space(match, CPU).default, **choices}, folder)
    sizes = [inputs[which].shape[dim] for _, which, dim in region_of(match).symbols]
    assert_same(run_cpp(call, inputs, expected, *sizes), expected)


# --- structure -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_every_spelling_is_one_region(name: str) -> None:
    match = found_of(name).match
    assert all(type(task) is CASES[name].kind for task in match.plan.tasks)
    assert len(region_of(match).nodes) == len(match.nodes)
    # Events are read where they are: neither positions nor rows of events are ever written.
    assert all(len(spec.shape) <= 2 for spec in region_of(match).inputs)


def test_rows_have_a_fast_way_without_checks() -> None:
    for name in ("clamped", "masked index", "latest", "newest first", "scattered", "pooled rows"):
        source = kernel_of(FAMILY, found_of(name).match, FAMILY.space(found_of(name).match, CPU).default).source
        row = source[source.index("row0(") :]
        fast, plain = row.split("} else {")[:2]
        assert "kv_index" not in fast.split("if (")[-1] and "for (int64_t at" in plain, name


def test_the_whole_of_a_scatter_is_needed() -> None:
    """The last column, where several events meet, cannot be read backwards."""

    def with_last(values: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
        rows, events = offsets.shape[0] - 1, values.shape[0]
        row = torch.repeat_interleave(torch.arange(rows), offsets[1:] - offsets[:-1], output_size=events)
        dense = values.new_zeros(rows, KEPT + 1)
        dense[row, (torch.arange(events) - offsets[row]).clamp(max=KEPT)] = values
        return dense, dense[:, :KEPT]

    (rejection,) = find(FAMILY, with_last, jagged()).results
    assert not isinstance(rejection, Match) and rejection.code == "structure"


def test_other_indexing_is_not_jagged() -> None:
    table, ids = torch.randn(500, 8), torch.randint(0, 500, (300, 4))
    assert find(FAMILY, lambda t, i: t[i] * 2, [table, ids]).results == []
    assert find(FAMILY, lambda t: t[torch.arange(400) // 2 + 3], [table]).results == []
    written = find(FAMILY, lambda t, i: t.index_put([i[:, 0]], t[:300]), [table, ids])
    assert not written.matches and all(rejection.code == "structure" for rejection in written.rejections)


def test_what_lies_behind_a_reduction_may_be_left() -> None:
    def normalised(values: Tensor, offsets: Tensor) -> Tensor:
        total = multiplied(values, offsets).sum(1)
        return total / total.sum(1, keepdim=True)

    match = find(FAMILY, normalised, jagged(6)).matches[0]
    assert any("sum" in node.name for node in match.outputs) or len(match.outputs[0].meta["val"].shape) == 3


def test_little_work_is_rejected() -> None:
    values, offsets = torch.randn(20), torch.tensor([0, 3, 20])
    (rejection,) = find(FAMILY, clamped, [values, offsets]).results
    assert not isinstance(rejection, Match) and rejection.code == "size"


# --- C++ -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_cpp_agrees_with_eager(name: str, folder: Path) -> None:
    found = found_of(name)
    match, turn = found.match, list(CASES).index(name)
    schedules = schedules_of(FAMILY, match, CPU)
    inputs, expected = values_of(found, match.inputs), values_of(found, match.outputs)
    for schedule in [schedules[0], schedules[1 + turn // 2 % (len(schedules) - 1)]][: 1 + turn % 2]:
        assert_same(run_cpp(build(FAMILY, match, schedule, folder), inputs, expected), expected)


@pytest.mark.parametrize("runs", ["masked", "split"])
@pytest.mark.parametrize("name", ["clamped", "scattered", "scattered by search", "newest first"])
def test_awkward_offsets(name: str, runs: str, folder: Path) -> None:
    """Empty rows, one row with everything, offsets that do not start at zero, a negative length."""
    match = found_of(name).match
    (which,) = [k for k, spec in enumerate(region_of(match).inputs) if spec.shape == (ROWS + 1,)]
    inputs = values_of(found_of(name), match.inputs)
    events = inputs[1 - which].shape[0]
    steps = torch.arange(ROWS + 1)
    choices = [
        torch.zeros(ROWS + 1, dtype=torch.int64).index_fill(0, torch.tensor([ROWS]), events),
        torch.full((ROWS + 1,), events).index_fill(0, torch.tensor([0]), 0),
        (steps * events) // ROWS,
    ]
    if name == "scattered":
        # Columns below zero count from the end, as long as there are so many.
        choices.append((steps * events) // ROWS + 5)
    else:
        choices.append(torch.where(steps == 40, 3, (steps * (events - 9)) // ROWS) + 2)
    if name == "scattered by search":
        choices.pop()
    for offsets in choices:
        runs_as_eager(match, [offsets if k == which else value for k, value in enumerate(inputs)], folder, runs=runs)


def test_events_before_the_first_row_wrap_as_eager_s_do(folder: Path) -> None:
    values, offsets = jagged(3, first=4)
    match = find(FAMILY, summed, [values.nan_to_num(1.0, 2.0), offsets]).match
    runs_as_eager(match, [[values.nan_to_num(1.0, 2.0), offsets][k] for k in order(match, offsets)], folder)


def order(match: Match, offsets: Tensor) -> list[int]:
    """Positions of (values, offsets) in the order of the region's inputs."""
    return [int(spec.shape == tuple(offsets.shape)) for spec in region_of(match).inputs]


@pytest.mark.parametrize(
    "name, change",
    [("summed", -1), ("scattered rows", 3), ("newest first", 400)],
)
def test_indices_out_of_range_are_reported(name: str, change: int, folder: Path) -> None:
    found = found_of(name)
    match = found.match
    call = build(FAMILY, match, FAMILY.space(match, CPU).default, folder)
    inputs = [value.clone() for value in values_of(found, match.inputs)]
    outputs = [empty_like(value) for value in values_of(found, match.outputs)]
    call(*inputs, *outputs)
    (offsets,) = [value for value in inputs if value.shape == (ROWS + 1,)]
    if name == "scattered rows":
        # All rows start so late that their first columns lie before the first one, further than can be counted from the end.
        offsets += 10 * change
    else:
        offsets[-1] += change
    with pytest.raises((IndexError, RuntimeError)):
        to_graph_module(region_of(match))(*inputs)
    with pytest.raises(KernelIndexError):
        call(*inputs, *outputs)


@pytest.mark.parametrize("name", ["clamped", "multiplied", "scattered", "pooled rows", "summed"])
def test_a_dynamic_batch_takes_any_size(name: str, folder: Path) -> None:
    def sample(rows: int) -> list[Tensor]:
        offsets = offsets_of(rows)
        inner = (6,) if name in ("multiplied", "pooled rows", "summed") else ()
        return [torch.randn(int(offsets[-1]), *inner), offsets]

    match = find(FAMILY, CASES[name].function, sample(ROWS), dynamic=True).match
    assert region_of(match).symbol_names == ("s0", "s1")
    values_first = region_of(match).inputs[0].dtype != "int64"
    for rows in (1, 2, 300):
        values, offsets = sample(rows)
        if values.shape[0]:
            runs_as_eager(match, [values, offsets] if values_first else [offsets, values], folder)


def test_kernels_are_the_same_every_time_and_pass_the_gate() -> None:
    for name in ("clamped", "hashed", "pooled"):
        match = found_of(name).match
        for target, language in ((CPU, "cpp"), (CUDA, "triton")):
            schedules = schedules_of(FAMILY, match, target)
            kernels = [kernel_of(FAMILY, match, schedule, language) for schedule in schedules]
            assert kernels[0] == kernel_of(FAMILY, match, schedules[0], language)
            assert len({kernel.digest for kernel in kernels}) > 2


# --- Triton ----------------------------------------------------------------------------------------------------------


def interpret_long_rows() -> None:
    """A row of thousands of events, all alike and positive: added one after another they lose four digits."""
    from kevolve_inductor.platforms.cuda import launch

    values, offsets = torch.full((6000, 40), 0.7), torch.tensor([0, *range(1, ROWS), 6000])
    found = find(FAMILY, summed, [values, offsets])
    exact = 0.7 * (6000 - ROWS + 1)
    for schedule in schedules_of(FAMILY, found.match, CUDA)[:2]:
        outputs = [empty_like(value) for value in values_of(found, found.match.outputs)]
        inputs = values_of(found, found.match.inputs)
        launch(kernel_of(FAMILY, found.match, schedule, "triton"), inputs, outputs, {})
        assert (outputs[0][-1].double() - exact).abs().max() < 2e-6 * exact


def interpret() -> None:
    for number, name in enumerate(CASES):
        found = found_of(name)
        schedules = [s for s in schedules_of(FAMILY, found.match, CUDA) if s["num_warps"] == 4]
        chosen = [schedules[0], schedules[1 + number // 2 % (len(schedules) - 1)]]
        assert_triton_agrees(FAMILY, found, chosen[: 1 + number % 2])
    interpret_long_rows()


def test_triton_agrees_with_eager_under_the_interpreter() -> None:
    interpreted("test_jagged", "interpret")


@pytest.mark.parametrize("name", ["multiplied", "scattered", "summed"])
def test_triton_compiles_without_spilling(name: str, folder: Path) -> None:
    pytest.importorskip("triton")
    from kevolve_inductor.platforms.triton_build import compile_for

    match = found_of(name).match
    kernel = kernel_of(FAMILY, match, FAMILY.space(match, CUDA).default, "triton")
    resources = compile_for(kernel, region_of(match), "sm_90", folder)
    assert resources.spills in (0, None) and (resources.registers or 0) <= 112
