"""The search does what the clock says, whatever clock that is: nothing here depends on which kernel is fast."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import pytest
import torch

from kevolve_inductor.cache.store import Store
from kevolve_inductor.evaluate.evaluation import Diagnosis, Passed, Refused
from kevolve_inductor.evaluate.null import NullEvaluator
from kevolve_inductor.exc import EmissionError, UndecidedError
from kevolve_inductor.graph.discovery import discover
from kevolve_inductor.kernel import Kernel, Launch, Workspace, digest_of
from kevolve_inductor.platforms.null import NullPlatform
from kevolve_inductor.search.searcher import Candidate
from kevolve_inductor.settings import Settings
from kevolve_inductor.synthesis.families.rows import RowFamily
from kevolve_inductor.tuner import Trial, Tuner, _Search
from tests.synthesis.family_checks import find


def as_it_is(kernel, latency_us):
    return latency_us


def inverted(kernel, latency_us):
    return 1e4 / latency_us


def random_us(kernel, latency_us):
    return 20.0 + int(digest_of([kernel.digest, "another clock"])[:4], 16) % 160


def stuck(kernel, latency_us):
    return 100.0


def top_two(x):
    return torch.topk(torch.softmax(x, -1), 2)


def discovered(function, *shape):
    graph = find(RowFamily(), function, [torch.randn(shape)]).graph
    return discover(graph, [RowFamily()], {}, NullPlatform().ceilings(), "cpu").found[0]


@pytest.fixture(scope="module")
def found():
    return discovered(top_two, 60, 40)


def tuner_of(folder, distortion, seed=0):
    settings = Settings(store=folder, trials=24, seed=seed)
    return Tuner(settings, NullPlatform(), Store.open(folder), NullEvaluator(distortion=distortion))


def searched(found, folder, distortion, seed=0):
    tuner = tuner_of(folder, distortion, seed)
    entry = tuner.search(found, None)
    return entry, tuner.store.trials(entry.key)


@pytest.mark.parametrize("distortion", [as_it_is, inverted, random_us], ids=lambda clock: clock.__name__)
def test_the_kernel_taken_is_the_fastest_tried_by_the_clock_at_hand(found, tmp_path, distortion):
    entry, trials = searched(found, tmp_path, distortion)
    assert len(trials) == 24
    best = max(trials, key=lambda row: row.score)
    assert entry.verdict == "kernel" and entry.kernel == best.kernel and entry.schedule == best.schedule
    assert entry.evaluation["speedup"] == best.score > 1.02


def test_clocks_that_disagree_choose_different_kernels(found, tmp_path):
    chosen = [
        searched(found, tmp_path / clock.__name__, clock)[0].kernel for clock in (as_it_is, inverted, random_us)
    ]  # fmt: skip
    assert len(set(chosen)) == 3


def test_a_clock_that_stands_still_chooses_nothing(found, tmp_path):
    entry, trials = searched(found, tmp_path, stuck)
    assert entry.verdict == "baseline" and entry.kernel is None
    assert {row.score for row in trials} == {1.0}


def test_the_same_seed_asks_the_same_and_another_one_does_not(found, tmp_path):
    def schedules(name, seed):
        return [row.schedule for row in searched(found, tmp_path / name, random_us, seed)[1]]

    assert schedules("one", 3) == schedules("two", 3) != schedules("three", 4)


def test_only_what_won_for_the_same_operators_comes_before_the_seeds_the_nearest_sizes_first(found, tmp_path):
    others = {
        "near": discovered(top_two, 64, 48),
        "far": discovered(top_two, 512, 400),
        "farther": discovered(top_two, 4096, 800),
        "another": discovered(lambda x: torch.sort(x, -1), 60, 40),
    }
    won = {name: searched(other, tmp_path, random_us)[0].schedule for name, other in others.items()}
    assert all(schedule is not None for schedule in won.values()) and won["near"] != won["far"]
    near, distant = tuner_of(tmp_path, as_it_is).warm_starts(found)
    assert near == [won["near"], won["far"]]
    assert sorted(map(str, distant)) == sorted(str(won[name]) for name in ("farther", "another"))


def test_a_finalist_that_loses_when_it_is_measured_again_makes_room_for_the_next(found, tmp_path):
    class Strict(NullEvaluator):
        refused = None

        def evaluate(self, kernel, beat=0.0, surely=False, **more):
            if surely and self.refused in (None, kernel.digest):
                self.refused = kernel.digest
                return Refused("two runs", "only lucky")
            return super().evaluate(kernel, beat, surely, **more)

    tuner = Tuner(Settings(store=tmp_path, trials=24), NullPlatform(), Store.open(tmp_path), Strict())
    entry = tuner.search(found, None)
    refused = tuner.evaluator.refused
    rows = tuner.store.trials(entry.key)
    assert any(row.kernel == refused and row.status == "refused" for row in rows)
    assert entry.kernel == max((row for row in rows if row.kernel != refused), key=lambda row: row.score).kernel


def test_a_kernel_that_is_still_being_built_holds_up_none_that_is_ready(found, tmp_path):
    class Building(NullEvaluator):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.evaluated = None, []

        def is_built(self, kernel: Kernel) -> bool:
            self.first = self.first or kernel
            return kernel != self.first or len(self.evaluated) >= 4

        def evaluate(self, kernel, beat=0.0, surely=False, outside=False):
            self.evaluated.append(kernel)
            return super().evaluate(kernel, beat, surely, outside)

    evaluator = Building()
    Tuner(Settings(store=tmp_path, trials=6), NullPlatform(), Store.open(tmp_path), evaluator).search(found, None)
    assert evaluator.evaluated.index(evaluator.first) == 4


def test_finalists_that_turn_out_wrong_do_not_use_up_the_finals(found, tmp_path):
    class Strict(NullEvaluator):
        refused: ClassVar[list[str]] = []

        def evaluate(self, kernel, beat=0.0, surely=False, **more):
            if surely and len(self.refused) < 5:
                self.refused.append(kernel.digest)
                return Refused("two runs", "only lucky")
            return super().evaluate(kernel, beat, surely, **more)

    tuner = Tuner(Settings(store=tmp_path, trials=24), NullPlatform(), Store.open(tmp_path), Strict())
    entry = tuner.search(found, None)
    assert len(set(Strict.refused)) == 5 and entry.verdict == "kernel" and entry.kernel not in Strict.refused


def test_what_cannot_be_decided_is_not_remembered_but_its_trials_are(found, tmp_path):
    class Noisy(NullEvaluator):
        def evaluate(self, kernel, beat=0.0, surely=False, **more):
            return Refused("noise", "0.6 to 1.9") if surely else super().evaluate(kernel, beat, surely, **more)

    store = Store.open(tmp_path)
    tuner = Tuner(Settings(store=tmp_path, trials=5), NullPlatform(), store, Noisy())
    with pytest.raises(UndecidedError, match="0.6 to 1.9"):
        tuner.search(found, None)
    assert tuner.look_up(found) is None
    assert len(store.trials(tuner.key(found).digest)) == 5
    quiet = Tuner(tuner.settings, NullPlatform(), store, NullEvaluator())
    with pytest.raises(UndecidedError):
        quiet.search(found, None)
    assert len(store.trials(tuner.key(found).digest)) == 5, "asked again at once"
    quiet.settings = replace(quiet.settings, search="full")
    assert quiet.search(found, None).verdict == "kernel"


def test_a_kernel_that_is_not_fast_enough_today_counts_as_none(found, tmp_path):
    entry, _ = searched(found, tmp_path, as_it_is)
    settings = replace(Settings(store=tmp_path), min_speedup=entry.evaluation["speedup"] + 1)
    known = Tuner(settings, NullPlatform(), Store.open(tmp_path), NullEvaluator()).look_up(found)
    assert known is not None and known.verdict == "baseline" and known.kernel is None


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Slow(NullEvaluator):
    """Baselines and evaluations take their time, by ``clock``."""

    def __init__(self, clock: Clock, open_s: float, trial_s: float, distortion=None) -> None:
        super().__init__(distortion=distortion)
        self.clock, self.open_s, self.trial_s = clock, open_s, trial_s

    def open(self, region, workload, first=()):
        self.clock.now += self.open_s
        return super().open(region, workload, first)

    def evaluate(self, kernel, beat=0.0, surely=False, outside=False):
        self.clock.now += self.trial_s
        return super().evaluate(kernel, beat, surely, outside)


def always_faster(kernel, latency_us):
    return 50.0


@pytest.mark.parametrize(
    ("open_s", "trial_s", "distortion", "alone", "with_others"),
    [
        (15.0, 2.0, always_faster, 5, 5),
        (40.0, 10.0, always_faster, 3, 1),
        (40.0, 10.0, stuck, 3, 3),
        (40.0, 1.0, always_faster, 13, 7),
        (0.0, 30.0, always_faster, 3, 1),
    ],
    ids=["baselines count", "faster at once", "nothing faster", "short trials", "a trial longer than all"],
)
def test_where_others_wait_a_region_goes_beyond_its_time_only_to_find_something_faster(
    found, tmp_path, open_s, trial_s, distortion, alone, with_others
):
    for others_wait, trials in ((False, alone), (True, with_others)):
        clock = Clock()
        evaluator = Slow(clock, open_s, trial_s, distortion)
        tuner = Tuner(Settings(store=tmp_path), NullPlatform(), Store.open(tmp_path), evaluator, clock)
        assert tuner.search(found, 25.0, others_wait=others_wait).trials == trials


def test_of_kernels_that_are_alike_the_one_with_less_memory_is_a_finalist_first():
    def trial(name, score, elements):
        workspaces = (Workspace("float32", elements),) if elements else ()
        passed = Passed(1e3 / score, {"inductor": 1e3}, score, score, 0.0, Diagnosis("unknown", "", 0.0, 0.0, 0.0), 0.0)
        return Trial(
            Candidate(0, (), {}, "clean", "seed"), Kernel("cpp", name, (Launch("run", ()),), workspaces), passed
        )

    trials = [trial("small", 1.97, "s0"), trial("best", 2.0, "9 * s0"), trial("slow", 1.9, ""), trial("none", 1.98, "")]
    search = _Search({"s0": 100}, trials=[*trials, trials[1]])
    assert [one.kernel.source for one in search.finalists()] == ["none", "small", "best", "slow"]


@pytest.mark.parametrize(("seconds", "position"), [(2.5, 3), (0.0, 0), (5.0, 5)])
def test_what_promised_most_is_tried_however_long_its_build_takes(found, tmp_path, seconds, position):
    class Building(Slow):
        """Its first kernel is not built before it is waited for."""

        def open(self, region, workload, first=()):
            self.first, self.tried = first[0], []
            return super().open(region, workload, first)

        def is_built(self, kernel):
            return kernel != self.first

        def evaluate(self, kernel, beat=0.0, surely=False, outside=False):
            self.tried += [] if surely else [kernel]
            return super().evaluate(kernel, beat, surely, outside)

    clock = Clock()
    evaluator = Building(clock, 0.0, 1.0, always_faster)
    tuner = Tuner(Settings(store=tmp_path), NullPlatform(), Store.open(tmp_path), evaluator, clock)
    assert tuner.search(found, seconds).trials == max(position + 1, 3)
    assert evaluator.tried.index(evaluator.first) == position


def test_schedules_without_a_kernel_use_up_none_of_the_few_trials(found, tmp_path):
    class Reluctant(RowFamily):
        refused = 0

        def emit(self, match, schedule, language):
            self.refused += 1
            if self.refused <= 5:
                raise EmissionError("not yet")
            return super().emit(match, schedule, language)

    tuner = Tuner(Settings(store=tmp_path), NullPlatform(), Store.open(tmp_path), NullEvaluator())
    entry = tuner.search(replace(found, family=Reluctant()), 0.0)
    rows = tuner.store.trials(entry.key)
    assert len(rows) == 8 and sum(row.kernel is not None for row in rows) == 3
