"""What the tuner makes of what the sanitizers say of a winner."""

from __future__ import annotations

import pytest
import torch

from kevolve_inductor.cache.store import Store
from kevolve_inductor.evaluate.evaluation import Refused
from kevolve_inductor.evaluate.null import NullEvaluator
from kevolve_inductor.evaluate.sanitizers.sanitizers import Sanitized
from kevolve_inductor.evaluate.sanitizers.tool import Clean, NotRun
from kevolve_inductor.graph.discovery import discover
from kevolve_inductor.platforms.cpu import CpuPlatform
from kevolve_inductor.platforms.platform import Ceilings
from kevolve_inductor.settings import Settings
from kevolve_inductor.synthesis.families.rows import RowFamily
from kevolve_inductor.tuner import Tuner
from tests.synthesis.family_checks import find

RACE = Refused("thread sanitizer", "data race")
CLEAN = Sanitized({"thread sanitizer": Clean(("normal",), 0.5), "memcheck": NotRun("it is not installed")})


class Sanitizing(NullEvaluator):
    """Every kernel is fast; the sanitizers say one after the other of ``answers``, the last for ever."""

    def __init__(self, *answers):
        super().__init__(distortion=lambda kernel, latency_us: latency_us / 10)
        self.answers, self.asked = list(answers), []

    def sanitize(self, kernel):
        self.asked.append(kernel.digest)
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


@pytest.fixture(scope="module")
def found():
    graph = find(RowFamily(), lambda x: torch.topk(torch.softmax(x, -1), 2), [torch.randn(100, 64)]).graph
    ceilings = Ceilings(1e10, {"float32": 1e11, "float64": 5e10}, 1e-6)
    (region,) = discover(graph, (RowFamily(),), {}, ceilings, "cpu").found
    return region


def searched(found, folder, evaluator, search="full"):
    store = Store.open(folder)
    tuner = Tuner(Settings(store=folder, search=search, trials=4), CpuPlatform(), store, evaluator)
    return store, tuner.search(found, None)


def test_a_winner_in_which_a_sanitizer_finds_a_fault_is_not_kept(found, tmp_path):
    evaluator = Sanitizing(RACE, CLEAN)
    store, entry = searched(found, tmp_path, evaluator)
    assert len(evaluator.asked) == 2 and entry.kernel == evaluator.asked[1]
    assert entry.evaluation["sanitizers"] == {
        "thread sanitizer": "clean on normal (0.5 s)", "memcheck": "not run: it is not installed"
    }  # fmt: skip
    faulty = [row for row in store.trials(entry.key) if row.kernel == evaluator.asked[0]]
    assert [row.status for row in faulty] == ["refused"]


def test_where_all_finalists_have_faults_the_baseline_stays(found, tmp_path):
    _, entry = searched(found, tmp_path, Sanitizing(RACE))
    assert entry.verdict == "baseline" and entry.kernel is None


def test_a_quick_search_does_not_wait_for_sanitizers(found, tmp_path):
    evaluator = Sanitizing(RACE)
    _, entry = searched(found, tmp_path, evaluator, "quick")
    assert entry.verdict == "kernel" and evaluator.asked == []
    assert entry.evaluation["sanitizers"] == {}
