"""A closer look at kernels that passed: in the session that timed them, and in a process that a profiler watches."""

from __future__ import annotations

import subprocess

import pytest

from kevolve_inductor.evaluate.client import WorkerEvaluator
from kevolve_inductor.evaluate.evaluation import Passed, from_json, to_json
from kevolve_inductor.evaluate.job import OpenJob, ProfileJob, WorkerSetup
from kevolve_inductor.evaluate.profile import watch
from kevolve_inductor.evaluate.sessions import BenchSession
from kevolve_inductor.platforms.cpu import CpuPlatform
from kevolve_inductor.platforms.cpu_executor import CpuExecutor
from kevolve_inductor.platforms.profile import Profile
from kevolve_inductor.testing.evaluators import ROW_SUM_SOURCE, row_sum_kernel, row_sum_region, row_sum_workload

SESSION = OpenJob("bench", row_sum_region(), row_sum_workload(), ("eager", "inductor"), later=True)


class Watched(CpuPlatform):
    """Its profiler is one that sees whether the process ended well."""

    def watch(self, command, environment):
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
        if done.returncode != 0:
            return Profile.without("watcher", done.stderr.strip().splitlines()[-1])
        return Profile.of("watcher", {"launches": 1})


def test_a_session_looks_closer_at_what_it_can_build(tmp_path):
    session = BenchSession(SESSION, 0, CpuExecutor(), tmp_path)
    profile = Profile.from_json(session.profile(ProfileJob(row_sum_kernel()))["profile"])
    assert profile.sources["parallel_efficiency"] == "measured time"
    broken = row_sum_kernel(ROW_SUM_SOURCE.replace("float sum = 0;", "float sum = missing;"))
    assert session.profile(ProfileJob(broken))["evaluation"]["status"] == "build failed"


def test_a_watched_process_that_fails_says_why(tmp_path):
    setup = WorkerSetup("cpu", str(tmp_path), 1, 0)
    broken = row_sum_kernel(ROW_SUM_SOURCE.replace("float sum = 0;", "float sum = missing;"))
    assert "was not built" in watch(Watched(), tmp_path / "request", setup, SESSION, broken).missing["watcher"]


def test_a_kernel_about_to_be_taken_is_looked_at_and_in_a_full_search_watched(tmp_path):
    with WorkerEvaluator(Watched(), tmp_path, limit_s=60.0, seeds_s=None) as evaluator:
        evaluator.open(row_sum_region(), row_sum_workload())
        passed = evaluator.evaluate(row_sum_kernel(), surely=True)
    assert isinstance(passed, Passed), passed
    profile = passed.diagnosis.profile
    assert (profile.launches, profile.sources["launches"]) == (1, "watcher")
    assert {"measured time", "watcher"} <= set(passed.diagnosis.source.split(", "))
    assert from_json(to_json(passed)) == passed


@pytest.mark.gpu
def test_a_triton_kernel_under_ncu(tmp_path):
    from test_client import triton_kernel

    from kevolve_inductor.platforms.cuda import CudaPlatform

    with WorkerEvaluator(CudaPlatform(), tmp_path, limit_s=60.0, seeds_s=None) as evaluator:
        evaluator.open(row_sum_region("cuda"), row_sum_workload())
        passed = evaluator.evaluate(triton_kernel(), surely=True)
    assert isinstance(passed, Passed), passed
    assert passed.diagnosis.occupancy is not None
    profile = passed.diagnosis.profile
    assert profile.launches == 1 and 0 < profile.launch_us < 1e3
    if "ncu" in profile.missing:
        pytest.skip(profile.missing["ncu"])
    # 200 kB are read with empty caches; how much is written back in time is not known.
    assert 200_000 <= profile.memory_bytes < 2_000_000
    assert 0 < profile.occupancy <= passed.diagnosis.occupancy + 0.05
    assert profile.waves == pytest.approx(0.24, abs=0.2)
    assert 0 <= profile.idle_share < 1 and profile.stalls
