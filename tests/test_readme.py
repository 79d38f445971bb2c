"""README.md says what the stored measurements say."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from benchmarks import quick_full
from benchmarks.summary import summary

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def readme() -> ModuleType:
    spec = importlib.util.spec_from_file_location("readme", ROOT / "tools" / "readme.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_generated_parts_are_up_to_date(readme: ModuleType) -> None:
    text = (ROOT / "README.md").read_text()
    assert readme.generate(text, ROOT / "benchmarks" / "results") == text, "run python tools/readme.py"


def empty(readme: ModuleType) -> str:
    """A text with nothing but the generated parts."""
    return "\n".join(readme.BEGIN.format(name=name) + "\nold\n" + readme.END.format(name=name) for name in readme.PARTS)


def test_a_new_measurement_replaces_the_older_one_of_its_chip(readme: ModuleType, tmp_path: Path) -> None:
    for date, time_us in (("2026-01-02", 30_000.0), ("2026-01-01", 40_000.0)):
        times = {"eager": 90_000.0, "inductor": 60_000.0, "kevolve": time_us}
        document = {"benchmark": "quickstart", "chip": "X", "device": "cpu", "date": date, "rows": 8, "times_us": times}
        (tmp_path / f"{date}.json").write_text(json.dumps(document))
    text = readme.generate(empty(readme), tmp_path)
    assert "| X, 8 rows, 2026-01-02 | 90.0 | 60.0 | 30.0 | 2.00× |" in text
    assert "2026-01-01" not in text and "old" not in text


def row(name: str, family: str, **more: Any) -> dict[str, Any]:
    times = {"eager": 300.0, "inductor": 200.0, "kevolve": 100.0}
    return {
        "name": name, "family": family, "origin": "random", "error": None, "disagreements": {}, "times_us": times,
        "floor_us": 50.0, "speedup": 2.0, "swapped": 1, "trials": 5, "compile_s": 9.0, "verdicts": ["x: swapped"], "wrong": [],
    } | more  # fmt: skip


def head(benchmark: str) -> dict[str, Any]:
    return {"benchmark": benchmark, "chip": "X", "device": "cpu", "date": "2026-01-01", "budget_s": 4.0}


def test_drawn_shapes_are_counted_by_family(readme: ModuleType, tmp_path: Path) -> None:
    rows = [
        row("rows-0", "rows"),
        row("rows-1", "rows", speedup=0.5, wrong=["tile 3: wrong"]),
        row("bags-0", "bags", speedup=0.5, swapped=0, disagreements={"kevolve": "3 of 5 elements differ"}),
    ]
    (tmp_path / "a.json").write_text(json.dumps(head("random") | summary(rows) | {"cases": rows}))
    text = readme.generate(empty(readme), tmp_path)
    assert "| rows | 2 | 2 | 1.00× | 1.00× | 1 | 0 | 1 of 10 |" in text
    assert "| bags | 1 | 0 | 0.50× | – | 0 | 1 | 0 of 5 |" in text
    assert "| **all** | 3 | 2 |" in text


def test_published_cases_and_their_variations_have_geomeans_of_their_own(readme: ModuleType) -> None:
    rows = [row("a", "rows", origin="table"), row("b", "rows", origin="variation", speedup=0.5)]
    text = readme.geomeans(summary(rows))
    assert "speedups: 1.00×;" in text and "came with the design 2.00×," in text and "in italics, 0.50×" in text
    assert readme.geomeans(summary(rows[:1])) == "Geometric mean of the speedups: 2.00×."


def test_a_curve_says_which_side_was_taken(readme: ModuleType, tmp_path: Path) -> None:
    rows = [row("features-8", "chains"), row("features-256", "chains", swapped=0, speedup=1.0)]
    (tmp_path / "a.json").write_text(json.dumps(head("curve") | {"cases": rows}))
    text = readme.generate(empty(readme), tmp_path)
    assert "| 8 | 50 | 200 | – | 100 | 2.00× | kernel |" in text
    assert "| 256 | 50 | 200 | – | 100 | 1.00× | Inductor |" in text


def test_quick_against_full_says_what_was_reached(readme: ModuleType, tmp_path: Path) -> None:
    compiles = {
        name: {"compile_s": seconds, "searched": 0} for name, seconds in (("quick", 30), ("warm", 2), ("full", 90))
    }
    rows = [
        {"name": name, "error": None, "problems": {}, "speedups": {"quick": 1.8, "full": 2.0}, "reached": reached}
        | compiles
        for name, reached in (("a", 0.8), ("b", 0.9), ("c", 1.0))
    ]
    document = head("quick-full") | {"quick_s": 20.0, "full_s": 120.0} | quick_full.summary(rows) | {"cases": rows}
    (tmp_path / "a.json").write_text(json.dumps(document))
    text = readme.generate(empty(readme), tmp_path)
    assert "| a | 1.80× | 2.00× | 80% | 30 | 90 | 2 |" in text
    assert "reaches 90% of a full one" in text and "which searched 0 regions" in text


def test_a_readme_without_markers_is_refused(readme: ModuleType) -> None:
    with pytest.raises(ValueError, match="longtail"):
        readme.replace_part("no markers here", "longtail", "")
