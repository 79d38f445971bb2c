"""Eager, Inductor, Inductor max-autotune and kevolve side by side on every case, in one process and one session.

    python -m benchmarks.longtail [--device cpu|cuda] [--cases NAME ...] [--budget-s 60] [--quick]
    python -m benchmarks.longtail --random 60 [--budget-s 4] [--skip EARLIER]    shapes drawn at random instead
    python -m benchmarks.longtail --curve                       one feature interaction over the number of features

Each callable is checked against eager, then all are timed interleaved with a cold cache; on a GPU each is replayed
from a CUDA graph. Writes one JSON file and prints a short table last. ``--shard I/N`` runs one part of N, on equal devices
side by side; ``python -m benchmarks.merge`` joins them. Several processes on one machine: ``python -m benchmarks.lanes``.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch._inductor.utils import fresh_cache

from . import record
from .cases import CASES, Case, curve
from .clock import Ceilings, Clock, clock_for
from .contenders import QUICK_ROUNDS, ROUNDS, Limits, Session, run_case
from .shapes import drawn
from .shards import Shard
from .summary import in_words, summary

LABELS = {"eager": "eager", "inductor": "Inductor", "max_autotune": "autotune", "kevolve": "kevolve"}


def main(argv: list[str] | None = None) -> int:
    """Exit code 0 where every case ran and agreed with eager, else 1."""
    arguments = _parser().parse_args(argv)
    device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    chosen = arguments.shard.of(_but(arguments.skip, select(arguments.cases, device, _known(arguments))))
    chosen.sort(key=lambda case: case.name not in arguments.first)
    chosen = [case for case in chosen if case.name not in arguments.leave]
    if not chosen:
        print(f"no case for {device} matches {' '.join(arguments.cases)}", file=sys.stderr)
        return 1
    autotune = (
        arguments.max_autotune if arguments.max_autotune is not None else device == "cuda" and not arguments.random
    )
    clock = clock_for(device)
    rows: list[dict[str, Any]] = []
    with torch.no_grad(), fresh_cache(), _store(arguments.store) as store:
        limits = Limits(arguments.budget_s, *(QUICK_ROUNDS if arguments.quick else ROUNDS))
        session = Session(clock, clock.measure_ceilings(), limits, arguments.search, store, autotune)
        for row in _rows(_unclaimed(arguments.claims, chosen), session, arguments.limit_s):
            rows.append(row)
            planned = len(chosen) if arguments.claims is None else len(rows)
            document = describe(clock, session.ceilings, arguments, rows, planned)
            record.write(arguments.out or record.default_path(document, _prefix(arguments)), document)
    if not rows:
        print("other processes have taken every case", file=sys.stderr)
        return 0
    print(json.dumps(document, indent=1) if arguments.json else format_table(document))
    return int(any(row["error"] or any(row["disagreements"].values()) for row in rows))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="longtail", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda where there is one")
    parser.add_argument(
        "--cases", nargs="*", default=[], help="only cases of these names, or whose name or family contains one"
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--random", type=int, metavar="COUNT", help="COUNT cases of each family, drawn, instead")
    which.add_argument("--curve", action="store_true", help="X (X^T Y) over the number of features instead")
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn")
    parser.add_argument(
        "--skip", type=Path, nargs="*", default=[], metavar="EARLIER", help="no case that stands in these results"
    )
    parser.add_argument("--first", nargs="*", default=[], metavar="NAME", help="begin with these of the cases")
    parser.add_argument("--leave", nargs="*", default=[], metavar="NAME", help="all cases but these")
    parser.add_argument("--claims", type=Path, metavar="FOLDER", help="no case that another process claims there")
    parser.add_argument("--shard", type=Shard.parse, default=Shard(), metavar="I/N", help="one part of the cases")
    parser.add_argument("--budget-s", type=float, default=60.0, help="seconds of search for each case (default 60)")
    parser.add_argument("--limit-s", type=float, help="begin no case after so many seconds")
    parser.add_argument("--search", choices=("lookup", "quick", "full"), default="quick")
    parser.add_argument("--store", help="keep kernels here (default: a folder that is deleted, so every case searches)")
    parser.add_argument(
        "--max-autotune", action=argparse.BooleanOptionalAction,
        help="time Inductor's max-autotune as well (default: on a GPU, but for drawn cases)",
    )  # fmt: skip
    parser.add_argument("--quick", action="store_true", help="fewer timing rounds")
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/<chip>-<date>.json")
    parser.add_argument("--json", action="store_true", help="print the JSON in place of the table")
    return parser


def _known(arguments: argparse.Namespace) -> Iterable[Case]:
    if arguments.random:
        return drawn(arguments.random, arguments.seed)
    return curve() if arguments.curve else CASES


def _prefix(arguments: argparse.Namespace) -> str:
    return "random" if arguments.random else "curve" if arguments.curve else ""


def select(wanted: list[str], device: str, known: Iterable[Case] = CASES) -> list[Case]:
    """The cases named in full, and those whose name or family contains what is no case's name. Nothing wanted: all."""
    cases = [case for case in known if device in case.devices]
    names = {case.name for case in cases}
    parts = [text for text in wanted if text not in names]
    chosen = set(wanted) & names
    return [case for case in cases if not wanted or case.name in chosen or _contains(case, parts)]


def _contains(case: Case, parts: Iterable[str]) -> bool:
    return any(part in case.name or part in case.family for part in parts)


def _but(earlier: Iterable[Path], cases: Sequence[Case]) -> list[Case]:
    done = {row["name"] for path in earlier for row in json.loads(path.read_text())["cases"]}
    return [case for case in cases if case.name not in done]


def _unclaimed(folder: Path | None, cases: Iterable[Case]) -> Iterator[Case]:
    """The cases that no other process has taken, each claimed when it is asked for."""
    for case in cases:
        if folder is None or _claim(folder / case.name):
            yield case


def _claim(path: Path) -> bool:
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        path.touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


@contextmanager
def _store(path: str | None) -> Iterator[str]:
    if path:
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="kevolve-bench-") as folder:
        yield folder


def _rows(cases: Iterable[Case], session: Session, limit_s: float | None) -> Iterator[dict[str, Any]]:
    """Stops early at the limit, and where a case has left the device unusable for this process."""
    started = time.perf_counter()
    left = iter(cases)
    for number in count(1):
        if number > 1 and limit_s is not None and time.perf_counter() - started > limit_s:
            print(f"stopped after {number - 1} cases", file=sys.stderr)
            return
        case = next(left, None)
        if case is None:
            return
        print(f"[{number}] {case.name}", file=sys.stderr, flush=True)
        row = run_case(case, session)
        session.clock.release_unused()
        yield row
        if row["error"] and not session.clock.usable():
            print(f"the device is lost after {case.name}: {row['error']}", file=sys.stderr)
            return


def describe(
    clock: Clock, ceilings: Ceilings, arguments: argparse.Namespace, rows: list[dict[str, Any]], planned: int
) -> dict[str, Any]:
    return record.header(_prefix(arguments) or "longtail", clock) | {
        "ceilings": {"bytes_per_s": ceilings.bytes_per_s, "flops_per_s": ceilings.flops_per_s},
        "search": arguments.search,
        "budget_s": arguments.budget_s,
        "quick": arguments.quick,
        "seed": arguments.seed,
        "planned": planned,
        **summary(rows),
        "cases": rows,
    }


def format_table(document: dict[str, Any]) -> str:
    names = [name for name in LABELS if any(name in row["times_us"] for row in document["cases"])]
    lines = [f"{document['chip']}, torch {document['versions']['torch']}, {document['date']}; milliseconds, medians"]
    header = f"{'case':<24}{'floor':>9}" + "".join(f"{LABELS[name]:>10}" for name in names)
    lines.append(header + f"{'speedup':>9}{'share':>7}{'search s':>10}{'trials':>8}")
    for row in document["cases"]:
        lines.append(_table_line(row, names))
    return "\n".join([*lines, *in_words(document["summary"])])


def _table_line(row: dict[str, Any], names: list[str]) -> str:
    if row["error"]:
        return f"{row['name']:<24}error: {row['error'].splitlines()[0][:90]}"
    times = "".join(f"{row['times_us'].get(name, math.nan) / 1e3:>10.3f}" for name in names)
    line = f"{row['name']:<24}{row['floor_us'] / 1e3:>9.3f}{times}{row['speedup']:>8.2f}x{row['ceiling_share']:>7.0%}"
    line += f"{row['search_s']:>10.1f}{row['trials']:>8d}"
    own, inductors = (row.get("peak_bytes", {}).get(name) for name in ("kevolve", "inductor"))
    if own and inductors and own > inductors:
        line += f"  peak memory {own / inductors:.2f} of Inductor's"
    wrong = [f"{name} disagrees ({problem})" for name, problem in row["disagreements"].items() if problem]
    return "  ".join([line, *wrong])


if __name__ == "__main__":
    sys.exit(main())
