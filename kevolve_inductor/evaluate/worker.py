"""The worker's main loop, in a process that is isolated already (:mod:`.warden`).

Requests and replies have file descriptors of their own, so that nothing a kernel or a library prints can be taken for an
answer. The loop ends when the requests do.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import traceback
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from ..exc import PlatformError
from ..platforms import executor_for, platform_for
from ..platforms.executor import Executor
from .footprint import needed_bytes
from .job import (
    ApplyJob,
    BaselinesJob,
    CrossJob,
    GraphJob,
    Job,
    JudgeJob,
    OpenJob,
    ProfileJob,
    RestJob,
    RunJob,
    TimeJob,
    WorkerSetup,
    job_from_json,
)
from .sessions import BenchSession, RefereeSession

_GRACE_S = 4.0


class Worker:
    """Holds at most one session at a time."""

    def __init__(self, setup: WorkerSetup) -> None:
        self.setup = setup
        self.folder = Path(setup.folder)
        if setup.threads:
            torch.set_num_threads(setup.threads)
        torch.backends.cuda.matmul.allow_tf32 = setup.tf32
        self._bench: BenchSession | None = None
        self._referee: RefereeSession | None = None

    @cached_property
    def _executor(self) -> Executor:
        return executor_for(self.setup.platform)

    @cached_property
    def _allowed_bytes(self) -> int:
        return self._executor.bound_memory(self.setup.memory_share)

    def do(self, job: Job) -> dict[str, Any]:
        match job:
            case OpenJob():
                return self._open(job)
            case BaselinesJob() if self._bench is not None:
                return self._bench.baselines()
            case RestJob():
                self._forget()
                # What is free then counts for the next graph; within one, this process's own memory would be counted out.
                self.__dict__.pop("_allowed_bytes", None)
                return {}
            case RunJob() if self._bench is not None:
                return self._bench.run(job)
            case TimeJob() if self._bench is not None:
                return self._bench.time(job)
            case ProfileJob() if self._bench is not None:
                return self._bench.profile(job)
            case ApplyJob() if self._referee is not None:
                return self._referee.applies(job)
            case JudgeJob() if self._referee is not None:
                return self._referee.judge(job)
            case GraphJob():
                from ..graph.foreign import import_all
                from .graph_check import check, time_mode

                # Ends the session, whose tensors would be missing.
                self._forget()
                import_all(job.modules)
                if job.mode is None:
                    return check(job, self._executor, self.setup.seed, self.folder)
                settings = platform_for(self.setup.platform).modes()[job.mode]
                return time_mode(job, settings, self._executor, self.setup.seed, self.folder)
            case CrossJob():
                from .cross import cross_compile
                from .evaluation import to_json

                return {"evaluation": to_json(cross_compile(job.kernel, job.region, job.target, self.folder))}
        raise ValueError(f"no session is open for {type(job).__name__}")

    def _forget(self) -> None:
        self._bench = self._referee = None
        self._executor.rest()
        gc.collect()
        platform_for(self.setup.platform).release_unused()

    def _open(self, job: OpenJob) -> dict[str, Any]:
        needed, allowed = needed_bytes(job.region, job.workload.symbols), self._allowed_bytes
        # Once a session has been opened, whatever is held by now is its own.
        if needed > allowed and not job.later:
            return {"error": "the region does not fit in memory", "needed_bytes": needed, "allowed_bytes": allowed}
        if job.role == "referee":
            self._referee = RefereeSession(job, self.setup.seed, self._executor)
            return {}
        # The last session's tensors go before the next one's are made.
        self._bench = None
        self._bench = BenchSession(job, self.setup.seed, self._executor, self.folder)
        return {} if job.later else self._bench.baselines()


def bring_up(setup: WorkerSetup) -> None:
    """Find the toolchain and initialise the driver. Raises where the isolation refuses what they need."""
    if setup.builder:
        return
    try:
        executor = executor_for(setup.platform)
    except PlatformError:
        # Kernels for it are only compiled here.
        return
    reason = platform_for(setup.platform).available()
    if reason is not None:
        raise PlatformError(reason)
    if setup.spare:
        import torch._inductor.compile_fx  # noqa: F401

        torch.zeros(1, device=executor.device)
        executor.synchronize()


def serve(setup: WorkerSetup, requests: int, replies: int) -> None:
    """Answer one request after the other, in lines of JSON."""
    worker = Worker(setup)
    with os.fdopen(requests, "rb") as lines, os.fdopen(replies, "wb") as answers:
        for line in lines:
            message = json.loads(line)
            # A kernel that hangs holds the interpreter's lock; only the system can end the process when nobody asks any more.
            signal.setitimer(signal.ITIMER_REAL, message["limit_s"] + _GRACE_S)
            answers.write(json.dumps(_answer(worker, message)).encode() + b"\n")
            answers.flush()
            signal.setitimer(signal.ITIMER_REAL, 0)


def _answer(worker: Worker, message: dict[str, Any]) -> dict[str, Any]:
    try:
        return worker.do(job_from_json(message))
    except Exception as error:  # noqa: BLE001 - the process boundary: whatever failed becomes the other side's WorkerError
        return {"error": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()}
