"""Scatters on a GPU: kernels under Triton's interpreter against eager, and compiled for a GPU that is not here."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.fx
from family_checks import (
    CUDA,
    Found,
    assert_same,
    assert_triton_agrees,
    empty_like,
    find,
    interpreted,
    kernel_of,
    region_of,
    schedules_of,
    values_of,
)
from test_scatter import CASES, EVENTS, FAMILY, by_index_put, found_of, places, values
from torch import Tensor

from kevolve_inductor.evaluate.closeness import allowed_error
from kevolve_inductor.graph.reference import evaluate_fp64, to_graph_module
from kevolve_inductor.kernel import Kernel
from kevolve_inductor.synthesis.family import Match, Rejection

# Eager rounds after every addition here.
_ROUNDED = ("index_put bfloat16", "many float16 events in few rows")
_SCHEDULES: tuple[dict[str, int], ...] = (
    {}, {"across": 1, "vector": 8, "steps": 13}, {"num_warps": 4, "across": 1, "block": 256}, {"num_warps": 2}
)  # fmt: skip


def ran(
    kernel: Kernel, inputs: Sequence[Tensor], expected: Sequence[Tensor], symbols: Mapping[str, int]
) -> list[Tensor]:
    from kevolve_inductor.platforms.cuda import launch

    outputs = [empty_like(value) for value in expected]
    launch(kernel, inputs, outputs, symbols)
    return outputs


def chosen(match: Match, wanted: Mapping[str, int]) -> dict[str, Any]:
    space = FAMILY.space(match, CUDA)
    return {**space.default, **{name: value for name, value in wanted.items() if value in space.choices[name]}}


def reference_of(match: Match, inputs: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """The first output in float64 and as eager has it."""
    reference = evaluate_fp64(region_of(match), inputs)
    return reference.exact[0], reference.eager[0]


def interpret() -> None:
    for turn, name in enumerate(CASES):
        if name not in _ROUNDED:
            found = found_of(name)
            assert_triton_agrees(FAMILY, found, [chosen(found.match, _SCHEDULES[turn % len(_SCHEDULES)])])


def interpret_rounded() -> None:
    for name in _ROUNDED:
        found = found_of(name)
        inputs, expected = values_of(found, found.match.inputs), values_of(found, found.match.outputs)
        exact, eager = reference_of(found.match, inputs)
        (output,) = ran(kernel_of(FAMILY, found.match, chosen(found.match, {}), "triton"), inputs, expected, {})
        error = (output.double() - exact).abs().nan_to_num(0.0, 0.0, 0.0)
        # The interpreter cuts off where a GPU rounds.
        assert bool((error <= allowed_error(exact, eager) + exact.abs().nan_to_num(0.0) * 2**-7).all())
        assert torch.equal(output.isfinite(), exact.isfinite())


def interpret_unevenly() -> None:
    """All events in one row (which is a very long one), in order of their rows, and rows without any."""
    found = found_of("index_put")
    kernels = [kernel_of(FAMILY, found.match, chosen(found.match, change), "triton") for change in _SCHEDULES[:3]]
    given = values().nan_to_num(0.0, 0.0, 0.0)
    few = torch.randint(3, (EVENTS,)) * 12
    for number, at in enumerate((torch.full((EVENTS,), -1), places().sort().values, few, torch.arange(EVENTS) % 2)):
        inputs = [given if spec.dtype == "float32" else at for spec in region_of(found.match).inputs]
        exact, eager = reference_of(found.match, inputs)
        for kernel in kernels[: 1 + number % 3]:
            (output,) = ran(kernel, inputs, [eager], {})
            # A row of all events loses what eager, which adds in another order, loses or does not.
            assert bool(((output.double() - exact).abs() <= allowed_error(exact, eager)).all())


def interpret_long_sums() -> None:
    """Each of thousands of additions of one sign would lose as much again; what is not finite stays what it is."""
    events, width, row = 4096, 1024, 2

    def added(x: Tensor, at: Tensor) -> Tensor:
        return torch.zeros(8, width).index_add(0, at, x)

    x, at = torch.full((events, width), 0.1), torch.full((events,), row)
    x[1000, 3], x[2000, 4], x[:, 5] = math.inf, math.nan, 1e38
    match = find(FAMILY, added, [x, at]).match
    expected = x.double().sum(0).float()
    for room in (0, FAMILY.space(match, CUDA).choices["room"][0]):
        kernel = kernel_of(FAMILY, match, chosen(match, {"room": room}), "triton")
        (output,) = ran(kernel, [x, at], [torch.empty(8, width)], {})
        torch.testing.assert_close(output[row], expected, rtol=3e-7, atol=0.0, equal_nan=True)
        assert not output[:row].any() and not output[row + 1 :].any()


def interpret_any_number() -> None:
    def added(x: Tensor, at: Tensor) -> Tensor:
        return torch.zeros(300, 8).index_add(0, at, x)

    match = find(FAMILY, added, [torch.randn(600, 8), places(600, rows=300)], dynamic=True).match
    region = region_of(match)
    kernel = kernel_of(FAMILY, match, chosen(match, {}), "triton")
    for events in (2, 2000):
        given = {"float32": torch.randn(events, 8), "int64": places(events, rows=300)}
        inputs = [given[spec.dtype] for spec in region.inputs]
        expected = to_graph_module(region)(*inputs)
        symbols = dict.fromkeys(region.symbol_names, events)
        assert_same(ran(kernel, inputs, expected, symbols), expected)


def interpret_slots() -> None:
    """Slots in the result and beside it; rows of which some, or one, have more events than slots."""
    torch.manual_seed(0)
    events, rows = 600, 70
    at = torch.randint(rows, (events,))
    uneven = torch.where(torch.rand(events) < 0.3, torch.randint(3, (events,)) * 7, at)
    for dtype, how in ((torch.float32, "sum"), (torch.bfloat16, "amax"), (torch.int32, "amin")):
        given = torch.randint(-99, 99, (events, 24)).to(dtype)
        found = find(FAMILY, partial(onto_rows, rows=rows, how=how), [given, at])
        region, choices = region_of(found.match), FAMILY.space(found.match, CUDA).choices
        assert choices["room"][0] and choices["room"][-1] == 0 and len(choices["room"]) >= 2
        for room in choices["room"][: 2 if how == "sum" else 1]:
            kernel = kernel_of(FAMILY, found.match, {**chosen(found.match, {"lines": 2}), "room": room}, "triton")
            for index in (uneven, at, torch.full((events,), rows - 1))[: 3 if how == "sum" else 1]:
                inputs = [index if spec.dtype == "int64" else given for spec in region.inputs]
                expected = to_graph_module(region)(*inputs)
                assert_same(ran(kernel, inputs, expected, {}), expected)


def interpret_extremes() -> None:
    """By atomic operations: of numbers of both signs and none, NaNs of both signs, and infinities, onto values."""
    torch.manual_seed(0)
    events, rows = 400, 30
    at = torch.randint(rows - 1, (events,))
    for dtype, how in ((torch.float32, "amax"), (torch.float64, "amin"), (torch.int32, "amin"), (torch.int64, "amax")):
        given = (torch.randn(events, 24) * 100).to(dtype)
        if dtype.is_floating_point:
            given[at % 7 == 0] = given[at % 7 == 0].abs() * (-1 if how == "amax" else 1)
            given[3], given[5, 2], given[8, 4] = 0.0, math.inf, -math.inf
            given[11, 1], given[12, 1] = math.nan, torch.tensor(math.nan).copysign(torch.tensor(-1.0))
            assert bool(given[12, 1].signbit())
        found = find(FAMILY, partial(onto_values, how=how), [given, at, given[:rows] * 2])
        inputs = values_of(found, found.match.inputs)
        expected = to_graph_module(region_of(found.match))(*inputs)
        for change in ({"block": 512}, {"block": 256, "num_warps": 4}):
            kernel = kernel_of(FAMILY, found.match, {**chosen(found.match, change), "atomic": True}, "triton")
            assert not kernel.workspaces and "tl.atomic_m" in kernel.source
            assert_same(ran(kernel, inputs, expected, {}), expected)


def interpret_crowded() -> None:
    """Rows by products: whatever the values are, also where a block of events has infinite ones and none."""
    torch.manual_seed(0)
    events, rows = 300, 130
    at = torch.randint(rows - 1, (events,))
    for dtype, width, change in (
        (torch.float32, 24, {"taken": 32}), (torch.float16, 17, {"programs": 264}), (torch.bfloat16, 40, {"height": 128})
    ):  # fmt: skip
        given = (torch.randn(events, width) * torch.logspace(-3, 3, width)).to(dtype)
        found = find(FAMILY, partial(onto_values, how="sum"), [given, at, torch.randn(rows, width).to(dtype)])
        kernel = kernel_of(FAMILY, found.match, {**chosen(found.match, change), "crowded": True}, "triton")
        assert len(kernel.launches) == 2
        # The interpreter multiplies bfloat16 numbers as the integers they are stored in.
        text = kernel.source.replace("[None, :]).to(tl.bfloat16)", "[None, :]).to(tl.float32)")
        operand = r", (low|middle|high|value\d\.to\(tl.bfloat16\))(?=(, total|, sums)?\))"
        text, count = re.subn(operand, r", \1.to(tl.float32)", text)
        assert bool(count) == (dtype is not torch.float16)
        kernel = replace(kernel, source=text)
        for spoilt in (False, True):
            inputs = values_of(found, found.match.inputs)
            if spoilt:
                of = next(x for x in inputs if x.shape == given.shape)
                of[3, 2], of[100, 4], of[299] = math.inf, math.nan, -math.inf
            reference = evaluate_fp64(region_of(found.match), inputs)
            exact, eager = reference.exact[0], reference.eager[0]
            (output,) = ran(kernel, inputs, [eager], {})
            error = (output.double() - exact).abs().nan_to_num(0.0, 0.0, 0.0)
            # The interpreter cuts off where a GPU rounds.
            unit = 0.0 if dtype is torch.float32 else 2.0 * torch.finfo(dtype).eps
            assert bool((error <= allowed_error(exact, eager) + exact.abs().nan_to_num(0.0, 0.0, 0.0) * unit).all())
            assert torch.equal(output.isnan(), exact.isnan())
            assert torch.equal(output.isinf(), exact.isinf())


def interpret_exact() -> None:
    """Sums of integers round once, whatever the values are and in whichever order they come."""
    torch.manual_seed(0)
    events, rows = 300, 40
    at = torch.randint(rows - 1, (events,))
    at[:40] = 3
    for dtype, width, change in (
        (torch.float32, 24, {"copies": 4}), (torch.bfloat16, 17, {"flat": False}), (torch.float16, 40, {"block": 1024}),
        (torch.float16, 19, {"flat": False, "copies": 1}),
    ):  # fmt: skip
        given = (torch.randn(events, width) * torch.logspace(-40, 36, events)[torch.randperm(events), None]).to(dtype)
        if dtype is torch.float16:
            given = (torch.randn(events, width) * torch.logspace(-8, 4, events)[:, None]).clamp(-6e4, 6e4).to(dtype)
        # What is left of numbers that cancel; zeros of both signs.
        given[2], given[40], given[41] = -given[1], 0.0, -0.0
        found = find(FAMILY, partial(onto_values, how="sum"), [given, at, torch.zeros(rows, width).to(dtype)])
        kernel = kernel_of(FAMILY, found.match, {**chosen(found.match, change), "exact": True}, "triton")
        assert len(kernel.launches) == 2 and all(f"tl.atomic_{how}(" in kernel.source for how in ("add", "or"))
        for spoilt in (False, True):
            inputs = values_of(found, found.match.inputs)
            of, index = (
                next(x for x in inputs if x.shape == like.shape and x.dtype == like.dtype) for like in (given, at)
            )
            if spoilt:
                of[3, 2], of[100, 4], of[299] = math.inf, math.nan, -math.inf
                of[5, 7], of[6, 7] = math.inf, -math.inf
            (output,) = ran(kernel, inputs, [torch.zeros(rows, width).to(dtype)], {})
            expected = torch.zeros(rows, width, dtype=torch.float64)
            for row in range(rows):
                for place in range(width):
                    terms = of[index == row, place].double()
                    expected[row, place] = math.fsum(terms) if bool(terms.isfinite().all()) else float(terms.sum())
            # The interpreter cuts off where a GPU rounds to bfloat16.
            unit = 2**-7 if dtype is torch.bfloat16 else 0.0
            torch.testing.assert_close(output, expected.float().to(dtype), rtol=unit, atol=0.0, equal_nan=True)
            back = [x.flip(0) if x is of or x is index else x for x in inputs]
            (again,) = ran(kernel, back, [torch.zeros(rows, width).to(dtype)], {})
            torch.testing.assert_close(again, output, rtol=0.0, atol=0.0, equal_nan=True)


def onto_values(x: Tensor, at: Tensor, start: Tensor, how: str) -> Tensor:
    return start.scatter_reduce(0, at[:, None].expand_as(x), x, how)


def interpret_turned() -> None:
    """Sums have the same bits whichever slots and places events take."""
    events, rows = 2800, 200
    at = torch.randint(rows, (events,))
    # More than are compared with one another, and some fewer.
    at[:2100], at[2100:2300] = 7, 8
    given = torch.randn(events, 24) * 100
    found = find(FAMILY, partial(onto_rows, rows=rows, how="sum"), [given, at])
    inputs = [{"int64": at, "float32": given}[spec.dtype] for spec in region_of(found.match).inputs]
    for room in FAMILY.space(found.match, CUDA).choices["room"]:
        kernel = kernel_of(FAMILY, found.match, {**chosen(found.match, {}), "room": room}, "triton")
        # Lanes take events the other way around wherever places are counted by atomic operations.
        text, count = re.subn(
            r"(event = .* \* (\d+)) \+ tl.arange\(0, \2\)", r"\1 + (\2 - 1 - tl.arange(0, \2))", kernel.source
        )
        assert count == 2
        results = [ran(one, inputs, [torch.zeros(rows, 24)], {})[0] for one in (kernel, replace(kernel, source=text))]
        assert torch.equal(*results) and not torch.equal(results[0], torch.zeros(rows, 24))


def onto_rows(x: Tensor, at: Tensor, rows: int, how: str) -> Tensor:
    start = torch.zeros(rows, x.shape[1], dtype=x.dtype, device=x.device)
    return start.scatter_reduce(0, at[:, None].expand_as(x), x, how)


@pytest.mark.parametrize(
    "function",
    [
        "interpret",
        "interpret_rounded",
        "interpret_unevenly",
        "interpret_long_sums",
        "interpret_any_number",
        "interpret_slots",
        "interpret_turned",
        "interpret_extremes",
        "interpret_crowded",
        "interpret_exact",
    ],
)
def test_triton_agrees_with_eager_under_the_interpreter(function: str) -> None:
    interpreted("test_scatter_triton", function)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_uneven_rows_have_the_same_bits_every_time_on_the_gpu(dtype: torch.dtype) -> None:
    """Hundreds of rows have more events than slots, some of them more than are compared with one another."""
    check_uneven(dtype, "cuda", events=200_000, rows=10_000)


def check_uneven(dtype: torch.dtype, device: str, events: int, rows: int) -> None:
    from kevolve_inductor.platforms.cuda import launch

    def drawn() -> Tensor:
        return torch.randn(events, 64, device=device).to(dtype)

    even = torch.randint(rows, (events,), device=device)
    found = find(FAMILY, partial(onto_rows, rows=rows, how="sum"), [drawn(), even], device=device)
    region, choices = region_of(found.match), FAMILY.space(found.match, CUDA).choices
    assert choices["room"][0] and choices["room"][-1] == 0
    assert ("exact" in choices) == (dtype is not torch.float32)
    ways = [{"room": room} for room in choices["room"]]
    ways += [{"exact": True, "flat": flat, "num_warps": 4} for flat in choices.get("flat", ())]
    skewed = (even.double() / rows).pow(6).mul(rows).long()
    for way in ways:
        kernel = kernel_of(FAMILY, found.match, {**chosen(found.match, {}), **way}, "triton")
        for index in (skewed, torch.where(even % 3 == 0, 17, even), torch.full_like(even, 5)):
            given = drawn()
            inputs = [index if spec.dtype == "int64" else given for spec in region.inputs]
            exact, share = (
                torch.zeros(rows, 64, dtype=torch.float64, device=device).index_add(0, index, x)
                for x in (given.double(), given.double().abs())
            )
            results = [torch.full((rows, 64), math.nan, dtype=dtype, device=device) for _ in range(8)]
            for result in results:
                launch(kernel, inputs, [result], {})
            error = (results[0].double() - exact).abs()
            assert bool((error <= torch.finfo(dtype).eps * exact.abs() + 1e-5 * share + 1e-30).all())
            assert all(torch.equal(results[0], again) for again in results[1:])


def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(*shape, dtype=dtype)


def segments(x: Tensor, at: Tensor) -> Tensor:
    return torch.zeros(100_000, x.shape[1], dtype=x.dtype).index_add(0, at, x)


def messages(nodes: Tensor, weights: Tensor, sources: Tensor, targets: Tensor) -> Tensor:
    return torch.zeros_like(nodes).index_add(0, targets, nodes[sources] * weights[:, None])


def greatest(x: Tensor, at: Tensor) -> Tensor:
    return onto_rows(x, at, 5000, "amax")


LARGE: dict[str, tuple[Callable[..., Any], Callable[[], Sequence[Tensor]]]] = {
    "segments": (segments, lambda: [empty(2_000_000, 128, dtype=torch.bfloat16), places(2_000_000, rows=100)]),
    "greatest": (greatest, lambda: [empty(100_000, 48), places(100_000, rows=50)]),
    "messages": (messages, lambda: [empty(20_000, 32), empty(300_000), *(places(300_000, rows=9) for _ in "st")]),
}
_LARGE_FOUND: dict[str, Found] = {}


def large(name: str) -> Found:
    if name not in _LARGE_FOUND:
        function, inputs = LARGE[name]
        _LARGE_FOUND[name] = find(FAMILY, function, inputs())
    return _LARGE_FOUND[name]


@pytest.mark.parametrize("name", LARGE)
def test_triton_compiles_for_hopper_without_spilling(name: str, folder: Path) -> None:
    pytest.importorskip("triton")
    from kevolve_inductor.platforms.triton_build import compile_for

    match = large(name).match
    space = FAMILY.space(match, CUDA)
    for schedule in (*space.seeds[:4], *(seed for seed in space.seeds if seed.get("atomic") or seed.get("exact"))):
        resources = compile_for(kernel_of(FAMILY, match, schedule, "triton"), region_of(match), "sm_90", folder)
        assert resources.spills in (0, None) and (resources.registers or 0) <= 128


def test_first_schedules_differ_and_have_a_row_of_usual_length_in_flight() -> None:
    space = FAMILY.space(large("segments").match, CUDA)
    assert len({tuple(sorted(seed.items())) for seed in space.seeds}) == len(space.seeds)
    events = [int(seed["across"]) * int(seed["steps"]) for seed in space.seeds[:2]]
    assert all(20 <= count <= 32 for count in events)


def test_kernels_are_the_same_every_time_and_pass_the_gate() -> None:
    match = found_of("gradient of bags").match
    schedules = [s for s in schedules_of(FAMILY, match, CUDA) if int(s["across"]) <= 2]
    # What only products and sums of integers ask for changes nothing else.
    default = FAMILY.space(match, CUDA).default
    of_others = [name for name in ("taken", "programs", "height", "copies", "flat", "exact") if name in default]
    schedules = [s for s in schedules if all(s[name] == default[name] for name in of_others)]
    kernels = [kernel_of(FAMILY, match, schedule, "triton") for schedule in schedules]
    assert kernels[0] == kernel_of(FAMILY, match, schedules[0], "triton")
    assert len({kernel.digest for kernel in kernels}) == len(schedules)


def on_meta(graph: torch.fx.Graph) -> list[Match | Rejection]:
    """What is found where the graph's tensors are on a device other than the CPU."""
    moved = copy.deepcopy(graph)
    for node in moved.nodes:
        value = node.meta.get("val")
        if isinstance(value, Tensor):
            node.meta["val"] = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")
    return list(FAMILY.find(moved, "meta"))


def test_few_rows_or_short_ones_are_left_to_atomic_operations() -> None:
    short = find(FAMILY, by_index_put, [empty(700_000, 4), places(700_000)])
    for found in (found_of("index_put"), short):
        (rejection,) = on_meta(found.graph)
        assert isinstance(rejection, Rejection) and rejection.code == "size"
    # Where half precision is added one by one that is slow, whatever the length of rows.
    for dtype in (torch.float16, torch.bfloat16):
        (match,) = on_meta(find(FAMILY, segments, [empty(300_000, 1, dtype=dtype), places(300_000)]).graph)
        assert isinstance(match, Match)
        kernel = kernel_of(FAMILY, match, FAMILY.space(match, CUDA).seeds[0], "triton")
        assert "tl.atomic_add(at, number" in kernel.source
    assert all(isinstance(result, Match) for name in LARGE for result in on_meta(large(name).graph))
