from __future__ import annotations

import pytest

from kevolve_inductor.evaluate.diagnosis import diagnose, flops_of, least_bytes, with_profile
from kevolve_inductor.evaluate.evaluation import Diagnosis
from kevolve_inductor.graph.region import Region, RegionNode, TensorSpec
from kevolve_inductor.platforms.executor import Resources
from kevolve_inductor.platforms.occupancy import Occupancy
from kevolve_inductor.platforms.platform import Ceilings
from kevolve_inductor.platforms.profile import Profile
from kevolve_inductor.testing.evaluators import row_sum_region

CEILINGS = Ceilings(bytes_per_s=1e9, flops_per_s={"float32": 1e10}, launch_s=1e-6)
ROW_SUM_BYTES = 4 * (50_000 + 500)


def spec(*shape, dtype="float32"):
    return TensorSpec(shape, (shape[-1], 1) if len(shape) == 2 else (1,), dtype, "cpu")


def test_traffic_counts_outputs_and_inputs_that_are_read_completely():
    assert least_bytes(row_sum_region(), {}) == ROW_SUM_BYTES


def test_inputs_that_are_read_in_part_do_not_count():
    taken = RegionNode("aten.index_select.default", ({"node": "i0"}, 0, {"node": "i1"}), {}, (spec(20, 4),))
    region = Region((spec(1000, 4), spec(20, dtype="int64")), (taken,), ("n0",))
    assert least_bytes(region, {}) == 20 * 8 + 20 * 4 * 4


def test_a_view_is_read_as_far_as_what_is_made_of_it():
    viewed = RegionNode("aten.view.default", ({"node": "i0"}, [5, 20]), {}, (spec(5, 20),))
    cut = RegionNode("aten.slice.Tensor", ({"node": "n0"}, 0, 0, 2), {}, (spec(2, 20),))
    summed = RegionNode("aten.sum.dim_IntList", ({"node": "n0"}, [1]), {}, (spec(5),))
    assert least_bytes(Region((spec(100),), (viewed, cut), ("n1",)), {}) == 160
    assert least_bytes(Region((spec(100),), (viewed, summed), ("n1",)), {}) == 400 + 20


def test_a_matrix_product_counts_two_per_multiply_add():
    product = RegionNode("aten.mm.default", ({"node": "i0"}, {"node": "i1"}), {}, (spec(8, 32),))
    assert flops_of(Region((spec(8, 16), spec(16, 32)), (product,), ("n0",)), {}) == 2 * 8 * 16 * 32


@pytest.mark.parametrize(
    ("latency_us", "resources", "limiter"),
    [
        (ROW_SUM_BYTES / 1e9 * 1e6 / 0.9, Resources(), "memory"),
        (1e6, Resources(), "latency"),
        (1e6, Resources(registers=255, occupancy=Occupancy(0.125, 2, "registers")), "occupancy"),
        (1e6, Resources(registers=64, occupancy=Occupancy(0.5, 8, "registers")), "latency"),
        (1e6, Resources(registers=32, spills=4), "occupancy"),
    ],
)
def test_limits(latency_us, resources, limiter):
    diagnosis = diagnose(row_sum_region(), {}, latency_us, CEILINGS, resources)
    assert diagnosis.limiter == limiter
    assert diagnosis.registers == resources.registers
    assert diagnosis.source.endswith("report") == (resources != Resources())
    assert diagnosis.ceiling_share == pytest.approx(ROW_SUM_BYTES / (latency_us / 1e6) / 1e9)


def test_a_kernel_of_a_few_launch_times_is_launch_bound():
    tiny = Ceilings(bytes_per_s=1e15, flops_per_s={"float32": 1e15}, launch_s=1e-6)
    assert diagnose(row_sum_region(), {}, 3.0, tiny, Resources()).limiter == "launch"


def seen(limiter, **figures):
    diagnosis = Diagnosis(limiter, "measured time", 1e9, 1e9, 0.2)
    return with_profile(diagnosis, Profile.of("a tool", figures))


@pytest.mark.parametrize(
    ("inferred", "figures", "limiter"),
    [
        ("latency", {"memory_share": 0.7, "compute_share": 0.3}, "memory"),
        ("latency", {"memory_share": 0.1, "compute_share": 0.8}, "compute"),
        ("latency", {"memory_share": 0.3, "idle_share": 0.4}, "load imbalance"),
        ("latency", {"parallel_efficiency": 0.5, "threads": 2}, "load imbalance"),
        ("latency", {"parallel_efficiency": 0.95, "threads": 2}, "latency"),
        ("memory", {"parallel_efficiency": 0.5, "threads": 2}, "memory"),
        ("launch", {"idle_share": 0.6}, "launch"),
        ("latency", {"occupancy": 0.1}, "occupancy"),
        ("occupancy", {"occupancy": 0.6}, "latency"),
        ("occupancy", {}, "occupancy"),
    ],
)
def test_what_was_measured_decides_over_what_was_inferred(inferred, figures, limiter):
    assert seen(inferred, **figures).limiter == limiter


def test_every_source_is_named_once():
    profile = Profile.of("ncu", {"waves": 2.0, "occupancy": 0.5}) | Profile.of("measured time", {"threads": 2})
    spilling = Diagnosis("occupancy", "measured time, compiler's report", 1e9, 1e9, 0.2, spills=8)
    diagnosis = with_profile(spilling, profile)
    assert diagnosis.source == "measured time, compiler's report, ncu"
    assert (diagnosis.limiter, diagnosis.profile) == ("occupancy", profile)
