from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from kevolve_inductor.evaluate.timing import Contest, Rotation, lower_bound, race
from kevolve_inductor.platforms.executor import Executor
from kevolve_inductor.platforms.platform import Ceilings


class ScriptedExecutor(Executor):
    """Calls return the time they are said to take; nothing is measured."""

    def __init__(self):
        self.device = torch.device("cpu")
        self.rounds = 0

    def load(self, kernel, region, folder: Path):
        raise NotImplementedError

    def timed(self, call):
        return call

    def measure(self, timed, rounds, cold):
        self.rounds += rounds
        return [[call() for _ in range(rounds)] for call in timed]

    def synchronize(self):
        pass

    def last_level_bytes(self):
        return 0

    def free_bytes(self):
        return 0

    def ceilings_now(self):
        return Ceilings(1.0, {}, 1.0)


def noisy(mean, spread, seed):
    generator = random.Random(seed)
    return lambda: mean * (1 + spread * generator.random())


def test_lower_bound_is_an_order_statistic():
    assert lower_bound(range(1, 7)) == 1
    assert lower_bound(range(1, 16)) == 4
    assert lower_bound(range(1, 101)) == 40
    assert lower_bound([3.0]) == 3.0


def test_lower_bound_lies_below_the_median_nearly_always():
    generator = random.Random(0)
    above = sum(lower_bound([generator.gauss(0, 1) for _ in range(20)]) > 0 for _ in range(2000))
    assert above / 2000 < 0.035


def test_speedup_is_against_the_faster_baseline():
    contest = Contest(ScriptedExecutor(), {"eager": lambda: 50.0, "inductor": lambda: 40.0})
    timing = contest.time(lambda: 20.0)
    assert timing.latency_us == 20.0
    assert timing.baselines_us == {"eager": 50.0, "inductor": 40.0}
    assert timing.speedup == timing.speedup_low == 2.0


@pytest.mark.parametrize("faster", ["candidate", "baseline"])
def test_noise_lowers_the_bound_and_not_the_speedup(faster):
    mean = 50.0 if faster == "candidate" else 200.0
    contest = Contest(ScriptedExecutor(), {"eager": noisy(100.0, 0.4, 1)})
    timing = contest.time(noisy(mean, 0.4, 2))
    assert timing.speedup == pytest.approx(100.0 / mean, rel=0.2)
    assert timing.speedup_low <= timing.speedup


def test_a_hopeless_candidate_is_given_up_soon():
    hopeless, close = ScriptedExecutor(), ScriptedExecutor()
    Contest(hopeless, {"eager": noisy(100.0, 0.5, 1)}).time(noisy(1000.0, 0.5, 2))
    Contest(close, {"eager": noisy(100.0, 0.5, 1)}).time(noisy(100.0, 0.5, 2))
    assert hopeless.rounds < close.rounds


def test_a_small_gain_is_measured_until_it_is_sure():
    executor, surely = ScriptedExecutor(), ScriptedExecutor()
    quick = Contest(executor, {"eager": noisy(103.5, 0.05, 1)}).time(noisy(100.0, 0.05, 2))
    sure = Contest(surely, {"eager": noisy(103.5, 0.05, 1)}).time(noisy(100.0, 0.05, 2), decide_at=1.02)
    assert sure.rounds > quick.rounds and sure.speedup_low >= 1.02
    lost = Contest(executor, {"eager": noisy(100.0, 0.05, 1)}).time(noisy(100.0, 0.05, 2), decide_at=1.02)
    assert lost.speedup_low < 1.02


def called_a_win(ratio: float, noise: float, seed: int) -> bool:
    """One session: a kernel that is ``ratio`` times as fast as the baseline, on a clock with ``noise``."""
    contest = Contest(ScriptedExecutor(), {"inductor": noisy(100.0 * ratio, noise, 2 * seed)})
    return contest.time(noisy(100.0, noise, 2 * seed + 1), decide_at=1.02).speedup_low >= 1.02


@pytest.mark.parametrize("noise", [0.01, 0.1])
def test_a_kernel_does_not_win_against_itself_and_a_small_win_is_found(noise):
    assert sum(called_a_win(1.0, noise, seed) for seed in range(1000)) <= 10
    assert sum(called_a_win(1.05, noise, seed) for seed in range(1000, 2000)) >= 950


def test_a_machine_that_scatters_too_much_does_not_decide():
    def summary(spread, ratio):
        contest = Contest(
            ScriptedExecutor(), {"inductor": noisy(100.0 * ratio, spread, 1)}, clock=lambda: next(seconds)
        )
        return contest.time(noisy(100.0, spread, 2), decide_at=1.02)

    # A clock that lets few rounds happen, as on a machine that is busy with other things.
    seconds = iter(range(0, 10**6, 2))
    assert summary(2.0, 1.02).too_noisy_for(1.02)
    assert not summary(0.01, 1.02).too_noisy_for(1.02)
    assert not summary(0.5, 9.0).too_noisy_for(1.02)


def test_inputs_are_timed_in_turn():
    seen = []
    rotation = Rotation([lambda: seen.append("first"), lambda: seen.append("second")])
    for _ in range(5):
        rotation()
    assert seen == ["first", "second", "first", "second", "first"]


@pytest.mark.parametrize(
    "clock", [lambda time_us: 1e4 / time_us, lambda time_us: time_us**0], ids=["inverted", "stuck"]
)
def test_a_distorted_clock_gives_other_numbers_and_nothing_else(clock):
    contest = Contest(ScriptedExecutor(), {"inductor": lambda: clock(50.0)})
    timing = contest.time(lambda: clock(25.0), decide_at=1.02)
    assert timing.speedup_low <= timing.speedup <= timing.speedup_high
    assert timing.speedup == pytest.approx(clock(50.0) / clock(25.0))


def test_slow_baselines_hold_up_the_first_candidate_for_fewer_rounds():
    slow, quick = ScriptedExecutor(), ScriptedExecutor()
    seconds = iter(range(0, 1000, 5))
    contest = Contest(slow, {"eager": lambda: 3e5, "inductor": lambda: 1e5}, clock=lambda: next(seconds))
    assert contest.known_us == {"eager": 3e5, "inductor": 1e5}
    Contest(quick, {"eager": lambda: 30.0, "inductor": lambda: 10.0}, clock=lambda: 0.0)
    assert 0 < slow.rounds < quick.rounds


def test_a_baseline_that_seemed_slow_is_looked_at_again():
    times = iter([900.0] * 7)
    contest = Contest(ScriptedExecutor(), {"eager": lambda: 100.0, "inductor": lambda: next(times, 10.0)})
    assert contest.known_us == {"eager": 100.0, "inductor": 900.0}
    timing = contest.time(lambda: 20.0)
    assert timing.baselines_us["inductor"] == 10.0
    assert timing.speedup == 0.5


def test_a_race_stops_by_the_clock_and_shrugs_off_disturbances():
    seconds = iter(range(100))
    disturbed = iter([5000.0, 7000.0])
    calls = {"one": lambda: next(disturbed, 10.0), "other": lambda: 11.0, "third": lambda: 9.0}
    times_us = race(ScriptedExecutor(), calls, clock=lambda: float(next(seconds)))
    assert times_us == {"one": 10.0, "other": 11.0, "third": 9.0}
