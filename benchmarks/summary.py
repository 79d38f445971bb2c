"""What many rows say together."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from .contenders import LOSS

Row = dict[str, Any]


def summary(rows: Sequence[Row]) -> dict[str, Any]:
    """``geomean_speedup``, altogether and by origin, and under ``summary`` the counts and the names of what went wrong,
    altogether and by family."""
    families = dict.fromkeys(row["family"] for row in rows)
    origins = dict.fromkeys(row["origin"] for row in rows)
    return {
        "geomean_speedup": _geomean(rows),
        "geomean_by_origin": {name: _geomean([row for row in rows if row["origin"] == name]) for name in origins},
        "summary": _counted(rows)
        | {"families": {name: _counted([row for row in rows if row["family"] == name]) for name in families}},
    }


def _counted(rows: Sequence[Row]) -> dict[str, Any]:
    swapped = [row for row in rows if row.get("swapped")]
    return {
        "cases": len(rows),
        "errors": [row["name"] for row in rows if row["error"]],
        "disagreeing": [row["name"] for row in rows if row["disagreements"].get("kevolve")],
        "found": sum(bool(row.get("verdicts")) for row in rows),
        "swapped": len(swapped),
        "losing": [row["name"] for row in swapped if row.get("speedup", 1.0) < LOSS],
        "trials": sum(row.get("trials", 0) for row in rows),
        "wrong": {row["name"]: len(row["wrong"]) for row in rows if row.get("wrong")},
        "geomean_speedup": _geomean(rows),
        "geomean_swapped": _geomean(swapped),
        "longest_s": max((row["compile_s"] for row in rows if "compile_s" in row), default=None),
    }


def in_words(counts: dict[str, Any]) -> list[str]:
    """Lines for people."""
    wrong = counts["wrong"]
    lines = [
        f"{counts['cases']} cases, {counts['found']} with regions, {counts['swapped']} swapped",
        f"geomean {_ratio(counts['geomean_speedup'])}, of those swapped {_ratio(counts['geomean_swapped'])}",
        f"wrong candidates: {sum(wrong.values())} of {counts['trials']}{_names(list(wrong))}",
        f"disagree with eager: {len(counts['disagreeing'])}{_names(counts['disagreeing'])}",
        f"swapped and under {LOSS}: {len(counts['losing'])}{_names(counts['losing'])}",
    ]
    return lines + ([f"errors: {len(counts['errors'])}{_names(counts['errors'])}"] if counts["errors"] else [])


def _names(names: Sequence[str]) -> str:
    return f" ({', '.join(names)})" if names else ""


def _ratio(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _geomean(rows: Sequence[Row]) -> float | None:
    speedups = [row["speedup"] for row in rows if "speedup" in row]
    return statistics.geometric_mean(speedups) if speedups else None
