from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from kevolve_inductor.evaluate.inputs import (
    BROKEN,
    DISTRIBUTIONS,
    LEAST_INPUTS,
    OUT_OF_RANGE,
    at_other_sizes,
    distributions_for,
    generate,
    is_judged,
    named,
    with_other_seeds,
)
from kevolve_inductor.graph.region import InputRange, Region, RegionNode, TensorSpec, Workload

CPU = torch.device("cpu")


def region(*specs):
    return Region(tuple(specs), (), ("i0",))


def one(spec, distribution, allowed=None, sizes=(), seed=0):
    return generate(region(spec), Workload(sizes, (allowed,)), distribution, seed, CPU)[0]


FLOATS = TensorSpec((40, 50), (50, 1), "float32", "cpu")
INTEGERS = TensorSpec((4000,), (1,), "int64", "cpu")


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "int64", "int32", "uint8", "bool"])
def test_inputs_have_their_specs_layout_and_repeat(distribution, dtype):
    spec = TensorSpec(("s0", 7, 5), (1, 0, "s0"), dtype, "cpu")
    first, second = (one(spec, distribution, sizes=(("s0", 6),)) for _ in range(2))
    assert first.shape == (6, 7, 5)
    assert first.stride() == (1, 0, 6)
    assert first.dtype == getattr(torch, dtype)
    assert torch.equal(first.nan_to_num(7), second.nan_to_num(7))


def test_there_are_inputs_with_other_seeds_for_what_is_random():
    names = with_other_seeds(DISTRIBUTIONS)
    assert len({*names, *DISTRIBUTIONS}) == len(names) + len(DISTRIBUTIONS) == LEAST_INPUTS
    assert not [name for name in names if name.startswith(("zeros", "constant", BROKEN, *OUT_OF_RANGE))]
    assert not torch.equal(one(FLOATS, "ties"), one(FLOATS, "ties#1"))
    assert set(one(FLOATS, "ties#1").unique().tolist()) == set(one(FLOATS, "ties").unique().tolist())


def test_other_sizes_move_the_ranges_of_indices_with_them():
    spec, at = TensorSpec(("s0", "s1"), ("s1", 1), "float32", "cpu"), TensorSpec(("s0",), (1,), "int64", "cpu")
    dynamic = Region((spec, at), (), ("i0",), (("s0", 0, 0), ("s1", 0, 1)))
    workload = Workload((("s0", 40), ("s1", 90)), (None, InputRange(0, 89)))
    names = at_other_sizes(dynamic, workload)
    assert {"normal@127,127", "normal@2,3", "normal@39,89", "normal@41,91"} <= set(names)
    distribution, other = named("normal@31,7", workload)
    assert distribution == "normal" and other.symbols == {"s0": 31, "s1": 7}
    assert other.ranges == (None, InputRange(0, 6))
    values, index = generate(dynamic, workload, "normal@31,7", 0, CPU)
    assert values.shape == (31, 7) and index.shape == (31,) and int(index.max()) == 6
    assert at_other_sizes(region(FLOATS), Workload((), (None,))) == ()
    with pytest.raises(ValueError):
        named("normal@31", workload)


def test_seeds_and_positions_give_other_values_and_processes_do_not():
    value = float(one(FLOATS, "normal")[0, 0])
    assert value != float(one(FLOATS, "normal", seed=1)[0, 0])
    pair = generate(region(FLOATS, FLOATS), Workload((), (None, None)), "normal", 0, CPU)
    assert not torch.equal(*pair)
    code = (
        "import torch; from kevolve_inductor.evaluate.inputs import generate\n"
        "from kevolve_inductor.graph.region import *\n"
        "r = Region((TensorSpec((40, 50), (50, 1), 'float32', 'cpu'),), (), ('i0',))\n"
        "print(float(generate(r, Workload((), (None,)), 'normal', 0, torch.device('cpu'))[0][0, 0]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert float(done.stdout) == value, done.stderr


@pytest.mark.parametrize("distribution", [name for name in DISTRIBUTIONS if name not in OUT_OF_RANGE])
@pytest.mark.parametrize(
    "allowed", [InputRange(0, 9), InputRange(-5, 3), InputRange(7, 7), InputRange(-(2**63), 2**63 - 1)]
)
def test_integers_stay_within_their_range(distribution, allowed):
    values = one(INTEGERS, distribution, allowed)
    assert allowed.low <= int(values.min()) and int(values.max()) <= allowed.high


def test_integers_leave_their_range_where_that_is_asked_for():
    assert int(one(INTEGERS, "beyond", InputRange(0, 9)).max()) == 10
    assert int(one(INTEGERS, "below", InputRange(0, 9)).min()) == -1
    assert int(one(INTEGERS, "far", InputRange(0, 9)).max()) == 9 + 2**40


def test_integers_without_a_range_are_negative_too():
    values = one(INTEGERS, "normal")
    assert int(values.min()) < 0 < int(values.max())
    assert int(one(INTEGERS, "large").abs().max()) > 2**60


@pytest.mark.parametrize("distribution", [name for name in DISTRIBUTIONS if name != BROKEN])
def test_offsets_rise_from_end_to_end(distribution):
    values = one(INTEGERS, distribution, InputRange(0, 90_000, monotone=True))
    assert int(values[0]) == 0 and int(values[-1]) == 90_000
    assert bool((values[1:] >= values[:-1]).all())


def test_broken_offsets_fall_and_leave_what_they_point_into():
    values = one(INTEGERS, BROKEN, InputRange(0, 90_000, monotone=True))
    assert int(values.min()) < 0 and int(values.max()) > 90_000
    assert int((values[1:] < values[:-1]).sum()) >= 2


def test_distributions_are_what_they_are_called():
    special = one(FLOATS, "special")
    assert special.isnan().any() and special.isposinf().any() and special.isneginf().any()
    assert one(FLOATS, "ties").unique().numel() <= 8
    assert torch.equal(one(FLOATS, "sorted"), one(FLOATS, "sorted").sort(-1).values)
    assert float(one(FLOATS, "large").abs().max()) > 1000
    assert not one(FLOATS, "zeros").any()
    assert one(FLOATS, "uniform").storage_offset() == 1


def test_what_ends_eager_is_not_judged():
    gradient = RegionNode("aten._embedding_bag_dense_backward.default", (), {}, ())
    checked, unchecked = region(INTEGERS), replace(region(INTEGERS), nodes=(gradient,))
    for distribution in OUT_OF_RANGE:
        assert is_judged(checked, distribution) and not is_judged(unchecked, distribution)
    assert is_judged(unchecked, "normal") and not is_judged(checked, BROKEN)


def test_only_distributions_that_say_something_are_used():
    ranged, free = Workload((), (InputRange(0, 9),)), Workload((), (None,))
    assert set(OUT_OF_RANGE) <= set(distributions_for(region(INTEGERS), ranged))
    assert "special" not in distributions_for(region(INTEGERS), ranged)
    assert set(distributions_for(region(FLOATS), free)) == set(DISTRIBUTIONS) - {BROKEN, *OUT_OF_RANGE}
    assert BROKEN in distributions_for(region(INTEGERS), Workload((), (InputRange(0, 9, monotone=True),)))
    huge = TensorSpec((2**26,), (1,), "float32", "cpu")
    assert len(distributions_for(region(huge), free)) < len(distributions_for(region(FLOATS), free))
    on_gpu = TensorSpec((10,), (1,), "int64", "cuda")
    assert "beyond" not in distributions_for(region(on_gpu), ranged)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_large_factors_overflow_in_no_order(dtype):
    spec = TensorSpec((64, 900), (900, 1), dtype, "cpu")
    product = RegionNode("aten.cumprod.default", ({"node": "i0"}, 1), {}, (spec,))
    factors = generate(Region((spec,), (product,), ("n0",)), Workload((), (None,)), "large", 0, CPU)[0].float()
    logarithms = factors.abs().double().log().cumsum(1)
    widest = (logarithms.amax(1) - logarithms.amin(1)).max()
    largest = math.log(torch.finfo(getattr(torch, dtype)).max)
    assert 0.3 * largest < widest < largest
    assert (factors < 0).any()
