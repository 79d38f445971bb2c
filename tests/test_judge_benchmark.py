"""The judge's own benchmark: its candidates differ, its faults come in turn, and what passes wrongly is counted."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks import judge
from kevolve_inductor.evaluate.null import NullEvaluator


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_right_candidates_and_faults_are_all_different(device: str) -> None:
    right = {kernel.digest for kernel in judge.candidates(device)}
    faults = dict(judge.faults(device))
    assert len(right) >= 150 and set(faults) == {"crashes", "hangs", "exhausts memory", "exits"}
    assert not right & {kernel.digest for kernel in faults.values()}


def test_faults_come_in_turn_and_one_that_passes_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    class Gullible(NullEvaluator):
        """Passes whatever the gate lets through."""

        def __init__(self, *_: Any, **__: Any) -> None:
            super().__init__()
            self.spent_s: dict[str, float] = {}

    monkeypatch.setattr(judge, "WorkerEvaluator", Gullible)
    result = judge.survival("cpu", 40, 1.0)
    passed = {f"{kind}: passed": 1 for kind in ("crashes", "hangs", "exhausts memory")}
    assert result["outcomes"] == {"right: passed": 36, "exits: refused": 1} | passed
    assert result["lost"] == 3
    assert result["leaked"] == {"files": 0, "processes": 0, "workers": 0}
    assert set(result["seconds_each"]) >= {"right", "hangs", "after hangs"}
