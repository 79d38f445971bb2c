"""The evaluator that the tuner uses: judges kernels in worker processes and lives through whatever they do."""

from __future__ import annotations

import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from ..exc import WorkerError
from ..graph.region import Region, Workload
from ..kernel import Kernel
from ..platforms.platform import Platform
from .build import gate
from .evaluation import Baselines, Crashed, Evaluation, GraphVerdict, Mismatch, Passed, Refused, TimedOut, from_json
from .inputs import BROKEN, at_other_sizes, distributions_for, screened, timed_inputs, with_other_seeds
from .job import ApplyJob, CrossJob, GraphJob, Job, JudgeJob, OpenJob, Role, RunJob, TimeJob, WorkerSetup
from .overflow import index_overflow
from .prepare import BUILD_LIMIT_S, Preparer
from .process import Answer, Died, Hung, WorkerSlot

if TYPE_CHECKING:
    from ..graph.swap import Swap

# Other seeds mostly find again what one seed has: in a quick search they may take this long.
SEEDS_S = 3.0
# Inductor's C++ takes long to compile on a busy machine, and a whole graph is compiled twice.
_OPEN_LIMIT_S = 300.0
_GRAPH_LIMIT_S = 900.0
_JUDGE_LIMIT_S = 120.0
# Patterns after which the memory of the worker cannot be trusted.
_DAMAGING = ("out of bounds write", "input changed")


class WorkerEvaluator:
    """Two workers: the *bench* runs and times candidates, the *referee* knows what is right and never runs one.

    They are started on first use. A candidate that ends the bench costs a new process, in which the session is opened
    again; a candidate that dies in a process where others ran before gets a second chance in a fresh one. ``folder``
    keeps what was built, so that a later session finds it.
    """

    def __init__(
        self, platform: Platform, folder: Path, limit_s: float = 30.0, seed: int = 0, tf32: bool = False,
        seeds_s: float | None = SEEDS_S,
    ) -> None:  # fmt: skip
        """``tf32``: eager, which sets the accuracy to reach, may use TF32 for matrix products in float32.

        ``seeds_s``: seconds that a finalist's inputs with other seeds may take; ``None`` for all of them.
        """
        self._platform, self._folder, self._limit_s, self._seeds_s = platform, folder, limit_s, seeds_s
        self._applies: dict[str, bool] = {}
        self.spent_s: defaultdict[str, float] = defaultdict(float)
        self._setup = WorkerSetup(platform.name, str(folder), 0, seed, tf32)
        self._scratch: tempfile.TemporaryDirectory[str] | None = None
        self._slots: dict[Role, WorkerSlot] = {}
        self._session: tuple[Region, Workload] | None = None
        self._preparer: Preparer | None = None

    def __enter__(self) -> WorkerEvaluator:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @contextmanager
    def _spending(self, what: str) -> Iterator[None]:
        """Adds to ``spent_s``: seconds waited for builds, runs, the referee, timing, and new processes."""
        start = time.monotonic()
        try:
            yield
        finally:
            self.spent_s[what] += time.monotonic() - start

    def open(self, region: Region, workload: Workload) -> Baselines:
        """Raises ``WorkerError`` where the workers do not come up."""
        self._session = (region, workload)
        self._applies.clear()
        reason = self._platform.available()
        if reason is not None:
            return Baselines({}, {"eager": reason, "inductor": reason})
        self._slot("referee").start()
        opened = self._open_bench(region, workload)
        referee = self._slot("referee").open(OpenJob("referee", region, workload), _OPEN_LIMIT_S)
        if not isinstance(referee, dict) or "error" in referee:
            raise WorkerError(f"the referee did not open a session: {referee}")
        return Baselines(dict(opened["times_us"]), dict(opened["failures"]))

    def _open_bench(self, region: Region, workload: Workload) -> dict[str, Any]:
        answer: Answer = {}
        # Inductor's own code may be what ended the process, so the second try does without it.
        for skip in ((), ("inductor",)):
            answer = self._slot("bench").open(OpenJob("bench", region, workload, skip), _OPEN_LIMIT_S)
            if isinstance(answer, dict) and "error" not in answer:
                return answer
            self._slot("bench").replace()
        raise WorkerError(f"the evaluation worker did not open a session: {answer}")

    def prepare(self, kernels: tuple[Kernel, ...]) -> None:
        region, _ = self._opened()
        if self._preparer is None:
            self._preparer = Preparer(self._platform, self._setup, self._scratch_folder())
        self._preparer.start(tuple(kernel for kernel in kernels if gate(kernel) is None), region)

    def evaluate(self, kernel: Kernel, beat: float = 0.0, surely: bool = False) -> Evaluation:
        """Raises ``WorkerError`` before ``open``, and where the workers fail by themselves twice."""
        region, workload = self._opened()
        refusal = gate(kernel) or index_overflow(kernel, region.symbol_names)
        if refusal is not None:
            return refusal
        if self._platform.available() is not None:
            return self._cross_compiled(kernel, region)
        if self._preparer is not None:
            with self._spending("build"):
                built = self._preparer.wait_for(kernel)
            if not built:
                return TimedOut(BUILD_LIMIT_S)
        if surely:
            self._move()
        distributions = distributions_for(region, workload)
        first, rest = screened(distributions)
        # First of all again what was just timed: a kernel that only works for its first calls is found out here.
        rest = (*timed_inputs(region, workload), *rest, *at_other_sizes(region, workload))
        checked = self._check(kernel, first, TimeJob(kernel, 0.0, 0.0))
        if not isinstance(checked, TimeJob):
            return checked
        timed = self._time(replace(checked, decide_at=beat if surely else None))
        if not isinstance(timed, Passed):
            return timed
        if timed.speedup < beat:
            return replace(timed, complete=False)
        checked = self._check(kernel, rest, checked)
        if surely and isinstance(checked, TimeJob):
            checked = self._check(kernel, with_other_seeds(distributions), checked, self._seeds_s)
        return replace(timed, max_error=checked.max_error) if isinstance(checked, TimeJob) else checked

    def _move(self) -> None:
        """Into a process that no candidate has been in: what is so in one process only may be its luck or its fault."""
        if self._slot("bench").tenants:
            self._slot("bench").replace()

    def _time(self, job: TimeJob) -> Evaluation:
        if self._preparer is not None:
            with self._spending("build"):
                self._preparer.wait_until_quiet()
        timed = self._on_bench(job, job.kernel)
        if isinstance(timed, dict):
            raise _unexpected(timed)
        return timed

    def _check(
        self, kernel: Kernel, distributions: tuple[str, ...], known: TimeJob, seconds: float | None = None
    ) -> TimeJob | Evaluation:
        """What is ``known`` of a kernel, with the largest error over more ``distributions``; or what is wrong with it.

        With ``seconds``, those that come up within that time.
        """
        max_error, build_s = known.max_error, known.build_s
        start = time.monotonic()
        for distribution in distributions:
            if seconds is not None and time.monotonic() - start > seconds:
                break
            if "@" in distribution and not self._has_reference(distribution):
                continue
            path = self._scratch_folder() / "outputs"
            ran = self._on_bench(RunJob(kernel, distribution, str(path)), kernel)
            if not isinstance(ran, dict):
                return ran
            build_s = max(build_s, ran["build_s"])
            if distribution == BROKEN:
                continue
            judged = self._judge(JudgeJob(distribution, None if ran["raised"] else str(path)))
            if not isinstance(judged, float):
                return judged
            max_error = max(max_error, judged)
        return TimeJob(kernel, max_error, build_s)

    def _has_reference(self, distribution: str) -> bool:
        if distribution not in self._applies:
            answer = self._slot("referee").ask(ApplyJob(distribution), _JUDGE_LIMIT_S)
            self._applies[distribution] = isinstance(answer, dict) and bool(answer.get("applies"))
            if not isinstance(answer, dict):
                self._slot("referee").replace()
        return self._applies[distribution]

    def _judge(self, job: JudgeJob) -> float | Evaluation:
        slot = self._slot("referee")
        answer: Answer = {}
        for _ in range(2):
            with self._spending(job.name):
                answer = slot.ask(job, _JUDGE_LIMIT_S)
            if isinstance(answer, dict) and "error" not in answer:
                return float(answer["max_error"]) if "max_error" in answer else from_json(answer["evaluation"])
            slot.replace()
        # The reference, not the candidate, brought the process down: nothing can be said about this region's kernels.
        return Refused("reference", f"could not be evaluated: {answer}"[:500])

    def _on_bench(self, job: Job, kernel: Kernel) -> dict[str, Any] | Evaluation:
        slot = self._slot("bench")
        answer: Answer = {}
        for _ in range(2):
            with self._spending("start"):
                slot.start()
            alone = not slot.tenants - {kernel.digest}
            slot.tenants.add(kernel.digest)
            with self._spending(job.name):
                if isinstance(job, TimeJob):
                    slot.settle_baselines()
                answer = slot.ask(job, self._limit_s)
            if isinstance(answer, Hung):
                return TimedOut(answer.limit_s)
            if isinstance(answer, Died) and alone:
                return Crashed(answer.signal, answer.log)
            if isinstance(answer, dict) and "error" not in answer:
                return self._understood(answer) if "evaluation" in answer else answer
            slot.replace()
        if isinstance(answer, Died):
            return Crashed(answer.signal, answer.log)
        raise _unexpected(answer)

    def _understood(self, answer: dict[str, Any]) -> Evaluation:
        evaluation = from_json(answer["evaluation"])
        damaged = isinstance(evaluation, Mismatch) and evaluation.pattern in _DAMAGING
        if damaged or isinstance(evaluation, Crashed):
            self._slot("bench").replace()
        return evaluation

    def _cross_compiled(self, kernel: Kernel, region: Region) -> Evaluation:
        job = CrossJob(kernel, region, self._platform.target().chip)
        answer = self._slot("bench").ask(job, self._limit_s, in_session=False)
        if isinstance(answer, Hung):
            return TimedOut(answer.limit_s)
        if isinstance(answer, Died):
            return Crashed(answer.signal, answer.log)
        if "evaluation" not in answer:
            raise _unexpected(answer)
        return from_json(answer["evaluation"])

    def check_graph(self, graph: Region, workload: Workload, swaps: tuple[Swap, ...]) -> GraphVerdict:
        """Never raises for what the graph or the swaps do; ``correct`` is false where the swapped graph failed."""
        job = GraphJob(graph, workload, swaps)
        answer = self._slot("bench").ask(job, _GRAPH_LIMIT_S, in_session=False)
        if isinstance(answer, dict) and "error" not in answer:
            return GraphVerdict(**answer)
        self._slot("bench").replace()
        return GraphVerdict(None, None, False, f"not measured: {answer}"[:500])

    def close(self) -> None:
        """End the workers. May be called twice; ``open`` starts new ones."""
        if self._preparer is not None:
            self._preparer.close()
            self._preparer = None
        for slot in self._slots.values():
            slot.close()
        self._slots.clear()
        self._session = None
        if self._scratch is not None:
            self._scratch.cleanup()
            self._scratch = None

    def _opened(self) -> tuple[Region, Workload]:
        if self._session is None:
            raise WorkerError("no region is open")
        return self._session

    def _slot(self, role: Role) -> WorkerSlot:
        if role not in self._slots:
            threads = self._platform.target().threads
            setup = replace(self._setup, threads=threads, quiet=role == "referee")
            self._slots[role] = WorkerSlot(setup, self._scratch_folder() / f"{role}.log")
        return self._slots[role]

    def _scratch_folder(self) -> Path:
        if self._scratch is None:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._scratch = tempfile.TemporaryDirectory(prefix="session-", dir=self._folder)
        return Path(self._scratch.name)


def _unexpected(answer: object) -> WorkerError:
    return WorkerError(f"the evaluation worker failed: {answer}"[:2000])
