"""Chains of small products: what their schedules change, and that none of it changes the results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from family_checks import CUDA, assert_triton_agrees, find, interpreted, kernel_of, region_of, values_of
from test_chains import (
    CASES,
    FAMILY,
    cross,
    cross_layers,
    feed_forward,
    found_of,
    halves,
    interaction,
    normal,
    on_gpu,
    teach_interpreter,
)
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.nn import functional

from kevolve_inductor.exc import EmissionError
from kevolve_inductor.kernel import Argument, Kernel, Launch
from kevolve_inductor.platforms.cuda import launch
from kevolve_inductor.synthesis.families.chains.gelu import GELU_HELPERS
from kevolve_inductor.synthesis.families.chains.plan import Dot
from kevolve_inductor.synthesis.families.chains.sizes import Piece, pieces_of
from kevolve_inductor.synthesis.family import Match, Schedule

PIECES = {
    "feed forward": 16, "normalised feed forward": 16, "shared feed forward": 16, "normalised first": 64,
    "gated feed forward": 32, "split rows": 16, "perceptron": 32, "wide perceptron": 64, "narrow cross": 32,
    "padded layers": 16, "gate": 16,
}  # fmt: skip


def schedule_of(match: Match, **changes: Any) -> Schedule:
    return {**FAMILY.space(match, CUDA).default, "precision": "ieee", "straight": False, **changes}


def source_of(match: Match, **changes: Any) -> str:
    return kernel_of(FAMILY, match, schedule_of(match, **changes), "triton").source


def loops_of(match: Match) -> tuple[int, ...]:
    """Units of a program: one, all rows of a sample, and more than there are in the last program."""
    return (1, -(-match.plan.seen[1] // 32), 2)


def interpret_pieces() -> None:
    teach_interpreter()
    for name, block in PIECES.items():
        found = found_of(name)
        schedules = [
            schedule_of(found.match, rows=32, block=block, straight=True, loop=loop, ahead=loop > 1)
            for loop in loops_of(found.match)
        ]
        assert_triton_agrees(FAMILY, found, schedules)


def interpret_ahead() -> None:
    teach_interpreter()
    for name in CASES:
        found = found_of(name)
        schedules = [
            schedule_of(found.match, rows=32, block=block, loop=loop, ahead=True)
            for block, loop in zip((32, 64, 256), loops_of(found.match), strict=True)
        ]
        assert_triton_agrees(FAMILY, found, schedules)


def interpret_what_is_not_finite() -> None:
    """Sums of products agree with the products of sums where rows or weights are infinite."""
    found = on_gpu(find(FAMILY, cross, [normal(16, 300), *cross_layers(2, 300, 20)]))
    for change in (float("inf"), float("nan")):
        for value in found.examples.values():
            value.view(-1)[7] = change
            assert_triton_agrees(FAMILY, found, [schedule_of(found.match, rows=16, block=64)])
            value.view(-1)[7] = 0.5


def interpret_joined() -> None:
    """Ranks that fill their tiles and that do not, pairs, and one product that is left over."""
    teach_interpreter()
    for count, rank in ((2, 32), (3, 20), (4, 20)):
        found = on_gpu(find(FAMILY, cross, [normal(40, 300), *cross_layers(count, 300, rank)]))
        schedules = [
            schedule_of(found.match, rows=16, block=64, joined=joined, ahead=joined) for joined in (True, False)
        ]
        assert_triton_agrees(FAMILY, found, schedules)


def interpret_joined_rows() -> None:
    """Weights that lie the other way round: what is summed over are their rows."""

    def layers(x: Tensor, *weights: Tensor) -> Tensor:
        first = x
        for down, up in zip(weights[0::2], weights[1::2], strict=True):
            x = first * ((x @ down) @ up) + x
        return x

    teach_interpreter()
    for rank in (16, 20):
        shapes = ((300, rank), (rank, 300)) * 3
        found = on_gpu(find(FAMILY, layers, [normal(40, 300), *(normal(*shape) / 5 for shape in shapes)]))
        schedule = schedule_of(found.match, rows=16, block=64, joined=True)
        assert "[:, None]" in source_of(found.match, joined=True).split("_both_two = ")[1].split("\n")[0]
        assert_triton_agrees(FAMILY, found, [schedule])


def interpret_gelu() -> None:
    """A product with the unit matrix on either side: what is left is gelu, rounded once."""
    teach_interpreter()
    values, unit = torch.linspace(-5.5, 5.5, 4096).half().view(256, 16), torch.eye(16, dtype=torch.half)
    found = on_gpu(find(FAMILY, lambda x, up, down: functional.gelu(x @ up) @ down, [values, unit, unit]))
    kernel = kernel_of(FAMILY, found.match, schedule_of(found.match), "triton")
    assert "kv_one_plus_erf(" in kernel.source and "libdevice.erf" not in kernel.source
    outputs = [torch.full_like(values, torch.nan)]
    launch(kernel, values_of(found, found.match.inputs), outputs, {})
    torch.testing.assert_close(outputs[0].double(), functional.gelu(values.double()), rtol=6e-4, atol=4e-8)


def interpret_one_plus_erf() -> None:
    text = "@triton.jit\ndef one(x, out):\n  at = tl.arange(0, 4096)\n  tl.store(out + at, kv_one_plus_erf(tl.load(x + at)))\n"
    arguments = (Argument("input", 0), Argument("output", 0))
    kernel = Kernel("triton", f"{GELU_HELPERS}\n\n{text}", (Launch("one", arguments, ("1",)),))
    values, out = torch.linspace(-4, 8, 4096), torch.empty(4096)
    values[1000:1003] = torch.tensor([float("inf"), float("-inf"), float("nan")])
    launch(kernel, [values], [out], {})
    assert out[1000] == 2 and out[1001] == 0 and out[1002].isnan()
    values[1000:1003], out[1000:1003] = 0, 1
    torch.testing.assert_close(out.double(), torch.special.erfc(-values.double()), rtol=1e-5, atol=0)


INTERPRETED = (
    "interpret_pieces", "interpret_ahead", "interpret_what_is_not_finite", "interpret_joined", "interpret_joined_rows",
    "interpret_gelu", "interpret_one_plus_erf",
)  # fmt: skip


@pytest.mark.parametrize("function", INTERPRETED)
def test_schedules_agree_with_eager_under_the_interpreter(function: str) -> None:
    interpreted("test_chains_schedules", function)


def test_wide_products_of_one_factor_are_one_sum() -> None:
    """The accumulator of one is where the next one begins."""
    steps = [step for step in found_of("cross").match.plan.steps if isinstance(step, Dot)]
    joined = [step for step in steps if step.onto]
    assert [step.onto for step in joined] == ["v1", "v1v3"]
    source = source_of(found_of("cross").match)
    assert "v1v3 = tl.dot(" in source and " v3 =" not in source


def test_products_of_one_sum_are_joined_in_pairs() -> None:
    """Each pair is one product, begun with what the pair before gives; its left operand is put together once."""
    match = on_gpu(find(FAMILY, cross, [normal(40, 300), *cross_layers(4, 300, 20)])).match
    source, plain = (source_of(match, joined=joined) for joined in (True, False))
    assert source.count("tl.join(") == 2 and "tl.join(" not in plain
    assert plain.count("tl.dot(") - source.count("tl.dot(") == 1 + 1 + 2
    assert "v1v3v5v7 = tl.dot(v1v3v5v7_left, " in source
    assert set(FAMILY.space(match, CUDA).choices["joined"]) == {True, False}
    assert FAMILY.space(found_of("perceptron").match, CUDA).choices["joined"] == (False,)


def test_weights_that_lie_differently_are_not_joined() -> None:
    def turned(x: Tensor, *layers: Tensor) -> Tensor:
        first = x
        for number, (up, down) in enumerate(zip(layers[0::2], layers[1::2], strict=True)):
            x = first * ((x @ down) @ (up if number else up.t())) + x
        return x

    inputs = [normal(40, 300), normal(300, 20), normal(300, 20), normal(20, 300), normal(300, 20)]
    match = on_gpu(find(FAMILY, turned, inputs)).match
    assert any(isinstance(step, Dot) and step.onto for step in match.plan.steps)
    assert FAMILY.space(match, CUDA).choices["joined"] == (False,)


def test_what_no_product_takes_is_loaded_ahead_one_way_or_the_other() -> None:
    match = found_of("cross").match
    ahead, piped = (source_of(match, rows=32, block=64, ahead=ahead, stages=3) for ahead in (True, False))
    assert "ahead0" in ahead and "num_stages" not in ahead
    # The first sweep loads nothing but operands.
    assert "ahead0" not in piped and piped.count(", num_stages=3):") == 3 and piped.count("for ") == 4


def test_gelu_is_shortened_where_results_have_16_bits() -> None:
    def hidden(dtype: torch.dtype) -> str:
        inputs = [normal(64, 32).to(dtype), normal(32, 48).to(dtype), normal(48, 32).to(dtype)]
        return source_of(on_gpu(find(FAMILY, lambda x, up, down: functional.gelu(x @ up) @ down, inputs)).match)

    assert "libdevice.erf(" in hidden(torch.float32)
    for dtype in (torch.bfloat16, torch.float16):
        assert "kv_one_plus_erf(" in hidden(dtype) and "libdevice.erf(" not in hidden(dtype)


def test_products_of_other_values_stay_apart() -> None:
    """A factor that the products do not depend on may be infinite where they are finite."""

    def scaled(x: Tensor, scale: Tensor, down: Tensor, up: Tensor, other: Tensor) -> Tensor:
        hidden = x @ down
        return scale * (hidden @ up) + scale * (hidden @ other)

    inputs = [normal(64, 300), normal(64, 300), normal(300, 20), normal(20, 300), normal(20, 300)]
    match = on_gpu(find(FAMILY, scaled, inputs)).match
    assert not any(isinstance(step, Dot) and step.onto for step in match.plan.steps)


def test_what_is_cut_holds_what_it_has_loaded() -> None:
    """Columns that a gate and its product both need are loaded once, and the last piece is no wider than 128 bytes."""
    match = found_of("gate").match
    source = source_of(match, rows=32, block=32, straight=True, loop=1)
    assert source.count("tl.load(in0") == 3 and "for " not in source
    source = source_of(match, rows=32, block=64, straight=True, loop=1)
    assert source.count("tl.load(in0") == 2 and "(64 + tl.arange(0, 32))" in source


def test_straight_code_is_for_what_is_wider_than_a_piece() -> None:
    narrow = on_gpu(find(FAMILY, lambda x, up, down: (x @ up).relu() @ down,
                         [normal(4096, 64), normal(64, 32), normal(32, 64)])).match  # fmt: skip
    with pytest.raises(EmissionError):
        source_of(narrow, block=256, straight=True)
    assert "straight" in FAMILY.space(found_of("gate").match, CUDA).choices
    assert FAMILY.space(found_of("interaction").match, CUDA).choices["straight"] == (False,)


def test_the_next_unit_is_loaded_before_this_one_is_computed() -> None:
    match = on_gpu(find(FAMILY, lambda x, up, down: (x @ up).relu() @ down,
                        [normal(4096, 64), normal(64, 32), normal(32, 64)])).match  # fmt: skip
    ahead, plain = (source_of(match, rows=64, block=256, loop=4, ahead=ahead) for ahead in (True, False))
    assert ahead.index("ahead0 = tl.load(in0") < ahead.index("for turn")
    assert "ahead" not in plain
    body = ahead[ahead.index("for turn") :]
    assert body.index("ahead0 = tl.load(in0") < body.index("tl.dot") and "tl.load(in1" not in body


def test_the_only_sweep_of_all_units_is_one_loop() -> None:
    """The last product of a unit is done before what comes after it, whatever else is under way."""
    match = found_of("perceptron").match
    source = source_of(match, rows=32, block=32, loop=2)
    assert source.count("flatten=True") == 1 and source.count(") + 0.0") == 1
    for changes in ({"loop": 1}, {"block": 256}, {"straight": True}):
        other = source_of(match, **{"rows": 32, "block": 32, "loop": 2, **changes})
        assert "flatten" not in other and "+ 0.0" not in other
    assert "flatten" not in source_of(found_of("cross").match, rows=32, block=64, loop=2)


def test_a_program_without_a_loop_begins_with_its_loads() -> None:
    match = found_of("normalised interaction").match
    early, late = (source_of(match, block=256, loop=1, ahead=ahead) for ahead in (True, False))
    assert early.rindex("tl.load(") < early.index("tl.dot(") < late.rindex("tl.load(")
    assert early.count("tl.load(") == late.count("tl.load(")


def test_operands_that_take_much_room_are_loaded_when_they_are_needed() -> None:
    with torch._subclasses.FakeTensorMode():
        inputs = [torch.empty(shape, dtype=torch.bfloat16) for shape in ((4096, 128), (128, 256), (256, 128))]
        found = find(FAMILY, lambda x, up, down: (x @ up).relu() @ down, inputs)
    source = source_of(on_gpu(found).match, rows=64, block=256, loop=1, ahead=True)
    assert source.index("tl.load(in1") < source.index("tl.dot(") < source.index("tl.load(in2")


def test_small_values_that_all_units_share_are_held() -> None:
    """But no rows or columns: each thread would have many copies of their values."""
    source = source_of(found_of("normalised interaction").match, block=256, loop=2)
    body = source[source.index("for turn") :]
    assert "tl.load(in2" not in body and "tl.load(in3" not in body
    source = source_of(found_of("perceptron").match, rows=32, block=32, loop=2)
    assert "tl.load(in2" in source[source.index("for turn") :]


def test_weights_of_a_sample_are_loaded_once_for_all_of_its_rows() -> None:
    match = found_of("feed forward").match
    one, several = (source_of(match, rows=32, block=256, loop=loop, ahead=True) for loop in (1, 3))
    assert "for turn" not in one
    body = several[several.index("for turn") :]
    assert "tl.load(in1" not in body and "tl.load(in0" in body


def test_the_seeds_of_large_chains_load_ahead() -> None:
    with torch._subclasses.FakeTensorMode():
        inputs = [torch.empty(shape, dtype=torch.bfloat16) for shape in ((131072, 256), (256, 128), (128, 64))]
        found = find(FAMILY, lambda x, up, down: (x @ up).relu() @ down, inputs)
    first = FAMILY.space(on_gpu(found).match, CUDA).seeds[0]
    assert first["ahead"] and int(first["loop"]) > 1


def test_rows_that_no_cache_keeps_may_leave_it_first_and_weights_stay() -> None:
    def mlp(x: Tensor, up: Tensor, down: Tensor) -> Tensor:
        return (x @ up).relu() @ down

    choices, sources = {}, {}
    for rows in (65536, 262144):
        with FakeTensorMode():
            inputs = [torch.empty(shape, dtype=torch.bfloat16) for shape in ((rows, 256), (256, 128), (128, 64))]
            match = on_gpu(find(FAMILY, mlp, inputs)).match
        choices[rows] = FAMILY.space(match, CUDA).choices["once"]
        for ahead in (True, False):
            sources[ahead] = source_of(match, rows=64, block=64, loop=2, ahead=ahead, once=True)
            assert "evict" not in source_of(match, rows=64, block=64, loop=2, ahead=ahead)
    assert choices == {65536: (False,), 262144: (False, True)}
    for source in sources.values():
        loads = [line for line in source.splitlines() if "tl.load(" in line]
        assert len(loads) >= 3 and all(("tl.load(in0" in line) == ("evict_first" in line) for line in loads)


def test_pieces_lie_alike_in_shared_memory(folder: Path) -> None:
    """A hidden width of a block and a half: what is left is no narrower, or its operands would be assembled wrongly."""
    pytest.importorskip("triton")
    from kevolve_inductor.platforms.triton_build import compile_for

    with FakeTensorMode():
        found = find(FAMILY, feed_forward, halves((1024, 200, 192), (1024, 192, 96), (1024, 96, 192), (192,)))
    match = on_gpu(found).match
    for rows, warps, loop in ((64, 4, 1), (128, 8, 1), (64, 4, 4)):
        schedule = schedule_of(match, rows=rows, block=64, straight=True, ahead=True, loop=loop, warps=warps)
        kernel = kernel_of(FAMILY, match, schedule, "triton")
        # What stays for all rows of a sample has places of its own, and may be narrower.
        assert ("(64 + tl.arange(0, 32))" in kernel.source) == (loop > 1)
        compile_for(kernel, region_of(match), "sm_90", folder)


def test_rows_that_are_summed_over_come_in_pieces() -> None:
    """160 are 128 and 32, beside 64 rows of a program; where a program takes all of them, its own pieces serve as both."""
    match = found_of("tall").match
    source = source_of(match, rows=64, block=64, ahead=True)
    assert "v1_square_0 = tl.zeros([64, 128]" in source and "v1_square_128 = tl.zeros([64, 32]" in source
    source = source_of(match, rows=256, block=64, ahead=True)
    first, second, _ = (part.split("if tl.sum")[0] for part in source.split("for c", 3)[1:])
    assert [part.count("tl.load(") for part in (first, second)] == [2, 2]
    assert [part.count("tl.dot(") for part in (first, second)] == [4, 4] and second.count("tl.store(") == 2


def test_all_rows_of_a_sample_fit_a_program(folder: Path) -> None:
    pytest.importorskip("triton")
    from kevolve_inductor.platforms.triton_build import compile_for

    with FakeTensorMode():
        match = on_gpu(find(FAMILY, interaction, halves((1024, 160, 224), (1024, 160, 448)))).match
    (schedule,) = [s for s in FAMILY.space(match, CUDA).seeds[:8] if (s["rows"], s["block"]) == (256, 64)]
    resources = compile_for(kernel_of(FAMILY, match, schedule, "triton"), region_of(match), "sm_90", folder)
    assert resources.spills in (0, None) and (resources.shared_bytes or 0) <= CUDA.shared_bytes


def test_pieces_take_no_more_columns_than_they_need() -> None:
    """Three quarters of a block are a half and a quarter, unless the quarter were too narrow."""
    assert pieces_of(96, 128, 32) == [Piece(0, 64), Piece(64, 32)] and pieces_of(96, 128, 64) == [Piece(0, 128)]
    assert pieces_of(200, 128, 32) == [Piece(0, 128), Piece(128, 64), Piece(192, 32)]
    assert pieces_of(100, 128, 32) == [Piece(0, 128)] and pieces_of(64, 64, 64) == [Piece(0, 64)]


def test_sizes_of_pieces_that_cut_alike_are_one_schedule() -> None:
    with FakeTensorMode():
        found = find(FAMILY, feed_forward, halves((1024, 200, 192), (1024, 192, 96), (1024, 96, 192), (192,)))
    match = on_gpu(found).match
    seeds = [seed for seed in FAMILY.space(match, CUDA).seeds if seed["straight"]]
    sources = [kernel_of(FAMILY, match, seed, "triton").source for seed in seeds]
    kinds = {(source, seed["warps"], seed["stages"]) for source, seed in zip(sources, seeds, strict=True)}
    assert len(kinds) == len(seeds) > 10


def test_weights_of_a_sample_that_stay_lead() -> None:
    """Two programs of a processor hold them, where each would otherwise load them for every tile of rows."""
    with FakeTensorMode():
        found = find(FAMILY, feed_forward, halves((1024, 200, 192), (1024, 192, 96), (1024, 96, 192), (192,)))
    first = FAMILY.space(on_gpu(found).match, CUDA).seeds[0]
    assert first["loop"] == 200 // int(first["rows"]) + 1
