from __future__ import annotations

from kevolve_inductor.cache.entry import TrialRow
from kevolve_inductor.evaluate.evaluation import BuildFailed, Mismatch, TimedOut, to_json
from kevolve_inductor.report import RegionRow, RunReport
from kevolve_inductor.report.outcomes import outcomes

WRONG = Mismatch("fp64 reference", "tail", "normal", 0, 10, 500, (490,), 1.0, "elements from 490 on, of 500", "a mask")


def row(k, evaluation, recorded=True):
    return TrialRow(k, (), {}, evaluation.status, 0.0, evaluation=to_json(evaluation) if recorded else None)


def region(title, why):
    return RegionRow(title, "rows", "reduction", 0.5, 1.0, 10.0, "eager", 5.0, 2.0, "swapped", 1.0, 8, why)


def test_outcomes_are_counted_and_one_of_each_failure_is_explained():
    trials = [row(0, TimedOut(30.0)), row(1, WRONG), row(2, WRONG), row(3, WRONG, recorded=False)]
    first, second = outcomes(trials)
    assert first.startswith("   3 mismatch, e.g. Wrong (fp64 reference)") and "Likely cause: a mask." in first
    assert second == "   1 timed out, e.g. Takes longer than 30 s: an endless loop, or work that grows too fast."


def test_a_long_message_is_one_short_line():
    (line,) = outcomes([row(0, BuildFailed("compile", "first line\n" + "x" * 1000, 7))])
    assert "\n" not in line and line.endswith("…") and len(line) < 400
    assert outcomes([row(0, WRONG, recorded=False)]) == ["   1 mismatch"]


def test_the_table_says_why_each_region_is_as_it_is():
    report = RunReport([region("row sums", "Limited by memory traffic."), region("others", None)])
    assert "row sums: Limited by memory traffic." in report.format_table().splitlines()
    assert report.to_json()["regions"][0]["why"] == "Limited by memory traffic."
