"""Evaluators that outlive one graph."""

from __future__ import annotations

import os
import signal
import time

import pytest

from kevolve_inductor.evaluate import kept
from kevolve_inductor.evaluate.client import WorkerEvaluator
from kevolve_inductor.evaluate.evaluation import Passed
from kevolve_inductor.evaluate.kept import close_kept, kept_evaluator
from kevolve_inductor.platforms.cpu import CpuPlatform
from kevolve_inductor.testing.evaluators import row_sum_kernel, row_sum_region, row_sum_workload


class Idle:
    def __init__(self, rests=True):
        self.rests, self.closed = rests, 0

    def rest(self):
        if isinstance(self.rests, Exception):
            raise self.rests
        return self.rests

    def close(self):
        self.closed += 1


@pytest.fixture(autouse=True)
def nothing_left():
    yield
    close_kept()
    assert not kept._kept


def test_the_next_graph_gets_the_same_one_and_another_key_another():
    with kept_evaluator("a", Idle) as first, kept_evaluator("a", Idle) as beside:
        assert beside is not first
    with kept_evaluator("b", Idle) as other:
        assert other is not first
    with kept_evaluator("a", Idle) as again:
        assert again is first
    assert beside.closed == 1 and first.closed == 0
    close_kept()
    assert first.closed == other.closed == 1


@pytest.mark.parametrize("rests", [False, OSError("the pipe is gone")])
def test_what_cannot_rest_is_closed(rests):
    with kept_evaluator("a", lambda: Idle(rests)) as tired:
        pass
    assert tired.closed == 1 and not kept._kept


def test_after_a_failure_it_is_closed():
    with pytest.raises(KeyboardInterrupt), kept_evaluator("a", Idle) as interrupted:
        raise KeyboardInterrupt
    assert interrupted.closed == 1 and not kept._kept


def test_it_ends_by_itself():
    with kept_evaluator("a", Idle, idle_s=0.05) as idle:
        pass
    deadline = time.monotonic() + 5.0
    while not idle.closed and time.monotonic() < deadline:
        time.sleep(0.01)
    assert idle.closed == 1 and not kept._kept


@pytest.mark.parametrize("lost", [False, True])
def test_processes_stay_and_a_bench_that_was_lost_is_a_new_one(tmp_path, lost):
    seen = []
    for _ in range(2):
        with kept_evaluator("workers", lambda: WorkerEvaluator(CpuPlatform(), tmp_path)) as evaluator:
            evaluator.open(row_sum_region(), row_sum_workload())
            assert isinstance(evaluator.evaluate(row_sum_kernel()), Passed)
            slots = evaluator._workers._slots
            seen.append({role: slot._process._process.pid for role, slot in slots.items()})
            if lost:
                os.killpg(seen[-1]["bench"], signal.SIGKILL)
    assert seen[0]["referee"] == seen[1]["referee"] and (seen[0]["bench"] != seen[1]["bench"]) == lost


def test_an_evaluator_that_started_nothing_is_not_kept(tmp_path):
    with kept_evaluator("unused", lambda: WorkerEvaluator(CpuPlatform(), tmp_path)):
        pass
    assert not kept._kept
