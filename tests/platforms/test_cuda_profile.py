from __future__ import annotations

import pytest

from kevolve_inductor.platforms.cuda_profile import profile_of_trace
from kevolve_inductor.platforms.executor import Resources
from kevolve_inductor.platforms.occupancy import Occupancy

ONE_BLOCK_FITS_FOUR_TIMES = Resources(registers=128, occupancy=Occupancy(0.25, 4, "registers"))


def launch(name, duration, blocks=2.0, category="kernel"):
    return {"ph": "X", "cat": category, "name": name, "ts": 1, "dur": duration, "args": {"blocks per SM": blocks}}


OTHER = [{"ph": "M", "name": "process_name"}, {"ph": "X", "cat": "cuda_runtime", "name": "cuLaunchKernel", "dur": 99}]


def test_of_a_trace_the_gpus_own_events_count():
    profile = profile_of_trace([*OTHER, launch("row_sum", 3.5)], ONE_BLOCK_FITS_FOUR_TIMES)
    assert (profile.launch_us, profile.launches, profile.waves) == (3.5, 1, 0.5)
    assert set(profile.sources.values()) == {"torch profiler"}


@pytest.mark.parametrize(
    ("blocks", "waves", "idle"), [(2.0, 0.5, 0.0), (0.5, 0.125, 0.5), (1.25, 0.3125, 0.375), (6.0, 1.5, None)]
)
def test_processors_are_idle_where_the_grid_does_not_fill_them_evenly(blocks, waves, idle):
    profile = profile_of_trace([launch("row_sum", 3.5, blocks)], ONE_BLOCK_FITS_FOUR_TIMES)
    assert (profile.waves, profile.idle_share) == (waves, idle)


def test_of_several_launches_no_one_knows_whose_blocks_the_compiler_means():
    events = [launch("zero", 1.0, category="gpu_memset"), launch("first", 3.0), launch("second", 4.0)]
    profile = profile_of_trace(events, ONE_BLOCK_FITS_FOUR_TIMES)
    assert (profile.launch_us, profile.launches, profile.waves) == (8.0, 3, None)
    assert profile_of_trace([launch("row_sum", 3.5)], Resources()).waves is None


def test_a_trace_without_launches_is_no_profile():
    assert "torch profiler" in profile_of_trace(OTHER, Resources()).missing


@pytest.mark.gpu
def test_a_kernels_launches_on_the_gpu():
    import torch

    from kevolve_inductor.platforms.cuda_profile import profile_launches

    x = torch.randn(1000, 1000, device="cuda")
    profile = profile_launches(lambda: x.sin().cos(), Resources())
    assert profile.launches == 2
    assert 0 < profile.launch_us < 1e4
