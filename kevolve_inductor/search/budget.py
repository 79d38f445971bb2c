"""When a search ends. Time comes from the clock that is passed in."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum


class StopReason(StrEnum):
    TARGET_REACHED = "target reached"
    TRIALS_SPENT = "trials spent"
    TIME_SPENT = "time spent"
    STALLED = "stalled"
    # Given by whoever drives the search; a budget does not see these two.
    EXHAUSTED = "every schedule tried"
    INTERRUPTED = "interrupted"


class Budget:
    """Counts one search against its limits; ``None`` is no limit.

    The time runs from construction. ``target`` is the score that is good enough. The search has stalled after
    ``stall_trials`` trials in a row that did not improve the best score by ``stall_improvement`` (relative, all of them
    together: many tiny steps count once they add up).
    """

    def __init__(
        self,
        trials: int | None,
        seconds: float | None,
        clock: Callable[[], float],
        *,
        target: float | None = None,
        stall_trials: int | None = 30,
        stall_improvement: float = 0.01,
    ) -> None:
        if trials is not None and trials < 0:
            raise ValueError(f"{trials} trials")
        if seconds is not None and not seconds >= 0:
            raise ValueError(f"{seconds} seconds")
        if stall_trials is not None and stall_trials < 1:
            raise ValueError(f"a search cannot stall after {stall_trials} trials")
        self._trials, self._seconds, self._clock = trials, seconds, clock
        self._target, self._stall_trials, self._stall_improvement = target, stall_trials, stall_improvement
        self._start = clock()
        self._spent = self._since_progress = 0
        self._best = self._mark = 0.0

    @property
    def trials_spent(self) -> int:
        return self._spent

    @property
    def elapsed_s(self) -> float:
        return self._clock() - self._start

    @property
    def remaining_s(self) -> float | None:
        """Never negative; ``None`` where time is not limited."""
        return None if self._seconds is None else max(0.0, self._seconds - self.elapsed_s)

    @property
    def best(self) -> float:
        """The highest score told, 0 where none succeeded."""
        return self._best

    def tell(self, score: float) -> None:
        """Count one trial, with the score that the searcher was told."""
        self._spent += 1
        self._best = max(self._best, score)
        if score > 0 and score >= self._mark * (1 + self._stall_improvement):
            self._mark, self._since_progress = score, 0
        else:
            self._since_progress += 1

    def stop(self) -> StopReason | None:
        """Why the search is to end now, or ``None``."""
        if self._target is not None and self._best >= self._target:
            return StopReason.TARGET_REACHED
        if self._trials is not None and self._spent >= self._trials:
            return StopReason.TRIALS_SPENT
        if self._seconds is not None and self.elapsed_s >= self._seconds:
            return StopReason.TIME_SPENT
        if self._stall_trials is not None and self._since_progress >= self._stall_trials:
            return StopReason.STALLED
        return None
