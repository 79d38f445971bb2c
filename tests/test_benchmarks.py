"""The benchmark's own judgement: what counts as agreement, which cases there are, what the table says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import longtail
from benchmarks.cases import CASES, Instance, Selection
from benchmarks.clock import Ceilings, Clock, Prepared

TOP2 = Selection(1, lambda scores: scores)


def top2(scores: torch.Tensor) -> Instance:
    return Instance(lambda x: tuple(torch.topk(x, 2)), (scores,), selection=TOP2)


def test_each_family_has_published_cases_and_three_variations() -> None:
    names = [case.name for case in CASES]
    assert len(set(names)) == len(names)
    for family in {case.family for case in CASES}:
        origins = [case.origin for case in CASES if case.family == family]
        assert origins.count("variation") >= 3
        assert origins.count("table") >= 1


@pytest.mark.parametrize("case", [case for case in CASES if "cpu" in case.devices], ids=lambda case: case.name)
def test_a_case_runs_in_eager_and_agrees_with_itself(case: Any) -> None:
    instance = case.make("cpu")
    outputs = instance.function(*instance.inputs)
    assert longtail.disagreement(outputs, instance.function(*instance.inputs), instance) is None


def test_equal_scores_may_be_selected_in_any_order() -> None:
    scores = torch.tensor([[3.0, 1.0, 3.0, 0.0]])
    values = torch.tensor([[3.0, 3.0]])
    first, second = torch.tensor([[0, 2]]), torch.tensor([[2, 0]])
    assert longtail.disagreement((values, first), (values, second), top2(scores)) is None


@pytest.mark.parametrize(
    ("indices", "problem"), [([[0, 0]], "selected twice"), ([[0, 1]], "1 of 2 elements"), ([[0, 4]], "out of range")]
)
def test_a_wrong_selection_is_told_apart(indices: list[list[int]], problem: str) -> None:
    scores = torch.tensor([[3.0, 1.0, 3.0, 0.0]])
    values = torch.tensor([[3.0, 3.0]])
    found = longtail.disagreement((values, torch.tensor([[0, 2]])), (values, torch.tensor(indices)), top2(scores))
    assert found is not None and problem in found


def test_integers_must_be_equal_and_nan_agrees_with_nan() -> None:
    plain = Instance(lambda x: x, (torch.zeros(2),))
    assert longtail.disagreement(torch.tensor([1, 2]), torch.tensor([1, 3]), plain) is not None
    assert longtail.disagreement(torch.tensor([1.0]), torch.tensor([1]), plain) is not None
    nan = torch.tensor([torch.nan, 1.0])
    assert longtail.disagreement(nan, nan.clone(), plain) is None
    assert longtail.disagreement(nan, torch.tensor([0.0, 1.0]), plain) is not None


def test_the_floor_is_the_larger_of_memory_and_arithmetic() -> None:
    ceilings = Ceilings(1e9, {"float32": 1e9})
    assert ceilings.floor_us(2000, 1000, torch.float32) == pytest.approx(2.0)
    assert ceilings.floor_us(1000, 3000, torch.float32) == pytest.approx(3.0)
    assert ceilings.floor_us(1000, 0, torch.bfloat16) == pytest.approx(1.0)


class StillClock(Clock):
    """Every call takes one microsecond."""

    device = "cpu"

    def prepare(self, call: Any) -> Prepared:
        return Prepared(call, call(), replayed=False)

    def time_once_us(self, prepared: Prepared) -> float:
        return 1.0

    def chip(self) -> str:
        return "none"

    def measure_ceilings(self) -> Ceilings:
        return Ceilings(1e9)


def test_a_case_that_raises_is_a_row_and_the_run_goes_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def broken(device: str) -> Instance:
        raise RuntimeError("no such operator")

    case = longtail.Case("broken", "rows", "variation", ("cpu",), broken)
    monkeypatch.setattr(longtail, "CASES", (case,))
    monkeypatch.setattr(longtail, "clock_for", lambda device: StillClock())
    out = tmp_path / "out.json"
    assert longtail.main(["--device", "cpu", "--out", str(out)]) == 1
    (row,) = json.loads(out.read_text())["cases"]
    assert row["error"] == "RuntimeError: no such operator"


def test_a_name_that_matches_nothing_is_said_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert longtail.main(["--device", "cpu", "--cases", "nothing-like-this"]) == 1
    assert "nothing-like-this" in capsys.readouterr().err
