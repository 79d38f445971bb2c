"""From interleaved samples to a latency, a speedup and how sure it is. Holds no clock: samples come from an executor."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from math import comb
from statistics import median

from ..platforms.executor import Call, Executor

_FIRST_ROUNDS = 6
_MORE_ROUNDS = 6
_MOST_ROUNDS = 42
_BUDGET_S = 2.0
# The one-sided risk of a 95 % interval's lower end.
_RISK = 0.025
# A candidate whose speedup is surely below this is not worth another round.
_HOPELESS = 0.8
# Wide enough apart to rank two schedules: the interval's lower end within this share of the median.
_PRECISE = 0.03
_CLOSE_BASELINE = 1.3


@dataclass(frozen=True)
class Timing:
    """Microseconds per call (medians); ``speedup_low`` is against the baseline with the lowest one, as is ``speedup``."""

    latency_us: float
    baselines_us: dict[str, float]
    speedup: float
    speedup_low: float
    rounds: int


def lower_bound(values: Sequence[float]) -> float:
    """Lower end of the 95 % confidence interval of the median, from order statistics; no distribution is assumed.

    With fewer than six values no order statistic reaches that confidence, and the least one is returned.
    """
    ordered = sorted(values)
    return ordered[_rank(len(ordered))]


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


def compare(
    executor: Executor, candidate: Call, baselines: Mapping[str, Call], known_us: Mapping[str, float],
    cold: bool = True, clock: Callable[[], float] = time.monotonic,
) -> Timing:  # fmt: skip
    """Time ``candidate`` against those ``baselines`` that are close to the fastest, in turn.

    ``known_us`` are the baselines' times from when the session was opened: what was far from the fastest then is not
    measured again. Stops when the speedup is known well enough or is surely too low.
    """
    fastest = min(known_us.values())
    names = [name for name in baselines if known_us[name] <= _CLOSE_BASELINE * fastest]
    calls = [candidate, *(baselines[name] for name in names)]
    samples: list[list[float]] = [[] for _ in calls]
    deadline = clock() + _BUDGET_S
    rounds = _FIRST_ROUNDS
    while True:
        for row, more in zip(samples, executor.measure(calls, rounds, cold), strict=True):
            row.extend(more)
        timing = _summary(names, samples, known_us)
        if _decided(timing) or timing.rounds >= _MOST_ROUNDS or clock() > deadline:
            return timing
        rounds = _MORE_ROUNDS


def _summary(names: Sequence[str], samples: Sequence[Sequence[float]], known_us: Mapping[str, float]) -> Timing:
    latencies = samples[0]
    measured = {name: median(row) for name, row in zip(names, samples[1:], strict=True)}
    best = min(measured, key=lambda name: measured[name])
    ratios = [base / own for base, own in zip(samples[1 + names.index(best)], latencies, strict=True)]
    baselines_us = {name: measured.get(name, known_us[name]) for name in known_us}
    return Timing(median(latencies), baselines_us, median(ratios), lower_bound(ratios), len(latencies))


def _decided(timing: Timing) -> bool:
    if timing.speedup < _HOPELESS:
        return True
    return timing.speedup_low >= (1.0 - _PRECISE) * timing.speedup


def medians_us(executor: Executor, calls: Mapping[str, Call], rounds: int, cold: bool) -> dict[str, float]:
    rows = executor.measure(list(calls.values()), rounds, cold)
    return {name: median(row) for name, row in zip(calls, rows, strict=True)}
