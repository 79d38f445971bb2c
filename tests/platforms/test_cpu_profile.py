from __future__ import annotations

import pytest
import torch

from kevolve_inductor.platforms.cpu import CpuPlatform
from kevolve_inductor.platforms.cpu_executor import CpuExecutor
from kevolve_inductor.platforms.cpu_profile import profile_threads
from kevolve_inductor.testing.evaluators import row_sum_kernel, row_sum_region


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


class ScriptedClock(CpuExecutor):
    """What a call takes follows from the number of threads that it may use."""

    def __init__(self, times_us):
        super().__init__()
        self.times_us = times_us

    def measure(self, timed, rounds, cold):
        return [[self.times_us[torch.get_num_threads()]] * rounds for _ in timed]


@pytest.mark.parametrize(
    ("times_us", "efficiency"), [({1: 100.0, 2: 50.0}, 1.0), ({1: 100.0, 2: 100.0}, 0.5), ({1: 90.0, 2: 40.0}, 1.0)]
)
def test_one_threads_time_over_that_of_all(two_threads, times_us, efficiency):
    calls = []
    profile = profile_threads(ScriptedClock(times_us), lambda: calls.append(torch.get_num_threads()))
    assert (profile.parallel_efficiency, profile.threads) == (efficiency, 2)
    assert profile.sources["parallel_efficiency"] == "measured time"
    assert set(calls) == {1, 2} and calls[-1] == 1
    assert "hardware counters" in {*profile.sources.values(), *profile.missing}
    assert torch.get_num_threads() == 2


def test_threads_are_given_back_when_the_call_raises(two_threads):
    def fail():
        raise ValueError("the call's own")

    with pytest.raises(ValueError, match="own"):
        profile_threads(CpuExecutor(), fail)
    assert torch.get_num_threads() == 2


@pytest.mark.skipif(CpuPlatform().available() is not None, reason="no compiler")
def test_a_real_kernels_threads_and_machine_code(tmp_path):
    executor = CpuExecutor()
    compiled = executor.load(row_sum_kernel(), row_sum_region(), tmp_path)
    x, out = torch.randn(500, 100), torch.empty(500)
    profile = executor.profile(compiled, lambda: compiled([x], [out], []))
    assert 0 < profile.parallel_efficiency <= 1
    assert "vector_share" in profile.sources or "disassembly" in profile.missing
