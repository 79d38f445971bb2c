"""README.md says what the stored measurements say."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

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


def test_a_new_measurement_replaces_the_older_one_of_its_chip(readme: ModuleType, tmp_path: Path) -> None:
    for date, time_us in (("2026-01-02", 30_000.0), ("2026-01-01", 40_000.0)):
        times = {"eager": 90_000.0, "inductor": 60_000.0, "kevolve": time_us}
        document = {"benchmark": "quickstart", "chip": "X", "device": "cpu", "date": date, "rows": 8, "times_us": times}
        (tmp_path / f"{date}.json").write_text(json.dumps(document))
    names = ("longtail", "quickstart", "compile")
    parts = [readme.BEGIN.format(name=name) + "\nold\n" + readme.END.format(name=name) for name in names]
    text = readme.generate("\n".join(parts), tmp_path)
    assert "| X, 8 rows, 2026-01-02 | 90.0 | 60.0 | 30.0 | 2.00× |" in text
    assert "2026-01-01" not in text and "old" not in text


def test_a_readme_without_markers_is_refused(readme: ModuleType) -> None:
    with pytest.raises(ValueError, match="longtail"):
        readme.replace_part("no markers here", "longtail", "")
