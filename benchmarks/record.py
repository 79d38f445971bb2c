"""Result files: one JSON document a run, with chip, versions and date."""

from __future__ import annotations

import datetime
import json
import os
import platform
import re
from importlib import metadata
from pathlib import Path
from typing import Any

from .clock import Clock

RESULTS = Path(__file__).parent / "results"


def header(benchmark: str, clock: Clock) -> dict[str, Any]:
    versions = {name: _version(name) for name in ("torch", "triton", "kevolve-inductor")}
    return {
        "benchmark": benchmark,
        "date": datetime.date.today().isoformat(),
        "device": clock.device,
        "chip": clock.chip(),
        "versions": versions | {"python": platform.python_version()},
    }


def default_path(document: dict[str, Any], prefix: str = "") -> Path:
    chip = re.sub(r"[^a-z0-9]+", "-", f"{prefix} {document['device']} {document['chip']}".lower()).strip("-")
    return RESULTS / f"{chip}-{document['date']}.json"


def write(path: Path, document: dict[str, Any]) -> None:
    """In one step, so that an interrupted run leaves what it finished."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(document, indent=1, sort_keys=True) + "\n")
    os.replace(partial, path)


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None
