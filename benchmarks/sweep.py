"""Every schedule of a case's kernels, built and timed without the search: where does a family stand, and do its seeds lead?

    python -m benchmarks.sweep low-rank-cross perceptron [--family chains] [--limit-s 60] [--random 100] [--out FILE]
    python -m benchmarks.sweep low-rank-cross --target sm_90      compile only: registers, spills, shared memory

Seeds come first, then the default, then schedules drawn from the space until there are ``--random`` of them or the time
is up. Kernels are built in several processes. Each is compared with the region in eager (roughly: this is no judge), then
timed by replay of a CUDA graph with a cold cache, and the best are timed once more, interleaved. What faults takes its
process along; the next one goes on behind it. Prints the best of each region; ``--out`` is written as JSON, one row a
kernel, of which ``order`` tells in which place the search would try it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from .cases import CASES, Case
from .longtail import select
from .regions import instance_of, regions_of
from .shapes import drawn
from .swept import Sweep, compile_only

# So many of each family are known by their names.
_DRAWN = 100
_FAULTED, _CHILD_GRACE_S, _MOST_FAULTS = 7, 60.0, 12
_COLUMNS = ("time_us", "order", "registers", "spills", "shared_bytes", "worst")


def main(argv: list[str] | None = None) -> int:
    arguments = _parser().parse_args(argv)
    known = CASES if arguments.drawn is None else drawn(_DRAWN, arguments.drawn)
    chosen = select(arguments.cases, "cuda", known)
    if not chosen:
        print(f"no case for cuda matches {' '.join(arguments.cases)}", file=sys.stderr)
        return 1
    if arguments.rows:
        return _sweep(chosen[0], arguments)
    rows: list[dict[str, Any]] = []
    for case in chosen:
        rows += _case(case, arguments)
        print(summary(case.name, rows, arguments.best), flush=True)
        if arguments.out:
            arguments.out.parent.mkdir(parents=True, exist_ok=True)
            arguments.out.write_text("[\n" + ",\n".join(map(json.dumps, rows)) + "\n]\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="sweep", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("cases", nargs="+", help="cases whose name or family contains one of these")
    parser.add_argument("--family", help="only regions of this family")
    parser.add_argument("--limit-s", type=float, default=60.0, help="seconds for each case (default 60)")
    parser.add_argument("--random", type=int, default=100, metavar="COUNT", help="schedules drawn beside the seeds")
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn")
    parser.add_argument("--drawn", type=int, metavar="SEED", help="cases of `longtail --random --seed SEED` instead")
    parser.add_argument("--jobs", type=int, default=8, help="processes that build (default 8)")
    parser.add_argument("--best", type=int, default=8, help="how many of a region are printed (default 8)")
    parser.add_argument("--target", help="compile for this chip (sm_90) instead of running")
    parser.add_argument("--out", type=Path, help="all rows, as JSON")
    parser.add_argument("--rows", type=Path, help=argparse.SUPPRESS)
    return parser


def _case(case: Case, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """All rows of a case, from as many processes as it takes."""
    deadline = time.monotonic() + arguments.limit_s
    with tempfile.TemporaryDirectory(prefix="kevolve-sweep-") as folder:
        path = Path(folder, "rows")
        for _ in range(_MOST_FAULTS):
            left = deadline - time.monotonic()
            if left <= 0 or not _child(case, arguments, path, left):
                break
        return settled(path.read_text().splitlines() if path.exists() else [])


def _child(case: Case, arguments: argparse.Namespace, path: Path, limit_s: float) -> bool:
    """Runs a process that appends to ``path``; was it ended by a kernel's fault?"""
    options = ["--limit-s", limit_s, "--random", arguments.random, "--seed", arguments.seed]
    options += ["--jobs", arguments.jobs, "--rows", path]
    options += ["--family", arguments.family] if arguments.family else []
    options += ["--target", arguments.target] if arguments.target else []
    options += ["--drawn", arguments.drawn] if arguments.drawn is not None else []
    command = [sys.executable, "-m", "benchmarks.sweep", case.name, *map(str, options)]
    try:
        return subprocess.run(command, check=False, timeout=limit_s + _CHILD_GRACE_S).returncode not in (0, 1)
    except subprocess.TimeoutExpired:
        return True


def _sweep(case: Case, arguments: argparse.Namespace) -> int:
    """The process that does the work: appends a row before each run and another one after it."""
    torch.manual_seed(0)
    deadline = time.monotonic() + arguments.limit_s
    done = settled(arguments.rows.read_text().splitlines() if arguments.rows.exists() else [])
    regions = regions_of(instance_of(case, "cuda"), "cuda")
    regions = [found for found in regions if arguments.family in (None, found.family.name)]
    for number, found in enumerate(regions):
        known = {row["digest"] for row in done if row["region"] == found.title}
        with arguments.rows.open("a") as file:
            sweep = Sweep(case.name, found, arguments.random, arguments.seed, known, file)
            share = time.monotonic() + (deadline - time.monotonic()) / (len(regions) - number)
            if arguments.target:
                compile_only(sweep, arguments.target, arguments.jobs, share)
            elif not sweep.run(arguments.jobs, share):
                return _FAULTED
    return 0


def settled(lines: Sequence[str]) -> list[dict[str, Any]]:
    """The last row of each kernel: one that only began has taken its process along."""
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for line in lines:
        row = json.loads(line)
        key = (row["region"], row["digest"])
        rows[key] = {**rows.get(key, {}), **row}
    return list(rows.values())


def summary(case: str, rows: Sequence[dict[str, Any]], best: int) -> str:
    """The fastest kernels of each region of a case, and how the others ended."""
    lines = []
    for region in dict.fromkeys(row["region"] for row in rows if row["case"] == case):
        own = [row for row in rows if row["case"] == case and row["region"] == region]
        good = sorted((row for row in own if row["status"] == "ok"), key=lambda row: row["time_us"] or row["order"])
        ends = {status: sum(row["status"] == status for row in own) for status in {row["status"] for row in own}}
        lines.append(f"{case}: {region}: {', '.join(f'{count} {status}' for status, count in sorted(ends.items()))}")
        for row in [row for row in own if row["origin"] == "baseline"]:
            lines.append(f"  {row['digest']}: {row['time_us']:.1f} us")
        for row in good[:best]:
            figures = " ".join(f"{name} {_figure(row.get(name))}" for name in _COLUMNS)
            lines.append(f"  {figures} {row['origin']} {json.dumps(row['schedule'])}")
        for row in [row for row in own if row["status"] in ("fault", "disagrees")]:
            lines.append(f"  {row['status']} {json.dumps(row['schedule'])} {row.get('message', '')[:120]}")
    return "\n".join(lines)


def _figure(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    sys.exit(main())
