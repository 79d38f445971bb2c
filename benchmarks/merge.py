"""Joins result files of one benchmark that ran in shards on equal devices of one machine.

python -m benchmarks.merge OUT.json SHARD.json [SHARD.json ...]
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import record
from .cases import CASES

# What must be equal for rows to stand in one table.
_SAME = ("benchmark", "chip", "device", "versions", "date", "search", "quick")


def merged(shards: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One document with every case once, in the order of ``cases.CASES``. Raises ``ValueError`` on shards that do not fit."""
    first = shards[0]
    for field in _SAME:
        if any(shard[field] != first[field] for shard in shards):
            raise ValueError(f"the files differ in {field!r}")
    rows = [row | {"budget_s": shard["budget_s"]} for shard in shards for row in shard["cases"]]
    names = [row["name"] for row in rows]
    if len(set(names)) < len(names):
        raise ValueError("a case stands in two files")
    order = [case.name for case in CASES]
    rows.sort(key=lambda row: order.index(row["name"]))
    speedups = [row["speedup"] for row in rows if "speedup" in row]
    flops: dict[str, float] = {}
    for shard in shards:
        flops |= shard["ceilings"]["flops_per_s"]
    best = max(shard["ceilings"]["bytes_per_s"] for shard in shards)
    return first | {
        "cases": rows,
        "ceilings": {"bytes_per_s": best, "flops_per_s": flops},
        "geomean_speedup": statistics.geometric_mean(speedups) if speedups else None,
        "budget_s": max(shard["budget_s"] for shard in shards),
        "shards": len(shards),
    }


def main(argv: Sequence[str]) -> int:
    if len(argv) < 2:
        print(__doc__, file=sys.stderr)
        return 2
    out, *shards = map(Path, argv)
    record.write(out, merged([json.loads(path.read_text()) for path in shards]))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
