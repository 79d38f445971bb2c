"""Joins result files of one benchmark that ran in shards on equal devices of one machine.

python -m benchmarks.merge OUT.json SHARD.json [SHARD.json ...] [--keep EARLIER.json]

``--keep``: cases that no shard has stand with their figures, and the date, of an earlier run on the same chip.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import quick_full, record
from .cases import CASES
from .summary import summary

# What must be equal for rows to stand in one table.
_SAME = ("benchmark", "chip", "device", "versions", "date", "search", "quick", "seed", "quick_s", "full_s",
         "unsanitized")  # fmt: skip


def merged(shards: Sequence[dict[str, Any]], earlier: dict[str, Any] | None = None) -> dict[str, Any]:
    """One document with every case once, in the order of ``cases.CASES`` or of their names.

    A row of ``earlier`` has a ``date`` of its own, unless it is the same day's. Raises ``ValueError`` on files that do not fit.
    """
    first = shards[0]
    for field in _SAME:
        if any(shard.get(field) != first.get(field) for shard in shards):
            raise ValueError(f"the files differ in {field!r}")
    rows = [row | _own_budget(shard) for shard in shards for row in shard["cases"]]
    names = [row["name"] for row in rows]
    if len(set(names)) < len(names):
        raise ValueError("a case stands in two files")
    if earlier is not None:
        if any(earlier[field] != first[field] for field in ("benchmark", "chip")):
            raise ValueError("the earlier file is of another benchmark or chip")
        old = ({"date": earlier["date"]} | _own_budget(earlier) | row for row in earlier["cases"])
        rows += [_undated(row, first["date"]) for row in old if row["name"] not in names]
    rows.sort(key=lambda row: _place(row["name"]))
    if first["benchmark"] == "quick-full":
        return first | quick_full.summary(rows) | {"cases": rows, "shards": len(shards)}
    flops: dict[str, float] = {}
    for shard in shards:
        flops |= shard["ceilings"]["flops_per_s"]
    best = max(shard["ceilings"]["bytes_per_s"] for shard in shards)
    return first | {
        "cases": rows,
        "ceilings": {"bytes_per_s": best, "flops_per_s": flops},
        "budget_s": max(shard["budget_s"] for shard in shards),
        "planned": sum(shard.get("planned", len(shard["cases"])) for shard in shards),
        "shards": len(shards),
        **summary(rows),
    }


def _undated(row: dict[str, Any], date: str) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name != "date" or value != date}


def _own_budget(document: dict[str, Any]) -> dict[str, Any]:
    return {"budget_s": document["budget_s"]} if "budget_s" in document else {}


def _place(name: str) -> tuple[int, list[tuple[str, int]]]:
    known = [case.name for case in CASES]
    parts = [(word, int(digits or 0)) for word, digits in re.findall(r"(\D+)(\d*)", name)]
    return (known.index(name) if name in known else len(known), parts)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="merge", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("shards", type=Path, nargs="+")
    parser.add_argument("--keep", type=Path, metavar="EARLIER", help="rows of cases that were not measured again")
    arguments = parser.parse_args(argv)
    earlier = json.loads(arguments.keep.read_text()) if arguments.keep is not None else None
    record.write(arguments.out, merged([json.loads(path.read_text()) for path in arguments.shards], earlier))
    return 0


if __name__ == "__main__":
    sys.exit(main())
