from __future__ import annotations

import json
import os
import random
import subprocess
import sys

import pytest

from kevolve_inductor.search import Candidate, EvolutionSearcher, Tournament, Tree
from kevolve_inductor.testing.searchers import LARGE, SEARCHER_CHECKS, SMALL, ExampleSpace, run, smooth_score


@pytest.mark.parametrize("check", SEARCHER_CHECKS, ids=lambda check: check.__name__)
def test_conformance(check):
    check(EvolutionSearcher)


ASKS = """
import json
from kevolve_inductor.search import EvolutionSearcher
from kevolve_inductor.testing.searchers import LARGE, run
print(json.dumps([[c.schedule, c.parents, c.origin] for c, _ in run(EvolutionSearcher(LARGE, 42), 60)]))
"""


def test_same_asks_in_processes_with_other_hash_seeds():
    outputs = {
        subprocess.run(
            [sys.executable, "-c", ASKS],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    here = [[c.schedule, list(c.parents), c.origin] for c, _ in run(EvolutionSearcher(LARGE, 42), 60)]
    assert len(outputs) == 1
    assert json.loads(outputs.pop()) == here


def test_warm_schedules_come_first_fitted_to_the_space():
    space = ExampleSpace({"block": (64, 128, 512), "order": ("row", "column"), "vector": (True, False)})
    warm = [
        {"block": 300, "order": "diagonal", "vector": False, "gone": 3},
        {"block": 1, "order": "column"},
        {"block": True, "order": "row", "vector": 7},
    ]
    searcher = EvolutionSearcher(space, 0, warm=warm)
    asked = [candidate.schedule for candidate, _ in run(searcher, 3, lambda schedule: 1.0)]
    assert asked == [
        {"block": 512, "order": "row", "vector": False},
        {"block": 64, "order": "column", "vector": True},
        {"block": 64, "order": "row", "vector": True},
    ]


def test_what_won_for_something_else_comes_after_seeds_and_default():
    space = ExampleSpace({"block": (64, 128, 256, 512)}, seeds=({"block": 128},))
    searcher = EvolutionSearcher(space, 0, warm=[{"block": 500}], distant=[{"block": 250}, {"block": 128}])
    asked = [candidate.schedule["block"] for candidate, _ in run(searcher, 4, lambda schedule: 1.0)]
    assert asked == [512, 128, 64, 256]


def test_drafts_cover_every_value():
    drafts = [c.schedule for c, _ in run(EvolutionSearcher(LARGE, 9, drafts=16), 60) if c.origin == "draft"][:16]
    for name, values in LARGE.choices.items():
        assert sorted(schedule[name] for schedule in drafts) == sorted(values * 2)


def test_flags_and_numbers_are_different_values():
    searcher = EvolutionSearcher(ExampleSpace({"unroll": (1, True, 0, False)}), 0)
    asked = [candidate.schedule["unroll"] for candidate, _ in run(searcher, 10, lambda schedule: 1.0)]
    assert sorted(map(repr, asked)) == ["0", "1", "False", "True"]


@pytest.mark.parametrize(
    ("choices", "seeds"),
    [
        ({"block": (64,)}, [{"blocks": 64}]),
        ({"block": (64,)}, [{"block": 65}]),
        ({"block": ()}, []),
        ({"block": (64, 64)}, []),
    ],
)
def test_refuses_spaces_that_make_no_sense(choices, seeds):
    with pytest.raises(ValueError, match="block"):
        EvolutionSearcher(ExampleSpace(choices, seeds), 0)


def test_tree_knows_children_and_ranks_successes():
    searcher = EvolutionSearcher(LARGE, 1)
    history = run(searcher, 60)
    tree = searcher.tree
    assert len(tree) == 60
    for candidate, score in history:
        node = tree.node(candidate.id)
        assert (node.candidate, node.score) == (candidate, score)
        assert all(candidate.id in tree.node(parent).children for parent in candidate.parents)
    ranked = [node.fitness for node in tree.ranked()]
    assert ranked == sorted((score for _, score in history if score > 0), reverse=True)


def test_tree_wants_ids_in_order():
    with pytest.raises(ValueError, match="1 where 0"):
        Tree().add(Candidate(1, (), {}, "clean", "draft"))


def test_another_selection_policy_can_be_given():
    class LatestSuccess:
        def select(self, tree, count, rng):
            return tuple([node for node in tree if node.fitness > 0][-count:])

    history = run(EvolutionSearcher(LARGE, 1, drafts=2, selection=LatestSuccess()), 40)
    children = [candidate for candidate, _ in history if candidate.origin == "mutation"]
    succeeded = [candidate.id for candidate, score in history if score > 0]
    assert children
    assert all(max(i for i in succeeded if i < child.id) in child.parents for child in children)


def test_tournament_of_one_is_the_whole_population_and_of_many_the_best():
    searcher = EvolutionSearcher(LARGE, 1)
    run(searcher, 40)
    rng = random.Random(0)
    best = searcher.tree.ranked()[0]
    assert {Tournament(size=200, population=8).select(searcher.tree, 1, rng)[0].candidate.id for _ in range(5)} == {
        best.candidate.id
    }
    pair = Tournament().select(searcher.tree, 2, rng)
    assert pair[0] is not pair[1]
    assert Tournament().select(Tree(), 2, rng) == ()


@pytest.mark.parametrize("values", [{"memory": "all"}, {"origin": "luck"}, {"parents": (3,)}])
def test_candidate_checks_its_fields(values):
    with pytest.raises(ValueError):
        Candidate(**{"id": 3, "parents": (), "schedule": {}, "memory": "clean", "origin": "draft", **values})


def test_search_imports_neither_torch_nor_triton_nor_a_clock():
    code = (
        "import sys; before = set(sys.modules); import kevolve_inductor.search as s; "
        "names = {n.split('.')[0] for n in set(sys.modules) - before}; "
        "assert not names & {'torch', 'triton', 'numpy'}, names; "
        "import inspect, pkgutil, importlib; "
        "texts = [inspect.getsource(importlib.import_module(s.__name__ + '.' + m.name)) "
        "for m in pkgutil.iter_modules(s.__path__)]; "
        "assert texts and not any('import time' in t or 'datetime' in t for t in texts)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_smooth_score_has_failures_and_a_peak():
    assert smooth_score({"a": 1, "b": 1}) == 0.0
    assert smooth_score({"a": 32, "b": 32}) == 4.0
    assert len(SMALL.choices) == 3
