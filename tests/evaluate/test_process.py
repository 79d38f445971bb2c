from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path

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


def test_a_job_s_time_does_not_run_while_its_worker_starts(tmp_path):
    worker = WorkerProcess(setup(tmp_path), tmp_path / "log")
    try:
        # Importing torch alone takes longer.
        assert "no session is open" in worker.ask(BaselinesJob(), 0.5)["error"]
    finally:
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
        assert slot.open(referee(), 1e-6) == Hung(1e-6)
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


def test_where_processes_get_lost_others_are_kept_ready_and_closing_ends_them(tmp_path):
    slot = WorkerSlot(setup(tmp_path), tmp_path / "bench.log", most_spares=2)
    try:
        assert slot.open(referee(), 60.0) == {}
        assert len(workers_in(tmp_path)) == 1
        for losses in (1, 2, 2):
            slot.start()
            slot.replace()
            assert comes_to(losses, tmp_path)
        os.killpg(sorted(workers_in(tmp_path))[0], signal.SIGKILL)
        for _ in range(2):
            assert slot.ask(JudgeJob("normal", None), 60.0)["evaluation"]["check"] == "index out of range"
            slot.replace()
    finally:
        slot.close()
    assert comes_to(0, tmp_path)


def test_without_spares_a_loss_starts_nothing_before_the_next_question(tmp_path):
    slot = WorkerSlot(setup(tmp_path), tmp_path / "bench.log")
    try:
        slot.start()
        slot.replace()
        assert comes_to(0, tmp_path)
    finally:
        slot.close()


def test_baselines_are_owed_by_a_process_whose_session_is_not_open_yet(tmp_path):
    job = OpenJob("bench", row_sum_region(), row_sum_workload(), skip=("inductor",))
    slot = WorkerSlot(setup(tmp_path), tmp_path / "bench.log")
    try:
        assert "times_us" in slot.open(job, 60.0)
        slot.replace()
        slot.settle_baselines()
        assert slot.ask(BaselinesJob(), 0.5)["times_us"]
        assert not slot.owes_baselines
    finally:
        slot.close()


def comes_to(number, folder):
    """Whether soon there are as many workers: a process that was just started has no command line yet."""
    deadline = time.monotonic() + 5.0
    while len(workers_in(folder)) != number and time.monotonic() < deadline:
        time.sleep(0.02)
    return len(workers_in(folder)) == number


def workers_in(folder):
    """The process groups of workers that write to ``folder``."""
    found = set()
    for entry in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            if str(folder).encode() in Path("/proc", entry, "cmdline").read_bytes():
                found.add(os.getpgid(int(entry)))
    return found
