"""The conformance suite of :class:`~kevolve_inductor.search.searcher.Searcher`.

Each check takes a factory (space, seed) → searcher and raises ``AssertionError``. Run every one of ``SEARCHER_CHECKS``
over every implementation.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ..search.searcher import Candidate, Choice, Schedule, Searcher, Space

SearcherFactory = Callable[[Space, int], Searcher]


@dataclass(frozen=True)
class ExampleSpace:
    """A schedule space without a family."""

    choices: Mapping[str, tuple[Choice, ...]]
    seeds: Sequence[Schedule] = ()


SMALL = ExampleSpace({"block": (64, 128, 256), "vector": (True, False), "order": ("row", "column")})
LARGE = ExampleSpace(
    {f"choice{number}": (8, 1, 2, 4, 16, 32, 64, 128) for number in range(6)},
    seeds=({f"choice{number}": 16 for number in range(6)},),
)
ONE_POINT = ExampleSpace({"block": (64,)})
NO_CHOICE = ExampleSpace({})


def smooth_score(schedule: Schedule) -> float:
    """A made-up fitness with one peak (every value 32) that single changes climb; some schedules fail."""
    values = [int(value) for value in schedule.values()]
    if values.count(1) > len(values) // 2:
        return 0.0
    return 4.0 / (1.0 + sum(abs(math.log2(value / 32)) for value in values))


def run(
    searcher: Searcher, trials: int, score: Callable[[Schedule], float] = smooth_score
) -> list[tuple[Candidate, float]]:
    """Ask and tell, one at a time, until ``trials`` are spent or the searcher ends."""
    history: list[tuple[Candidate, float]] = []
    while len(history) < trials:
        candidate = searcher.ask()
        if candidate is None:
            break
        history.append((candidate, score(candidate.schedule)))
        searcher.tell(*history[-1])
    return history


def check_exhausts_small_spaces(factory: SearcherFactory) -> None:
    for space in (SMALL, ONE_POINT, NO_CHOICE):
        searcher = factory(space, 0)
        history = run(searcher, 1000, lambda schedule: 1.0 + len(str(schedule)) / 100)
        size = math.prod(len(values) for values in space.choices.values())
        assert len(history) == size, f"{len(history)} of {size} schedules asked"
        assert searcher.ask() is None, "asked again after the end"


def check_exhausts_although_everything_fails(factory: SearcherFactory) -> None:
    assert len(run(factory(SMALL, 0), 1000, lambda schedule: 0.0)) == 12


def check_never_repeats(factory: SearcherFactory) -> None:
    history = run(factory(LARGE, 3), 200)
    asked = {json.dumps(dict(candidate.schedule), sort_keys=True) for candidate, _ in history}
    assert len(asked) == len(history) == 200, f"{len(history) - len(asked)} schedules asked twice"


def check_stays_in_space(factory: SearcherFactory) -> None:
    for candidate, _ in run(factory(LARGE, 5), 100):
        assert candidate.schedule.keys() == LARGE.choices.keys(), f"names of {candidate.schedule}"
        for name, value in candidate.schedule.items():
            assert value in LARGE.choices[name], f"{name}={value!r} is not a choice"


def check_opens_with_seeds_and_default(factory: SearcherFactory) -> None:
    default = {name: values[0] for name, values in LARGE.choices.items()}
    opening = [candidate for candidate, _ in run(factory(LARGE, 1), 2)]
    for wanted in (*LARGE.seeds, default):
        assert any(dict(candidate.schedule) == dict(wanted) for candidate in opening), f"{wanted} was not asked first"
    assert all(candidate.origin == "seed" and candidate.parents == () for candidate in opening)


def check_deterministic(factory: SearcherFactory) -> None:
    first, second = (run(factory(LARGE, 11), 80) for _ in range(2))
    assert first == second, "same seed, same scores, but other asks"
    assert run(factory(LARGE, 12), 80) != first, "the seed has no influence"


def check_order_of_choices_is_no_influence(factory: SearcherFactory) -> None:
    turned = ExampleSpace({name: LARGE.choices[name] for name in reversed(tuple(LARGE.choices))}, LARGE.seeds)
    asks = [[dict(candidate.schedule) for candidate, _ in run(factory(space, 2), 60)] for space in (LARGE, turned)]
    assert asks[0] == asks[1], "the order of the names in a mapping changes the search"


def check_several_out_at_once(factory: SearcherFactory) -> None:
    searcher = factory(LARGE, 4)
    asked: list[Candidate] = []
    for _ in range(10):
        batch = [candidate for candidate in (searcher.ask() for _ in range(4)) if candidate is not None]
        for candidate in reversed(batch):
            searcher.tell(candidate, smooth_score(candidate.schedule))
        asked += batch
    assert sorted(candidate.id for candidate in asked) == list(range(40)), "ids do not count the asks"
    # One that was never told must not be in the way.
    searcher.ask()
    assert len(run(searcher, 20)) == 20


def check_parents_were_told_and_succeeded(factory: SearcherFactory) -> None:
    scores: dict[int, float] = {}
    children = 0
    searcher = factory(LARGE, 6)
    for _ in range(100):
        candidate = searcher.ask()
        assert candidate is not None
        assert all(scores[parent] > 0 for parent in candidate.parents), f"{candidate} has a parent that failed"
        assert bool(candidate.parents) == (candidate.origin in ("mutation", "crossover"))
        children += bool(candidate.parents)
        scores[candidate.id] = smooth_score(candidate.schedule)
        searcher.tell(candidate, scores[candidate.id])
    assert children > 0, "the search never built on what it learnt"


def check_learns(factory: SearcherFactory) -> None:
    """With feedback the search ends better than the same search that is told nothing but equal scores."""
    for seed in range(3):
        informed = max(score for _, score in run(factory(LARGE, seed), 150))
        blind = run(factory(LARGE, seed), 150, lambda schedule: 1.0)
        assert informed > max(smooth_score(candidate.schedule) for candidate, _ in blind), f"seed {seed}: no better"


def check_best(factory: SearcherFactory) -> None:
    searcher = factory(LARGE, 7)
    failed = searcher.ask()
    assert failed is not None
    searcher.tell(failed, 0.0)
    nothing: object = searcher.best
    assert nothing is None, "a failure is never the best"
    history = run(searcher, 40)
    found: object = searcher.best
    assert found in history, f"{found} was not told"
    assert found == max(history, key=lambda told: told[1]), "not the best, or not the earliest of the best"


def check_refuses_bad_tells(factory: SearcherFactory) -> None:
    searcher, stranger = factory(LARGE, 8), Candidate(0, (), {"choice0": 1}, "clean", "draft")
    _expect_value_error(lambda: searcher.tell(stranger, 1.0), "a candidate that was not asked")
    candidate = searcher.ask()
    assert candidate is not None
    for score in (-1.0, math.inf, math.nan):
        _expect_value_error(lambda score=score: searcher.tell(candidate, score), f"score {score}")  # type: ignore[misc]
    searcher.tell(candidate, 1.0)
    _expect_value_error(lambda: searcher.tell(candidate, 1.0), "a second tell")


def _expect_value_error(call: Callable[[], None], what: str) -> None:
    try:
        call()
    except ValueError:
        return
    raise AssertionError(f"{what} was accepted")


SEARCHER_CHECKS: tuple[Callable[[SearcherFactory], None], ...] = (
    check_exhausts_small_spaces,
    check_exhausts_although_everything_fails,
    check_never_repeats,
    check_stays_in_space,
    check_opens_with_seeds_and_default,
    check_deterministic,
    check_order_of_choices_is_no_influence,
    check_several_out_at_once,
    check_parents_were_told_and_succeeded,
    check_learns,
    check_best,
    check_refuses_bad_tells,
)
