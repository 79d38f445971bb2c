"""From a region to a verdict: ask the store, search on a miss, remember.

The only module that joins search, synthesis, evaluation and cache.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from .cache.entry import Entry, TrialRow
from .cache.key import CacheKey, cache_key
from .cache.store import Store
from .evaluate.evaluation import BuildFailed, Crashed, Evaluation, Passed, Refused, from_json, to_json
from .evaluate.evaluator import Evaluator
from .exc import EmissionError, StoreError, UndecidedError
from .graph.capture import canonical_kernel
from .graph.discovery import Found
from .kernel import Kernel
from .platforms.platform import Platform, Target
from .search.budget import Budget, StopReason
from .search.evolution import EvolutionSearcher
from .search.searcher import Candidate
from .settings import Settings

logger = logging.getLogger(__name__)

# Candidates asked for at once, so that they can be built side by side.
_BATCH = 8
# A kernel this close to the floor is not searched further (where others of the field stop as well).
_TARGET_SHARE_OF_FLOOR = 0.95
# The best of many noisy measurements is an optimistic one, so the finalists are measured again.
_LEAST_TARGET = 1.25
_FINALISTS = 3
# Preparing a region's baselines may take all of its time; a verdict without a trial would say nothing.
_LEAST_TRIALS = 3
_WARM_STARTS = 4
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
    """What one region's search has seen so far."""

    trials: list[Trial] = field(default_factory=list)
    baselines_us: dict[str, float] = field(default_factory=dict)
    confirmed: Trial | None = None
    noise: str | None = None

    def finalists(self) -> list[Trial]:
        """The best kernels, each once: several schedules may give the same text."""
        distinct: dict[Kernel | None, Trial] = {}
        for trial in sorted(self.trials, key=lambda trial: -trial.score):
            if trial.score > 0:
                distinct.setdefault(trial.kernel, trial)
        return list(distinct.values())[:_FINALISTS]


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
        """What the store knows of the region; a kernel that does not reach today's ``min_speedup`` counts as a baseline."""
        key = self.key(found).digest
        if key not in self._known:
            entry = self.store.get(key)
            if entry is None:
                return None
            self._known[key] = self._today(entry)
        return self._known[key]

    def _today(self, entry: Entry) -> Entry:
        if entry.evaluation is None or entry.verdict == "baseline" or self._accepts(from_json(entry.evaluation)):
            return entry
        return replace(entry, verdict="baseline", kernel=None)

    def search(self, found: Found, seconds: float | None, listener: TrialListener | None = None) -> Entry:
        """Search the region for at most ``seconds`` and remember the verdict.

        Interrupted (``KeyboardInterrupt``), what is best so far is remembered before the interrupt goes on.
        Raises ``WorkerError`` where the evaluation machinery fails, ``ResourceError`` where the region does not fit in memory
        beside what is there, ``UndecidedError`` where the machine is too noisy.
        """
        self._raise_if_undecided_lately(found)
        start = self.clock()
        search = _Search()
        try:
            baselines = self.evaluator.open(found.captured.region, found.workload)
            search.baselines_us = dict(baselines.times_us)
            self._explore(found, search, self._budget(found, search, seconds, start), listener)
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
        left = None if seconds is None else max(seconds - spent, 0.0)
        best_us = min(search.baselines_us.values(), default=0.0)
        target = best_us * _TARGET_SHARE_OF_FLOOR / found.floor_us if found.floor_us > 0 and best_us else None
        if target is not None:
            # A floor is an estimate: where the baseline seems to stand on it already, a little may still be won.
            target = max(target, _LEAST_TARGET)
        return Budget(self.settings.trials, left, self.clock, target=target)

    def _explore(self, found: Found, search: _Search, budget: Budget, listener: TrialListener | None) -> None:
        space = found.family.space(found.match, self.target)
        searcher = EvolutionSearcher(space, self.settings.seed, warm=self._warm_starts(found))
        least = _LEAST_TRIALS if self.settings.trials is None else min(_LEAST_TRIALS, self.settings.trials)
        while budget.trials_spent < least or budget.stop() is None:
            batch = [candidate for candidate in (searcher.ask() for _ in range(_BATCH)) if candidate is not None]
            if not batch:
                logger.debug("%s: %s", found.title, StopReason.EXHAUSTED)
                return
            kernels = [self._emit(found, candidate) for candidate in batch]
            self.evaluator.prepare(tuple(kernel for kernel in kernels if isinstance(kernel, Kernel)))
            for candidate, kernel in zip(batch, kernels, strict=True):
                if budget.trials_spent >= least and budget.stop() is not None:
                    return
                trial = self._try(candidate, kernel, max(self.settings.min_speedup, budget.best))
                search.trials.append(trial)
                searcher.tell(candidate, trial.score)
                budget.tell(trial.score)
                if listener is not None:
                    listener(budget.trials_spent, budget.best)

    def _emit(self, found: Found, candidate: Candidate) -> Kernel | str:
        try:
            kernel = found.family.emit(found.match, candidate.schedule, self.platform.language)
        except EmissionError as error:
            return str(error)
        return canonical_kernel(kernel, found.match.inputs)

    def _try(self, candidate: Candidate, kernel: Kernel | str, beat: float) -> Trial:
        if isinstance(kernel, str):
            return Trial(candidate, None, BuildFailed("emission", kernel))
        return Trial(candidate, kernel, self.evaluator.evaluate(kernel, beat))

    def _confirm(self, search: _Search) -> Trial | None:
        for trial in search.finalists():
            assert trial.kernel is not None
            evaluation = self.evaluator.evaluate(trial.kernel, self.settings.min_speedup, surely=True)
            if self._accepts(evaluation) and self.settings.search == "full":
                evaluation = self._sanitized(trial.kernel, evaluation)
            again = Trial(trial.candidate, trial.kernel, evaluation)
            if self._accepts(again.evaluation):
                return again
            if isinstance(evaluation, Refused) and evaluation.check == "noise":
                search.noise = evaluation.message
            elif not isinstance(evaluation, Passed):
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

    def _warm_starts(self, found: Found) -> tuple[dict[str, Any], ...]:
        """Schedules that won for regions of the same family, the most similar operators first."""
        operators = [node.target for node in found.captured.region.nodes]
        entries = [e for e in self.store.entries() if e.family == found.family.name and e.schedule and e.kernel]
        entries.sort(key=lambda entry: ([node["target"] for node in entry.region["nodes"]] != operators, entry.key))
        return tuple(dict(entry.schedule) for entry in entries[:_WARM_STARTS] if entry.schedule)

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
