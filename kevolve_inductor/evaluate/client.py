"""The evaluator that the tuner uses: judges kernels in worker processes and lives through whatever they do."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from ..exc import WorkerError
from ..graph.foreign import modules_of
from ..graph.region import Region, Workload
from ..kernel import Kernel
from ..platforms.platform import Platform
from ..platforms.profile import Profile
from .build import gate
from .diagnosis import with_profile
from .evaluation import (
    Baselines,
    Crashed,
    Evaluation,
    GraphVerdict,
    ModeTimes,
    Passed,
    Refused,
    ResourceFailed,
    TimedOut,
    from_json,
)
from .inputs import at_other_sizes, distributions_for, is_judged, screened, timed_inputs, with_other_seeds
from .isolation import MEMORY_SHARE, Level
from .job import CrossJob, GraphJob, JudgeJob, OpenJob, ProfileJob, RunJob, TimeJob, WorkerSetup
from .overflow import index_overflow
from .prepare import BUILD_LIMIT_S, Preparer
from .process import Died, Hung
from .profile import watch
from .sanitizers.sanitizers import Sanitized, sanitize, telling_inputs
from .sanitizers.tool import Case
from .workers import Workers, unexpected

if TYPE_CHECKING:
    from ..graph.swap import Swap

# Other seeds mostly find again what one seed has: in a quick search they may take this long.
SEEDS_S = 3.0
_SANITIZER_S = 30.0
_ONLY_TIMED_BYTES = 2**26


class WorkerEvaluator:
    """Decides in which order a kernel is looked at, and when that is enough; :class:`.workers.Workers` do the looking.

    ``folder`` keeps what was built, so that a later session finds it.
    """

    def __init__(
        self, platform: Platform, folder: Path, limit_s: float = 30.0, seed: int = 0, tf32: bool = False,
        seeds_s: float | None = SEEDS_S, isolation: Level = Level.CONFINED, memory_share: float = MEMORY_SHARE,
    ) -> None:  # fmt: skip
        """``tf32``: eager, which sets the accuracy to reach, may use TF32 for matrix products in float32.

        ``seeds_s``: seconds that a finalist's inputs with other seeds may take; ``None`` for all of them.
        ``isolation``: the level below which kernels from outside are refused. ``memory_share``: what each worker may take
        of the memory that is free when it starts.
        """
        self._platform, self._folder, self._limit_s, self._seeds_s = platform, folder, limit_s, seeds_s
        self._applies: dict[str, bool] = {}
        self._least_isolation = isolation
        self._outside: set[str] = set()
        self._setup = WorkerSetup(platform.name, str(folder), 0, seed, tf32, memory_share=memory_share)
        self._workers = Workers(platform, folder, self._setup, limit_s)
        self._session: tuple[Region, Workload] | None = None
        self._preparer: Preparer | None = None

    def __enter__(self) -> WorkerEvaluator:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @property
    def spent_s(self) -> dict[str, float]:
        """Seconds waited for builds, runs, the referee, timing, and new processes."""
        return self._workers.spent_s

    def open(self, region: Region, workload: Workload, first: tuple[Kernel, ...] = ()) -> Baselines:
        """Raises ``WorkerError`` where the workers do not come up, ``ResourceError`` where the region needs more memory
        than they may take."""
        self._session = (region, workload)
        self._applies.clear()
        reason = self._platform.available()
        if reason is not None:
            return Baselines({}, {"eager": reason, "inductor": reason})
        self._platform.release_unused()
        if self._platform.language == "triton":
            self.prepare(first)
        return self._workers.open(region, workload)

    def prepare(self, kernels: tuple[Kernel, ...], outside: bool = False) -> None:
        region, _ = self._opened()
        if outside:
            self._outside.update(kernel.digest for kernel in kernels)
            kernels = tuple(kernel for kernel in kernels if self._workers.too_open_for(self._least(kernel)) is None)
        if self._preparer is None:
            self._preparer = Preparer(self._platform, self._setup, self._workers.scratch())
        self._preparer.start(tuple(kernel for kernel in kernels if gate(kernel) is None), region)

    def is_built(self, kernel: Kernel) -> bool:
        return self._preparer is None or self._preparer.is_built(kernel)

    def evaluate(
        self, kernel: Kernel, beat: float = 0.0, surely: bool = False, outside: bool = False
    ) -> Evaluation:  # fmt: skip
        """Raises ``WorkerError`` before ``open``, and where the workers fail by themselves twice."""
        region, workload = self._opened()
        if outside:
            self._outside.add(kernel.digest)
        refusal = (
            gate(kernel)
            or index_overflow(kernel, region.symbol_names)
            or self._workers.too_open_for(self._least(kernel))
        )
        if refusal is not None:
            return refusal
        if self._platform.available() is not None:
            return self._cross_compiled(kernel, region)
        if self._preparer is not None:
            with self._workers.spending("build"):
                built = self._preparer.wait_for(kernel)
            if not built:
                return TimedOut(BUILD_LIMIT_S)
        if surely and self._is_thorough:
            self._workers.move()
        distributions = distributions_for(region, workload)
        first, rest = screened(distributions)
        # First of all again what was just timed: a kernel that only works for its first calls is found out here.
        rest = (*timed_inputs(region, workload), *rest, *at_other_sizes(region, workload))
        unchecked = TimeJob(kernel, 0.0, 0.0)
        if not surely and self._is_only_timed(kernel, region, workload):
            timed = self._time(unchecked)
            return replace(timed, complete=False) if isinstance(timed, Passed) else timed
        checked = self._check(kernel, first, unchecked)
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
        if not isinstance(checked, TimeJob):
            return checked
        passed = replace(timed, max_error=checked.max_error)
        return self._profiled(kernel, passed) if surely and self._is_thorough else passed

    def _is_only_timed(self, kernel: Kernel, region: Region, workload: Workload) -> bool:
        """Until it is to be decided: checking a large region takes twenty times as long as timing it, and of all that are
        timed one is taken. Kernels from outside are never run before they were run guarded."""
        if kernel.digest in self._outside:
            return False
        specs = (*region.inputs, *region.output_specs)
        return sum(spec.size_bytes(workload.symbols) for spec in specs) >= _ONLY_TIMED_BYTES

    @property
    def _is_thorough(self) -> bool:
        """Whether seconds do not count. In a quick search the whole graph's check is the second look at what was found."""
        return self._seeds_s is None

    def _profiled(self, kernel: Kernel, passed: Passed) -> Evaluation:
        """A closer look at a kernel that is about to be taken."""
        seen = self._workers.bench(ProfileJob(kernel), self._least(kernel))
        if not isinstance(seen, dict):
            # The kernel has passed already: what ends here is the profiler.
            return passed
        profile = Profile.from_json(seen["profile"])
        # Profilers cannot reach into the isolation, and a kernel from outside is not let out of it.
        if kernel.digest not in self._outside:
            with self._workers.spending("watch"):
                session = OpenJob("bench", *self._opened())
                profile = (
                    watch(self._platform, self._workers.scratch() / "watched", self._setup, session, kernel) | profile
                )
        return replace(passed, diagnosis=with_profile(passed.diagnosis, profile))

    def _time(self, job: TimeJob) -> Evaluation:
        if self._preparer is not None:
            with self._workers.spending("build"):
                self._preparer.wait_until_quiet()
        timed = self._workers.bench(job, self._least(job.kernel))
        if isinstance(timed, dict):
            raise unexpected(timed)
        return timed

    def _check(
        self, kernel: Kernel, distributions: tuple[str, ...], known: TimeJob, seconds: float | None = None
    ) -> TimeJob | Evaluation:
        """What is ``known`` of a kernel, with the largest error over more ``distributions``; or what is wrong with it.

        With ``seconds``, those that come up within that time.
        """
        max_error, build_s = known.max_error, known.build_s
        region, _ = self._opened()
        start = time.monotonic()
        for distribution in distributions:
            if seconds is not None and time.monotonic() - start > seconds:
                break
            if "@" in distribution and not self._has_reference(distribution):
                continue
            path = self._workers.scratch() / "outputs"
            ran = self._workers.bench(RunJob(kernel, distribution, str(path)), self._least(kernel))
            if not isinstance(ran, dict):
                return ran
            build_s = max(build_s, ran["build_s"])
            if not is_judged(region, distribution):
                continue
            judged = self._workers.judge(JudgeJob(distribution, None if ran["raised"] else str(path)))
            if not isinstance(judged, float):
                return judged
            max_error = max(max_error, judged)
        return TimeJob(kernel, max_error, build_s)

    def _has_reference(self, distribution: str) -> bool:
        if distribution not in self._applies:
            self._applies[distribution] = self._workers.applies(distribution)
        return self._applies[distribution]

    def _least(self, kernel: Kernel) -> Level:
        return self._least_isolation if kernel.digest in self._outside else Level.NONE

    def _cross_compiled(self, kernel: Kernel, region: Region) -> Evaluation:
        answer = self._workers.outside_session(CrossJob(kernel, region, self._platform.target().chip))
        if isinstance(answer, Hung):
            return TimedOut(answer.limit_s)
        if isinstance(answer, Died):
            return answer.evaluation()
        if "evaluation" not in answer:
            raise unexpected(answer)
        return from_json(answer["evaluation"])

    def sanitize(self, kernel: Kernel) -> Sanitized | Refused | Crashed:
        """Raises ``WorkerError`` before ``open``."""
        region, workload = self._opened()
        names = (name for name in telling_inputs(region, workload) if "@" not in name or self._has_reference(name))
        setup = replace(self._setup, threads=self._platform.target().threads)
        with self._workers.spending("sanitize"):
            return sanitize(Case(kernel, region, workload, tuple(names), setup, _SANITIZER_S))

    def check_graph(self, graph: Region, workload: Workload, swaps: tuple[Swap, ...]) -> GraphVerdict:
        """Never raises for what the graph or the swaps do; ``correct`` is false where the swapped graph failed."""
        answer = self._workers.outside_session(_graph_job(graph, workload, swaps))
        if isinstance(answer, dict) and "error" not in answer:
            return GraphVerdict(**answer)
        # Both graphs hold more memory than one: that says nothing against the swaps.
        too_large = isinstance(answer, Died) and isinstance(answer.evaluation(), ResourceFailed)
        return GraphVerdict(None, None, too_large, f"not measured: {answer}"[:500])

    def time_mode(
        self, graph: Region, workload: Workload, swaps: tuple[Swap, ...], mode: str, limit_s: float
    ) -> ModeTimes:
        answer = self._workers.outside_session(_graph_job(graph, workload, swaps, mode), limit_s)
        return ModeTimes(**answer) if isinstance(answer, dict) and "error" not in answer else ModeTimes()

    def rest(self) -> bool:
        """Forget the region and keep the workers for the next one; false where none run."""
        self._session = None
        self._outside.clear()
        return self._workers.rest()

    def close(self) -> None:
        """End the workers. May be called twice; ``open`` starts new ones."""
        if self._preparer is not None:
            self._preparer.close()
            self._preparer = None
        self._workers.close()
        self._session = None

    def _opened(self) -> tuple[Region, Workload]:
        if self._session is None:
            raise WorkerError("no region is open")
        return self._session


def _graph_job(graph: Region, workload: Workload, swaps: tuple[Swap, ...], mode: str | None = None) -> GraphJob:
    """Only this process knows which modules define the graph's operators."""
    return GraphJob(graph, workload, swaps, mode, modules_of(graph))
