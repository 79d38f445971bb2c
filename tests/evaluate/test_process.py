from __future__ import annotations

from kevolve_inductor.evaluate.job import BaselinesJob, JudgeJob, OpenJob, WorkerSetup
from kevolve_inductor.evaluate.process import Died, Hung, WorkerProcess, WorkerSlot
from kevolve_inductor.testing.evaluators import row_sum_region, row_sum_workload


def setup(folder, platform="cpu"):
    return WorkerSetup(platform, str(folder), 1, 0)


def referee():
    return OpenJob("referee", row_sum_region(), row_sum_workload())


def test_answers_come_in_order_and_failures_are_answers_too(tmp_path):
    worker = WorkerProcess(setup(tmp_path), tmp_path / "log")
    try:
        assert "no session is open" in worker.ask(BaselinesJob(), 60.0)["error"]
        assert worker.ask(referee(), 60.0) == {}
    finally:
        worker.kill()
        worker.kill()


def test_a_worker_that_cannot_begin_leaves_its_words(tmp_path):
    worker = WorkerProcess(WorkerSetup("cpu", str(tmp_path), -3, 0), tmp_path / "log")
    died = worker.ask(referee(), 60.0)
    assert isinstance(died, Died)
    assert died.signal is None
    assert "Traceback" in died.log


def test_a_lost_worker_is_replaced_and_its_session_opened_again(tmp_path):
    slot = WorkerSlot(setup(tmp_path), tmp_path / "log")
    try:
        assert slot.open(referee(), 0.01) == Hung(0.01)
        assert slot.open(referee(), 60.0) == {}
        slot.replace()
        judged = slot.ask(JudgeJob("normal", None), 60.0)
        assert judged["evaluation"]["check"] == "index out of range"
    finally:
        slot.close()


def test_an_unknown_platform_is_an_answer_and_no_session(tmp_path):
    slot = WorkerSlot(setup(tmp_path, "abacus"), tmp_path / "log")
    try:
        assert "abacus" in slot.open(referee(), 60.0)["error"]
        assert "no session is open" in slot.ask(JudgeJob("normal", None), 60.0)["error"]
    finally:
        slot.close()
