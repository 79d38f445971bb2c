"""What became of a search's trials, counted and explained."""

from __future__ import annotations

from collections.abc import Iterable

from ..cache.entry import TrialRow
from ..evaluate.evaluation import from_json
from ..evaluate.explain import explain

_WIDTH = 300


def outcomes(trials: Iterable[TrialRow]) -> list[str]:
    """One line per status, the most frequent first: how many trials, and for failures what one of them says."""
    by_status: dict[str, list[TrialRow]] = {}
    for trial in trials:
        by_status.setdefault(trial.status, []).append(trial)
    ordered = sorted(by_status.items(), key=lambda item: (-len(item[1]), item[0]))
    return [f"{len(rows):4} {status}{_example(status, rows)}" for status, rows in ordered]


def _example(status: str, rows: list[TrialRow]) -> str:
    recorded = next((row.evaluation for row in rows if row.evaluation is not None), None)
    if status == "passed" or recorded is None:
        return ""
    text = " ".join(explain(from_json(recorded)).split())
    return f", e.g. {text if len(text) <= _WIDTH else text[:_WIDTH] + '…'}"
