from __future__ import annotations

import itertools
import random
from dataclasses import replace

import torch

from kevolve_inductor.evaluate.evaluation import Passed, Refused, ResourceFailed, from_json
from kevolve_inductor.evaluate.footprint import most_workspace_bytes
from kevolve_inductor.evaluate.job import OpenJob, RunJob, TimeJob
from kevolve_inductor.evaluate.sessions import BenchSession, recorded_ceilings
from kevolve_inductor.kernel import Workspace
from kevolve_inductor.platforms.cpu_executor import CpuExecutor
from kevolve_inductor.platforms.platform import Ceilings
from kevolve_inductor.testing.evaluators import row_sum_kernel, row_sum_region, row_sum_workload


class SmallMachine(CpuExecutor):
    """A CPU whose memory is said to be slow, and fast at the second look if ``recovers``."""

    def __init__(self, bytes_per_s: float, recovers: bool = False, cache_bytes: int = 1024):
        super().__init__()
        self.figures = [bytes_per_s, 1e15] if recovers else [bytes_per_s, bytes_per_s]
        self.cache_bytes = cache_bytes

    def last_level_bytes(self) -> int:
        return self.cache_bytes

    def ceilings_now(self) -> Ceilings:
        return Ceilings(self.figures.pop(0), {"float32": 1e12}, 1e-6)


def timed(executor, folder, decide_at=None):
    folder.mkdir(exist_ok=True)
    job = OpenJob("bench", row_sum_region(), row_sum_workload(), ("inductor",), later=True)
    session = BenchSession(job, 0, executor, folder)
    ran = session.run(RunJob(row_sum_kernel(), "normal", str(folder / "outputs")))
    assert ran["raised"] is False
    assert (folder / "outputs").stat().st_size == 500 * 4
    return from_json(session.time(TimeJob(row_sum_kernel(), 0.0, 0.0, decide_at))["evaluation"])


def test_what_beats_the_memory_is_refused(tmp_path):
    refused = timed(SmallMachine(1.0), tmp_path)
    assert isinstance(refused, Refused) and refused.check == "ceiling"


class DistortedClock(SmallMachine):
    """Every call is said to take what a script says, whatever it does: first the candidate, then eager."""

    def __init__(self, *times_us: float, bytes_per_s: float = 1.0):
        super().__init__(bytes_per_s, cache_bytes=2**30)
        self.times_us = times_us

    def measure(self, timed, rounds, cold):
        return [
            [next_us(time_us) for _ in range(rounds)]
            for time_us, _ in zip(self.times_us[-len(timed) :], timed, strict=True)
        ]


def next_us(time_us):
    return next(time_us) if hasattr(time_us, "__next__") else time_us


def test_ten_times_the_baseline_is_refused_where_the_floor_does_not_allow_it(tmp_path):
    refused = timed(DistortedClock(1.0, 11.0), tmp_path)
    assert isinstance(refused, Refused) and refused.check == "ceiling"
    assert isinstance(timed(DistortedClock(1.0, 9.0), tmp_path / "slower"), Passed)
    assert isinstance(timed(DistortedClock(1.0, 11.0, bytes_per_s=1e15), tmp_path / "faster memory"), Passed)


def test_a_clock_that_scatters_decides_nothing(tmp_path):
    generator = random.Random(2)
    executor = DistortedClock((58.8 + 56.0 * generator.uniform(-1, 1) for _ in itertools.count()), 60.0)
    undecided = timed(executor, tmp_path, decide_at=1.02)
    assert isinstance(undecided, Refused) and undecided.check == "noise" and "1.02" in undecided.message


def test_inputs_and_baselines_of_a_session_are_timed_in_turn(tmp_path):
    job = OpenJob("bench", row_sum_region(), row_sum_workload(), ("inductor",), later=True)
    session = BenchSession(job, 0, CpuExecutor(), tmp_path)
    one, two = session._inputs
    assert not torch.equal(one[0], two[0])


def test_a_ceiling_is_measured_again_before_anything_is_refused(tmp_path):
    assert isinstance(timed(SmallMachine(1.0, recovers=True), tmp_path), Passed)


def test_a_baseline_that_was_left_out_is_named(tmp_path):
    job = OpenJob("bench", row_sum_region(), row_sum_workload(), ("inductor",))
    baselines = BenchSession(job, 0, CpuExecutor(), tmp_path).baselines()
    assert set(baselines["times_us"]) == {"eager"}
    assert set(baselines["failures"]) == {"inductor"}


def test_a_region_that_eager_cannot_run_has_no_baseline_and_no_verdict(tmp_path):
    region = row_sum_region()
    broken = replace(region, nodes=(replace(region.nodes[0], args=({"node": "i0"}, [7])),))
    session = BenchSession(OpenJob("bench", broken, row_sum_workload(), ("inductor",)), 0, CpuExecutor(), tmp_path)
    assert session.baselines()["times_us"] == {}
    refused = from_json(session.time(TimeJob(row_sum_kernel(), 0.0, 0.0))["evaluation"])
    assert isinstance(refused, Refused) and refused.check == "baselines"


def test_what_reads_faster_than_a_copy_moves_is_held_to_memory_s_clock(tmp_path):
    class Clocked(SmallMachine):
        def bus_bytes_per_s(self):
            return self.bus

    machine = Clocked(1.0)
    machine.bus = 2.0
    refused = timed(machine, tmp_path)
    assert isinstance(refused, Refused) and refused.check == "ceiling"
    machine = Clocked(1.0)
    machine.bus = 1e15
    assert isinstance(timed(machine, tmp_path / "fast"), Passed)


def test_ceilings_are_remembered_and_survive_a_spoiled_file(tmp_path):
    first = recorded_ceilings(SmallMachine(5.0), tmp_path)
    assert recorded_ceilings(SmallMachine(9.0), tmp_path) == first
    assert recorded_ceilings(SmallMachine(9.0), tmp_path, again=True).bytes_per_s == 9.0
    (path,) = tmp_path.glob("ceilings-*")
    path.write_text("{")
    assert recorded_ceilings(SmallMachine(7.0), tmp_path).bytes_per_s == 7.0


def test_workspaces_that_do_not_fit_are_a_limit_and_no_crash(tmp_path):
    huge = replace(row_sum_kernel(), workspaces=(Workspace("float32", str(2**42)),))
    job = OpenJob("bench", row_sum_region(), row_sum_workload(), ("inductor",), later=True)
    session = BenchSession(job, 0, SmallMachine(1e15), tmp_path)
    for answer in (
        session.run(RunJob(huge, "normal", str(tmp_path / "outputs"))),
        session.time(TimeJob(huge, 0.0, 0.0)),
    ):
        failed = from_json(answer["evaluation"])
        assert isinstance(failed, ResourceFailed)
        assert failed.needed == 4 * 2**42 > failed.available


def test_on_a_gpu_a_workspace_is_a_part_of_what_a_region_moves(tmp_path):
    region = row_sum_region()
    job = OpenJob("bench", region, row_sum_workload(), ("inductor",), later=True)
    session = BenchSession(job, 0, SmallMachine(1e15), tmp_path)
    most = most_workspace_bytes(region, {})
    for language, size, fits in (("triton", most, True), ("triton", most + 1, False), ("cpp", most + 1, True)):
        kernel = replace(row_sum_kernel(), language=language, workspaces=(Workspace("int8", str(size)),))
        assert (session._too_large(kernel, {}) is None) == fits


class FullMachine(SmallMachine):
    """Others take its memory once the baselines are known."""

    looked = False

    def measure(self, timed, rounds, cold):
        if self.looked and len(timed) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        self.looked = True
        return super().measure(timed, rounds, cold)


def test_memory_that_others_hold_says_nothing_against_a_kernel(tmp_path):
    assert isinstance(timed(FullMachine(1e15), tmp_path), ResourceFailed)
