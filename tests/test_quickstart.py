"""The demonstration runs to its end on a small batch, in processes of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).resolve().parent.parent / "examples" / "quickstart.py"


@pytest.mark.timeout(420)
def test_the_demonstration_searches_once_and_remembers(store: Path) -> None:
    small = ("--rows", "1024", "--identifiers", "3", "--counters", "6")
    command = [sys.executable, str(EXAMPLE), "--device", "cpu", *small, "--budget-s", "2"]
    # One thread: with another test beside it, two would wait for each other most of the time.
    environment = {**os.environ, "KEVOLVE_STRICT": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, check=False, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "verdict" in done.stdout and "whole model" in done.stdout
    assert "kevolve agrees with eager on" in done.stdout
    assert "and searched 0 regions" in done.stdout or "budget did not suffice" in done.stdout
    assert store.is_dir(), "the store that KEVOLVE_STORE names was not used"
