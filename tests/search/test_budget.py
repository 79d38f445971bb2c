from __future__ import annotations

import pytest

from kevolve_inductor.search import Budget, StopReason


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_without_limits_nothing_stops_it():
    clock = Clock()
    budget = Budget(None, None, clock, stall_trials=None)
    for _ in range(500):
        budget.tell(0.0)
        clock.now += 1e6
    assert budget.stop() is None
    assert budget.remaining_s is None
    assert budget.trials_spent == 500


def test_trials():
    budget = Budget(2, None, Clock())
    budget.tell(0.0)
    assert budget.stop() is None
    budget.tell(1.0)
    assert budget.stop() is StopReason.TRIALS_SPENT
    assert Budget(0, None, Clock()).stop() is StopReason.TRIALS_SPENT


def test_time_runs_from_construction_and_only_by_the_given_clock():
    clock = Clock()
    budget = Budget(None, 60.0, clock)
    clock.now += 59.5
    assert budget.stop() is None
    assert budget.remaining_s == 0.5
    clock.now += 1.0
    assert budget.stop() is StopReason.TIME_SPENT
    assert budget.remaining_s == 0.0
    assert budget.elapsed_s == 60.5


def test_target_is_reported_before_any_other_reason():
    budget = Budget(1, None, Clock(), target=3.0)
    budget.tell(3.0)
    assert budget.stop() is StopReason.TARGET_REACHED
    assert budget.best == 3.0


@pytest.mark.parametrize(
    ("scores", "stopped"),
    [
        ([0.0] * 3, True),
        ([1.0, 1.005, 1.005, 1.009], True),
        ([1.0, 1.005, 1.009, 1.011], False),
        ([1.0, 0.0, 0.0, 1.01], False),
        ([2.0, 1.9, 1.8, 1.7], True),
        ([1.0, 1.1, 0.0, 0.0], False),
    ],
)
def test_stalls_after_trials_without_one_percent_of_progress(scores, stopped):
    budget = Budget(None, None, Clock(), stall_trials=3)
    for score in scores:
        budget.tell(score)
    assert (budget.stop() is StopReason.STALLED) == stopped


@pytest.mark.parametrize("limits", [{"trials": -1}, {"seconds": -0.1}, {"seconds": float("nan")}, {"stall_trials": 0}])
def test_refuses_limits_that_make_no_sense(limits):
    with pytest.raises(ValueError):
        Budget(limits.pop("trials", None), limits.pop("seconds", None), Clock(), **limits)
