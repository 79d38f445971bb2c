"""From interleaved samples to a latency, a speedup and how sure it is. Holds no clock: samples come from an executor."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import cycle
from math import comb
from statistics import median

from ..platforms.executor import Call, Executor

# Baselines before the first candidate: so many rounds, and more where that took less than a second. They are sampled again
# with every candidate.
_BASELINE_ROUNDS, _MORE_BASELINE_ROUNDS, _BASELINE_BUDGET_S = 3, 4, 1.0
_FIRST_ROUNDS = 6
_MORE_ROUNDS = 6
_MOST_ROUNDS = 42
_MOST_SURE_ROUNDS = 400
_BUDGET_S = 2.0
_RACE_BUDGET_S = 4.0
_RACE_STEP = 4
_RACE_LEAST_ROUNDS = 8
_RACE_MOST_ROUNDS = 200
# The one-sided risk of a 95 % interval's lower end.
_RISK = 0.025
# A candidate whose speedup seems to be below this is not worth another round, unless it is to be decided.
_HOPELESS = 0.8
# Wide enough apart to rank two schedules: the interval's lower end within this share of the median.
_PRECISE = 0.03
# An interval wider than this that still holds the threshold says more of the machine than of the kernel.
_TOO_WIDE = 0.1
_CLOSE_BASELINE = 1.3
_DISTURBED = 1.5


@dataclass(frozen=True)
class Timing:
    """Microseconds per call (medians); speedups are against the baseline with the lowest one, ``speedup_low`` and
    ``speedup_high`` the ends of the 95 % confidence interval.
    """

    latency_us: float
    baselines_us: dict[str, float]
    speedup: float
    speedup_low: float
    speedup_high: float
    rounds: int

    def too_noisy_for(self, threshold: float) -> bool:
        """Whether the samples scatter so much that it stays open on which side of ``threshold`` the speedup lies."""
        open_still = self.speedup_low < threshold <= self.speedup_high
        return open_still and self.speedup_high - self.speedup_low > _TOO_WIDE


class Rotation:
    """The same computation on different inputs, one after another: what a call remembers of the last one is wrong."""

    def __init__(self, calls: Sequence[Call]) -> None:
        self._calls = cycle(calls)

    def __call__(self) -> object:
        return next(self._calls)()


def lower_bound(values: Sequence[float]) -> float:
    """Lower end of the 95 % confidence interval of the median, from order statistics; no distribution is assumed.

    With fewer than six values no order statistic reaches that confidence, and the least one is returned.
    """
    ordered = sorted(values)
    return ordered[_rank(len(ordered))]


def upper_bound(values: Sequence[float]) -> float:
    """Upper end of the same interval."""
    return -lower_bound([-value for value in values])


@cache
def _rank(count: int) -> int:
    """Greatest ``k`` such that ``k`` or fewer of ``count`` values lie below their median with probability <= 2.5 %."""
    cumulative, rank = 0.0, 0
    for below in range(count):
        cumulative += comb(count, below) / 2**count
        if cumulative > _RISK:
            break
        rank = below
    return rank


class Contest:
    """Candidates against the baselines of one region. What is learnt of the baselines serves the next candidate."""

    def __init__(
        self, executor: Executor, baselines: Mapping[str, Call], cold: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self._executor, self._baselines, self._cold, self._clock = executor, baselines, cold, clock
        self.known_us = self._first_look()

    def _first_look(self) -> dict[str, float]:
        calls = list(self._baselines.values())
        start = self._clock()
        rows = self._executor.measure(calls, _BASELINE_ROUNDS, self._cold)
        if self._clock() - start < _BASELINE_BUDGET_S:
            more = self._executor.measure(calls, _MORE_BASELINE_ROUNDS, self._cold)
            rows = [[*row, *others] for row, others in zip(rows, more, strict=True)]
        return {name: median(row) for name, row in zip(self._baselines, rows, strict=True)}

    def time(self, candidate: Call, decide_at: float | None = None) -> Timing:
        """Time ``candidate`` and the baselines close to the fastest, in turn, until the speedup is known or surely low;
        with ``decide_at``, until the whole confidence interval lies on one side of that.

        Baselines that seem far from the fastest are sampled once only, in case they seemed so because the machine was busy.
        """
        self._look_again()
        names = self._close()
        calls = [candidate, *(self._baselines[name] for name in names)]
        samples: list[list[float]] = [[] for _ in calls]
        deadline = self._clock() + _BUDGET_S
        rounds, most = _FIRST_ROUNDS, _MOST_ROUNDS if decide_at is None else _MOST_SURE_ROUNDS
        while True:
            for row, more in zip(samples, self._executor.measure(calls, rounds, self._cold), strict=True):
                row.extend(more)
            timing = self._summary(names, samples)
            if _decided(timing, decide_at) or timing.rounds >= most or self._clock() > deadline:
                break
            # Every look is another chance to be wrong, so that a decision is looked at after twice as many rounds.
            rounds = _MORE_ROUNDS if decide_at is None else min(timing.rounds, most - timing.rounds)
        for name in names:
            self.known_us[name] = min(self.known_us[name], timing.baselines_us[name])
        return timing

    def _close(self) -> list[str]:
        fastest = min(self.known_us.values())
        return [name for name, known in self.known_us.items() if known <= _CLOSE_BASELINE * fastest]

    def _look_again(self) -> None:
        far = [name for name in self._baselines if name not in self._close()]
        if far:
            rows = self._executor.measure([self._baselines[name] for name in far], 1, self._cold)
            for name, row in zip(far, rows, strict=True):
                self.known_us[name] = min(self.known_us[name], *row)

    def _summary(self, names: Sequence[str], samples: Sequence[Sequence[float]]) -> Timing:
        measured = {name: median(row) for name, row in zip(names, samples[1:], strict=True)}
        best = min(measured, key=lambda name: min(measured[name], self.known_us[name]))
        # A baseline far above what it once took was disturbed; that must not count in the candidate's favour.
        most = _DISTURBED * self.known_us[best]
        ratios = [min(base, most) / own for base, own in zip(samples[1 + names.index(best)], samples[0], strict=True)]
        baselines_us = self.known_us | {name: min(time_us, most) for name, time_us in measured.items()}
        return Timing(
            median(samples[0]), baselines_us, median(ratios), lower_bound(ratios), upper_bound(ratios), len(ratios)
        )


def _decided(timing: Timing, decide_at: float | None) -> bool:
    if decide_at is not None:
        return not timing.speedup_low < decide_at <= timing.speedup_high
    return timing.speedup < _HOPELESS or timing.speedup_low >= (1.0 - _PRECISE) * timing.speedup


def race(
    executor: Executor, calls: Mapping[str, Call], clock: Callable[[], float] = time.monotonic
) -> dict[str, float]:
    """Microseconds of several versions of the same thing, in turn, with warm caches as in use.

    The lower quartile, since whatever else the machine does only ever adds.
    """
    rows: list[list[float]] = [[] for _ in calls]
    deadline = clock() + _RACE_BUDGET_S
    while len(rows[0]) < _RACE_LEAST_ROUNDS or (clock() < deadline and len(rows[0]) < _RACE_MOST_ROUNDS):
        for row, more in zip(rows, executor.measure(list(calls.values()), _RACE_STEP, cold=False), strict=True):
            row.extend(more)
    return {name: sorted(row)[len(row) // 4] for name, row in zip(calls, rows, strict=True)}
