"""From a region to a verdict: ask the store, search on a miss, remember.

The only module that joins search, synthesis, evaluation and cache.
"""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from .cache.entry import Entry, TrialRow
from .cache.gc import WORKLOADS
from .cache.key import CacheKey, cache_key
from .cache.store import Store
from .cache.trust import trusted
from .evaluate.evaluation import BuildFailed, Crashed, Evaluation, Passed, Refused, from_json, to_json
from .evaluate.evaluator import Evaluator
from .evaluate.footprint import workspace_bytes
from .exc import EmissionError, StoreError, UndecidedError
from .graph.capture import canonical_kernel
from .graph.discovery import Found
from .graph.region import Region
from .kernel import Kernel, Language
from .platforms.platform import Platform, Target
from .search.budget import Budget, StopReason
from .search.evolution import EvolutionSearcher
from .search.searcher import Candidate
from .settings import Settings

logger = logging.getLogger(__name__)

# Candidates asked for at once, so that they can be built side by side; and as many as are asked for before the first of
# them is judged. C++ is built on the processors that are timed, so nothing is asked for ahead.
_BATCH = 8
_AHEAD: dict[Language, int] = {"triton": 24, "cpp": _BATCH, "aten": _BATCH}
# A kernel this close to the floor is not searched further (where others of the field stop as well).
_TARGET_SHARE_OF_FLOOR = 0.95
# The best of many noisy measurements is an optimistic one, so the finalists are measured again.
_LEAST_TARGET = 1.25
_FINALISTS = 3
# This near to the best, which of them is the fastest is noise: what takes less memory comes first.
_ALIKE = 0.98
# Of those that are found wrong only then there may be more: the next best may be right.
_MOST_FINALISTS = 8
# Preparing a region's baselines may take all of its time; a verdict without a trial would say nothing. Where no kernel can
# be written for any of so many schedules, none will come.
_LEAST_TRIALS, _MOST_UNWRITTEN = 3, 50
# After that there is time for this share of what preparing took, or of all there was, since candidates are built by then:
# less where other regions wait for it.
_LEAST_SHARE, _LEAST_OF_SHARED = 0.5, 0.25
# A search may have time for a few trials only: what won elsewhere comes before the family's own seeds where the operators
# are the same and the sizes near, and behind them else.
_WARM_STARTS, _DISTANT_STARTS = 2, 4
# A machine that was too noisy to decide about a region is not asked again at once by every compile that meets it.
_NOISE_LASTS_S = 3600.0

TrialListener = Callable[[int, float], None]


@dataclass(frozen=True)
class Trial:
    candidate: Candidate
    kernel: Kernel | None
    evaluation: Evaluation

    @property
    def score(self) -> float:
        return self.evaluation.speedup if isinstance(self.evaluation, Passed) else 0.0


@dataclass
class _Search:
    """What one region's search has seen so far, at its ``symbols``' sizes, and whether others wait for the time it takes."""

    symbols: dict[str, int]
    others_wait: bool = False
    trials: list[Trial] = field(default_factory=list)
    baselines_us: dict[str, float] = field(default_factory=dict)
    confirmed: Trial | None = None
    noise: str | None = None

    def finalists(self) -> list[Trial]:
        """The best kernels, each once: several schedules may give the same text."""
        distinct: dict[Kernel, Trial] = {}
        for trial in sorted(self.trials, key=lambda trial: -trial.score):
            if trial.kernel is not None and trial.score > 0:
                distinct.setdefault(trial.kernel, trial)
        best = max((trial.score for trial in distinct.values()), default=0.0)

        def rank(kernel: Kernel) -> tuple[bool, int]:
            is_alike = distinct[kernel].score >= _ALIKE * best
            return not is_alike, workspace_bytes(kernel, self.symbols) if is_alike else 0

        return [distinct[kernel] for kernel in sorted(distinct, key=rank)][:_MOST_FINALISTS]


class _Queue:
    """Candidates with their kernels, asked for some time before they are judged, so that they are built by then.

    A kernel that could not be emitted is the reason why, in words.
    """

    def __init__(self, tuner: Tuner, found: Found) -> None:
        self._found, self._language, self._evaluator = found, tuner.platform.language, tuner.evaluator
        space = found.family.space(found.match, tuner.target)
        warm, distant = tuner.warm_starts(found)
        self.searcher = EvolutionSearcher(space, tuner.settings.seed, warm=warm, distant=distant)
        self._asked: deque[tuple[Candidate, Kernel | str]] = deque()
        # Built while the evaluator opens.
        self._first = next(iter(self._ask(_AHEAD[self._language])), None)

    def kernels(self) -> tuple[Kernel, ...]:
        return tuple(kernel for _, kernel in self._asked if isinstance(kernel, Kernel))

    @property
    def holds_the_first(self) -> bool:
        """Whether the kernel that promised most has not been taken yet."""
        return self._first is not None and any(kernel == self._first for _, kernel in self._asked)

    def next(self, hurried: bool = False) -> tuple[Candidate, Kernel | str] | None:
        """The first that is built, else or ``hurried`` the first; ``None`` where every schedule has been tried."""
        if len(self._asked) <= _AHEAD[self._language] - _BATCH:
            self._evaluator.prepare(self._ask(_BATCH))
        if not self._asked:
            return None
        # One that takes long to build holds up none of the others.
        ready = (
            position
            for position, (_, kernel) in enumerate(self._asked)
            if isinstance(kernel, str) or self._evaluator.is_built(kernel)
        )
        position = 0 if hurried else next(ready, 0)
        asked = self._asked[position]
        del self._asked[position]
        return asked

    def _ask(self, count: int) -> tuple[Kernel, ...]:
        candidates = [candidate for candidate in (self.searcher.ask() for _ in range(count)) if candidate is not None]
        asked = [(candidate, self._emit(candidate)) for candidate in candidates]
        self._asked.extend(asked)
        return tuple(kernel for _, kernel in asked if isinstance(kernel, Kernel))

    def _emit(self, candidate: Candidate) -> Kernel | str:
        try:
            kernel = self._found.family.emit(self._found.match, candidate.schedule, self._language)
        except EmissionError as error:
            return str(error)
        return canonical_kernel(kernel, self._found.match.inputs)


class Tuner:
    """Decides regions one after another. Owns neither store nor evaluator; not thread-safe."""

    def __init__(
        self,
        settings: Settings,
        platform: Platform,
        store: Store,
        evaluator: Evaluator,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.settings, self.platform, self.store, self.evaluator = settings, platform, store, evaluator
        self.clock = clock
        self.target: Target = platform.target()
        self._known: dict[str, Entry] = {}

    def key(self, found: Found) -> CacheKey:
        return cache_key(found.captured.region, found.workload.symbols, self.target, self.settings)

    def look_up(self, found: Found) -> Entry | None:
        """What the store knows of the region from trusted sources; a kernel that does not reach today's ``min_speedup``
        counts as a baseline."""
        key = self.key(found).digest
        if key not in self._known:
            entry = self.store.get(key)
            if entry is None or not trusted(entry, self.settings.trust):
                return None
            self._known[key] = self._today(entry)
        return self._known[key]

    def why_unknown(self, found: Found) -> str:
        """Why ``look_up`` finds nothing."""
        entry = self.store.get(self.key(found).digest)
        if entry is None or trusted(entry, self.settings.trust):
            return "not in the store"
        return f"in the store only from {entry.source!r}, which is not trusted"

    def _today(self, entry: Entry) -> Entry:
        if entry.evaluation is None or entry.verdict == "baseline" or self._accepts(from_json(entry.evaluation)):
            return entry
        return replace(entry, verdict="baseline", kernel=None)

    def search(
        self, found: Found, seconds: float | None, listener: TrialListener | None = None, *, others_wait: bool = False
    ) -> Entry:
        """Search the region for about ``seconds``, in which its baselines are made as well, and remember the verdict.

        A few trials are made in any case; where ``others_wait`` for the time, only until one is faster. What was found is
        confirmed after that.
        Interrupted (``KeyboardInterrupt``), what is best of what was checked so far is remembered before the interrupt goes on.
        Raises ``WorkerError`` where the evaluation machinery fails, ``ResourceError`` where the region does not fit in memory
        beside what is there, ``UndecidedError`` where the machine is too noisy.
        """
        self._raise_if_undecided_lately(found)
        start = self.clock()
        search = _Search(found.workload.symbols, others_wait)
        try:
            queue = _Queue(self, found)
            baselines = self.evaluator.open(found.captured.region, found.workload, queue.kernels())
            search.baselines_us = dict(baselines.times_us)
            self._explore(queue, search, self._budget(found, search, seconds, start), listener)
            search.confirmed = self._confirm(search)
        except KeyboardInterrupt:
            search.confirmed = next((trial for trial in search.finalists() if self._accepts(trial.evaluation)), None)
            if search.confirmed is not None:
                self._remember(found, search, self.clock() - start)
            raise
        return self._remember(found, search, self.clock() - start)

    def _raise_if_undecided_lately(self, found: Found) -> None:
        before = self.store.recall("undecided", self.key(found).digest)
        if before is not None and self.settings.search == "quick" and time.time() - before["at"] < _NOISE_LASTS_S:
            raise UndecidedError(before["why"])

    def _budget(self, found: Found, search: _Search, seconds: float | None, start: float) -> Budget:
        spent = self.clock() - start
        share = _LEAST_OF_SHARED if search.others_wait else _LEAST_SHARE
        left = None if seconds is None else max(seconds - spent, share * min(seconds, spent))
        best_us = min(search.baselines_us.values(), default=0.0)
        target = best_us * _TARGET_SHARE_OF_FLOOR / found.floor_us if found.floor_us > 0 and best_us else None
        if target is not None:
            # A floor is an estimate: where the baseline seems to stand on it already, a little may still be won.
            target = max(target, _LEAST_TARGET)
        return Budget(self.settings.trials, left, self.clock, target=target)

    def _explore(self, queue: _Queue, search: _Search, budget: Budget, listener: TrialListener | None) -> None:
        self.evaluator.prepare(queue.kernels())
        while (reason := self._stop(queue, search, budget)) is None:
            asked = queue.next(hurried=budget.remaining_s == 0)
            if asked is None:
                reason = StopReason.EXHAUSTED
                break
            candidate, kernel = asked
            trial = self._try(candidate, kernel, max(self.settings.min_speedup, budget.best))
            search.trials.append(trial)
            queue.searcher.tell(candidate, trial.score)
            budget.tell(trial.score)
            if listener is not None:
                listener(budget.trials_spent, budget.best)
        logger.debug("%s after %d trials", reason, budget.trials_spent)

    def _stop(self, queue: _Queue, search: _Search, budget: Budget) -> StopReason | None:
        """Why the search is to end now; not for want of time before what promised most has been tried."""
        least = _LEAST_TRIALS if self.settings.trials is None else min(_LEAST_TRIALS, self.settings.trials)
        # What no kernel could be written for comes first, since it waits for no build, and says nothing.
        written = sum(trial.kernel is not None for trial in search.trials)
        if written >= least or budget.trials_spent >= (self.settings.trials or _MOST_UNWRITTEN):
            reason = budget.stop()
            return None if reason is StopReason.TIME_SPENT and queue.holds_the_first else reason
        has_won = any(self._accepts(trial.evaluation) for trial in search.trials)
        return StopReason.TIME_SPENT if search.others_wait and has_won and budget.remaining_s == 0 else None

    def _try(self, candidate: Candidate, kernel: Kernel | str, beat: float) -> Trial:
        if isinstance(kernel, str):
            return Trial(candidate, None, BuildFailed("emission", kernel))
        return Trial(candidate, kernel, self.evaluator.evaluate(kernel, beat))

    def _confirm(self, search: _Search) -> Trial | None:
        undecided = 0
        for trial in search.finalists():
            if undecided == _FINALISTS:
                break
            assert trial.kernel is not None
            evaluation = self.evaluator.evaluate(trial.kernel, self.settings.min_speedup, surely=True)
            if self._accepts(evaluation) and self.settings.search == "full":
                evaluation = self._sanitized(trial.kernel, evaluation)
            again = Trial(trial.candidate, trial.kernel, evaluation)
            if self._accepts(again.evaluation):
                return again
            if isinstance(evaluation, Passed):
                undecided += 1
            elif isinstance(evaluation, Refused) and evaluation.check == "noise":
                undecided += 1
                search.noise = evaluation.message
            else:
                # What only the finals found out is what the trial is remembered for.
                search.trials[search.trials.index(trial)] = again
        return None

    def _sanitized(self, kernel: Kernel, accepted: Evaluation) -> Evaluation:
        """``accepted`` with what the sanitizers did, or what one of them found."""
        sanitized = self.evaluator.sanitize(kernel)
        if isinstance(sanitized, Refused | Crashed):
            return sanitized
        assert isinstance(accepted, Passed)
        return replace(accepted, sanitizers=sanitized.to_json())

    def _accepts(self, evaluation: Evaluation) -> bool:
        if not isinstance(evaluation, Passed) or not evaluation.complete:
            return False
        return evaluation.speedup_low >= self.settings.min_speedup

    def warm_starts(self, found: Found) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Schedules that won for the same operators on the nearest sizes, and others of the same family."""
        region = found.captured.region
        operators = [node.target for node in region.nodes]
        entries = [e for e in self.store.entries() if e.family == found.family.name and e.schedule and e.kernel]
        entries = [entry for entry in entries if trusted(entry, self.settings.trust)]
        entries.sort(key=lambda entry: (_distance(region, entry.region), entry.key))
        alike = [e for e in entries if [node["target"] for node in e.region["nodes"]] == operators][:_WARM_STARTS]
        taken = {entry.key for entry in alike}
        others = [entry for entry in entries if entry.key not in taken][:_DISTANT_STARTS]
        return [dict(entry.schedule or {}) for entry in alike], [dict(entry.schedule or {}) for entry in others]

    def _remember(self, found: Found, search: _Search, seconds: float) -> Entry:
        key = self.key(found)
        chosen = search.confirmed
        self.store.append_trials(key.digest, _rows(search.trials))
        self._keep_for_review(search.trials)
        if chosen is None and search.noise is not None:
            why = f"the machine is too noisy: {search.noise}"
            self.store.remember("undecided", key.digest, {"at": time.time(), "why": why})
            raise UndecidedError(why)
        shown = chosen or next(iter(search.finalists()), None)
        entry = Entry(
            key=key.digest,
            verdict="kernel" if chosen else "baseline",
            kernel=chosen.kernel.digest if chosen and chosen.kernel else None,
            evaluation=to_json(shown.evaluation) if shown else None,
            region=found.captured.region.to_json(),
            key_fields=key.fields,
            trials=len(search.trials),
            search_s=round(seconds, 3),
            family=found.family.name,
            schedule=dict(chosen.candidate.schedule) if chosen else None,
            title=found.title,
            created=time.time(),
        )
        self.store.remember(WORKLOADS, key.digest, found.workload.to_json())
        try:
            self.store.put(entry, chosen.kernel if chosen else None)
        except StoreError as error:
            logger.warning("the verdict on %s is not remembered: %s", found.title, error)
        return entry

    def _keep_for_review(self, trials: Sequence[Trial]) -> None:
        """What was too fast to be true is either a cheat worth a new check or a floor worth correcting."""
        for trial in trials:
            if (
                trial.kernel is not None
                and isinstance(trial.evaluation, Refused)
                and trial.evaluation.check == "ceiling"
            ):
                refused = {"kernel": trial.kernel.to_json(), "evaluation": to_json(trial.evaluation)}
                self.store.remember("review", trial.kernel.digest, refused)


def _distance(region: Region, other: Mapping[str, Any]) -> float:
    """Between the sizes of two regions' inputs, as the sum of the logarithms of their ratios; other ranks are infinitely far.

    Sizes that vary count as equal.
    """
    shapes, others = [spec.shape for spec in region.inputs], [spec["shape"] for spec in other["inputs"]]
    if list(map(len, shapes)) != list(map(len, others)):
        return math.inf
    pairs = [pair for shape, another in zip(shapes, others, strict=True) for pair in zip(shape, another, strict=True)]
    # One more than each, since a size may be 0.
    return sum(abs(math.log((a + 1) / (b + 1))) for a, b in pairs if isinstance(a, int) and isinstance(b, int))


def _rows(trials: Sequence[Trial]) -> list[TrialRow]:
    return [
        TrialRow(
            id=trial.candidate.id,
            parents=trial.candidate.parents,
            schedule=dict(trial.candidate.schedule),
            status=trial.evaluation.status,
            score=trial.score,
            origin=trial.candidate.origin,
            memory=trial.candidate.memory,
            kernel=trial.kernel.digest if trial.kernel else None,
            evaluation=to_json(trial.evaluation),
        )
        for trial in trials
    ]
