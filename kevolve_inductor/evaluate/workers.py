"""The two worker processes of an evaluation, and what is done when one of them is lost."""

from __future__ import annotations

import logging
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..exc import ResourceError, WorkerError
from ..graph.region import Region, Workload
from ..platforms.platform import Platform
from .evaluation import Baselines, Crashed, Evaluation, Mismatch, Refused, TimedOut, from_json
from .isolation import Level
from .job import ApplyJob, BenchJob, GraphJob, Job, JudgeJob, OpenJob, Role, TimeJob, WorkerSetup
from .process import Answer, Died, Hung, WorkerSlot

logger = logging.getLogger(__name__)

# Inductor's C++ takes long to compile on a busy machine, and a whole graph is compiled twice.
_OPEN_LIMIT_S = 300.0
_GRAPH_LIMIT_S = 900.0
_JUDGE_LIMIT_S = 120.0
# On a GPU the processors that start a process are not those that are timed.
_SPARES = 3
# Patterns after which the memory of the worker cannot be trusted.
_DAMAGING = ("out of bounds write", "input changed")


class Workers:
    """The *bench* runs and times candidates, the *referee* knows what is right and never runs one.

    They are started on first use. A candidate that ends the bench costs a new process, in which the session is opened
    again; a candidate that dies in a process where others ran before gets a second chance in a fresh one. ``folder``
    keeps what was built. ``spent_s`` counts the seconds that were waited for, by what.
    """

    def __init__(self, platform: Platform, folder: Path, setup: WorkerSetup, limit_s: float) -> None:
        self._platform, self._folder, self._setup, self._limit_s = platform, folder, setup, limit_s
        self._scratch: tempfile.TemporaryDirectory[str] | None = None
        self._slots: dict[Role, WorkerSlot] = {}
        self.spent_s: defaultdict[str, float] = defaultdict(float)

    @contextmanager
    def spending(self, what: str) -> Iterator[None]:
        start = time.monotonic()
        try:
            yield
        finally:
            self.spent_s[what] += time.monotonic() - start

    def open(self, region: Region, workload: Workload) -> Baselines:
        """Raises ``WorkerError`` where the workers do not come up, ``ResourceError`` where the region needs more memory
        than they may take.
        """
        slot, job = self._slot("referee"), OpenJob("referee", region, workload)
        slot.start()
        with ThreadPoolExecutor(1) as beside:
            # Where kernels run on the processors, nothing else may run on them while baselines are timed.
            opening = beside.submit(slot.open, job, _OPEN_LIMIT_S) if self._platform.language == "triton" else None
            opened = self._open_bench(region, workload)
            referee = opening.result() if opening is not None else slot.open(job, _OPEN_LIMIT_S)
        if not isinstance(referee, dict) or "error" in referee:
            _raise_if_too_large(referee)
            raise WorkerError(f"the referee did not open a session: {referee}")
        return Baselines(dict(opened["times_us"]), dict(opened["failures"]))

    def _open_bench(self, region: Region, workload: Workload) -> dict[str, Any]:
        answer: Answer = {}
        # Inductor's own code may be what ended the process, so the second try does without it.
        for skip in ((), ("inductor",)):
            answer = self._slot("bench").open(OpenJob("bench", region, workload, skip), _OPEN_LIMIT_S)
            if isinstance(answer, dict) and "error" not in answer:
                return answer
            _raise_if_too_large(answer)
            self._slot("bench").replace()
        raise WorkerError(f"the evaluation worker did not open a session: {answer}")

    def bench(self, job: BenchJob, least: Level = Level.NONE) -> dict[str, Any] | Evaluation:
        """The bench's answer, or what became of the candidate, which runs in a process isolated to ``least``, or not at all."""
        slot = self._slot("bench")
        answer: Answer = {}
        for _ in range(2):
            with self.spending("start"):
                slot.start()
                refusal = self.too_open_for(least)
            if refusal is not None:
                return refusal
            alone = not slot.tenants - {job.kernel.digest}
            slot.tenants.add(job.kernel.digest)
            with self.spending(job.name):
                if isinstance(job, TimeJob):
                    slot.settle_baselines()
                answer = slot.ask(job, self._limit_s)
            if isinstance(answer, Hung):
                return TimedOut(answer.limit_s)
            if isinstance(answer, Died) and alone:
                return answer.evaluation()
            if isinstance(answer, dict) and "error" not in answer:
                return self._understood(answer) if "evaluation" in answer else answer
            slot.replace()
        if isinstance(answer, Died):
            return answer.evaluation()
        raise unexpected(answer)

    def _understood(self, answer: dict[str, Any]) -> Evaluation:
        evaluation = from_json(answer["evaluation"])
        damaged = isinstance(evaluation, Mismatch) and evaluation.pattern in _DAMAGING
        if damaged or isinstance(evaluation, Crashed):
            self._slot("bench").replace()
        return evaluation

    def judge(self, job: JudgeJob) -> float | Evaluation:
        """The largest error, or what is wrong."""
        slot = self._slot("referee")
        answer: Answer = {}
        for _ in range(2):
            with self.spending(job.name):
                answer = slot.ask(job, _JUDGE_LIMIT_S)
            if isinstance(answer, dict) and "error" not in answer:
                return float(answer["max_error"]) if "max_error" in answer else from_json(answer["evaluation"])
            slot.replace()
        # The reference, not the candidate, brought the process down: nothing can be said about this region's kernels.
        return Refused("reference", f"could not be evaluated: {answer}"[:500])

    def applies(self, distribution: str) -> bool:
        """Whether eager accepts the inputs of that name."""
        answer = self._slot("referee").ask(ApplyJob(distribution), _JUDGE_LIMIT_S)
        if not isinstance(answer, dict):
            self._slot("referee").replace()
        return isinstance(answer, dict) and bool(answer.get("applies"))

    def outside_session(self, job: Job, limit_s: float | None = None) -> Answer:
        """The answer to a job that needs no region; a process that was lost over it is replaced."""
        if limit_s is None:
            limit_s = _GRAPH_LIMIT_S if isinstance(job, GraphJob) else self._limit_s
        answer = self._slot("bench").ask(job, limit_s, in_session=False)
        if not isinstance(answer, dict):
            self._slot("bench").replace()
        return answer

    def too_open_for(self, least: Level) -> Refused | None:
        """Each process is asked anew: how well it could be isolated may differ from the last one's."""
        if least == Level.NONE:
            return None
        reached = self._slot("bench").isolation()
        if reached.level >= least:
            return None
        needed, has, why = least.name.lower(), reached.level.name.lower(), "; ".join(reached.missing)
        return Refused("isolation", f"a kernel from outside needs {needed!r}, the worker has {has!r} ({why})")

    def move(self) -> None:
        """Into a process that no candidate has been in: what is so in one process only may be its luck or its fault."""
        if self._slot("bench").tenants:
            self._slot("bench").replace()

    def rest(self) -> bool:
        """Drop the session and be ready for another; false where there was none.

        Both processes are kept: what Inductor's first compile loads takes longer than judging most regions. A bench that a
        candidate was seen to damage is gone by now.
        """
        if not self._slots.keys() >= {"bench", "referee"} or not self._slots["referee"].rest():
            return False
        if not self._slots["bench"].rest():
            self._slots["bench"].renew()
        return True

    def close(self) -> None:
        """May be called twice; the next question starts new processes."""
        for slot in self._slots.values():
            slot.close()
        self._slots.clear()
        if self._scratch is not None:
            self._scratch.cleanup()
            self._scratch = None

    def scratch(self) -> Path:
        """A folder that lives as long as the workers do."""
        if self._scratch is None:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._scratch = tempfile.TemporaryDirectory(prefix="session-", dir=self._folder)
        return Path(self._scratch.name)

    def _slot(self, role: Role) -> WorkerSlot:
        if role not in self._slots:
            threads = self._platform.target().threads
            setup = replace(self._setup, threads=threads, quiet=role == "referee")
            apart = role == "bench" and self._platform.language == "triton"
            self._slots[role] = WorkerSlot(setup, self.scratch() / f"{role}.log", _SPARES if apart else 0)
        return self._slots[role]


def _raise_if_too_large(answer: Answer) -> None:
    if isinstance(answer, dict) and "needed_bytes" in answer:
        raise ResourceError("bytes of memory", answer["needed_bytes"], answer["allowed_bytes"])


def unexpected(answer: object) -> WorkerError:
    """What a worker says that failed by itself: in one line, its traceback in the log."""
    logger.debug("the evaluation worker failed: %s", answer)
    words = answer.get("error", answer) if isinstance(answer, dict) else answer
    return WorkerError(f"the evaluation worker failed: {str(words).splitlines()[0]}"[:500])
