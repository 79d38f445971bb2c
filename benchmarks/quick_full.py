"""What a quick search reaches of a full one, and what either costs: ``python -m benchmarks.quick_full``.

Each case is searched twice from empty stores, quickly (20 s) and fully, and compiled once more with what the quick search
stored; then eager, Inductor and both results are timed side by side. Inductor's own caches are left out, so that every
compile is one of a new machine. With ``--unsanitized`` the full search is a quick one with the full one's time: what
winners go through after a full search takes minutes, and changes nothing about which they are.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch._inductor import config as inductor_config

from kevolve_inductor import report
from kevolve_inductor.backend import kevolve

from . import record
from .agreement import disagreement
from .cases import CASES, Case, Instance
from .clock import Ceilings, Clock, Prepared, clock_for
from .contenders import ROUNDS, bound, exactly, search_row, spending
from .longtail import select
from .shards import Shard

Row = dict[str, Any]
# Settings by the search's name.
Searches = dict[str, dict[str, Any]]

# One region each, from every family; what is at its floor already would only bring the median up.
CHOSEN = (
    "router-top8", "sort-rows", "moe-gate-top2", "softmax-long", "group-norm-silu", "running-maximum", "depthwise-plane",
    "greatest-planes", "bucketize-64", "bucketize-hash", "gather-and-sum", "factor-pooling", "feature-interaction-40",
    "personal-feed-forward", "index-add", "dot-interaction", "jagged-segment-sum",
)  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    """Exit code 0 where every case ran and agreed with eager, else 1."""
    arguments = _parser().parse_args(argv)
    device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    chosen = arguments.shard.of(_chosen(arguments.cases, device))
    clock = clock_for(device)
    ceilings = clock.measure_ceilings()
    rows: list[Row] = []
    for number, case in enumerate(chosen, 1):
        print(f"[{number}/{len(chosen)}] {case.name}", file=sys.stderr, flush=True)
        with torch.no_grad():
            rows.append(run_case(case, clock, ceilings, _settings(arguments)))
        clock.release_unused()
        document = describe(clock, arguments, rows)
        record.write(arguments.out or record.default_path(document, "quick-full"), document)
    print(json.dumps(document, indent=1) if arguments.json else format_table(document))
    return int(any(row["error"] or row["problems"] for row in rows))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="quick_full", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda where there is one")
    parser.add_argument("--cases", nargs="*", help="names or parts of them (default: one or more of each family)")
    parser.add_argument("--shard", type=Shard.parse, default=Shard(), metavar="I/N", help="one part of the cases")
    parser.add_argument("--quick-s", type=float, default=20.0, help="seconds of the quick search (default 20)")
    parser.add_argument("--full-s", type=float, default=120.0, help="seconds of the full search at most (default 120)")
    parser.add_argument("--unsanitized", action="store_true", help="leave out what follows a full search")
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/quick-full-<chip>-<date>.json")
    parser.add_argument("--json", action="store_true", help="print the JSON in place of the table")
    return parser


def _settings(arguments: argparse.Namespace) -> Searches:
    full = "quick" if arguments.unsanitized else "full"
    return {
        "quick": {"search": "quick", "budget_s": arguments.quick_s},
        "full": {"search": full, "budget_s": arguments.full_s},
    }


def _chosen(substrings: Sequence[str] | None, device: str) -> list[Case]:
    if substrings:
        return select(list(substrings), device)
    return [case for case in CASES if case.name in CHOSEN and device in case.devices]


def run_case(case: Case, clock: Clock, ceilings: Ceilings, searches: Searches) -> Row:
    """One row of the result. Whatever a case raises becomes its ``error``, so that the run goes on."""
    row: Row = {"name": case.name, "family": case.family, "error": None, "problems": {}, "seconds": {}}
    torch.manual_seed(0)
    try:
        instance = case.make(clock.device)
        with inductor_config.patch(force_disable_caches=True):
            prepared = _searched(row, instance, clock, searches)
        others = {"eager": instance.function, "inductor": torch.compile(instance.function, dynamic=False)}
        prepared |= {name: clock.prepare(bound(function, instance)) for name, function in others.items()}
        for name in ("quick", "full"):
            problem = disagreement(prepared["eager"].outputs, prepared[name].outputs, instance, exactly(instance))
            row["problems"] |= {name: problem} if problem else {}
        _measure(row, prepared, instance, clock, ceilings)
    except Exception as error:  # noqa: BLE001 - one broken case must not lose the results of the others
        row["error"] = f"{type(error).__name__}: {error}"[:2000]
    return row


def _searched(row: Row, instance: Instance, clock: Clock, searches: Searches) -> dict[str, Prepared]:
    """The results of both searches, ready to be timed. The quick one's is the second compile's, which finds it stored."""
    prepared: dict[str, Prepared] = {}
    with tempfile.TemporaryDirectory(prefix="kevolve-bench-") as store:
        for name in ("quick", "warm"):
            prepared["quick"] = _compiled(row, name, instance, clock, searches["quick"] | {"store": store})
    with tempfile.TemporaryDirectory(prefix="kevolve-bench-") as store:
        prepared["full"] = _compiled(row, "full", instance, clock, searches["full"] | {"store": store})
    return prepared


def _compiled(row: Row, name: str, instance: Instance, clock: Clock, settings: dict[str, Any]) -> Prepared:
    torch._dynamo.reset()
    report.reset()
    options = {f"kevolve.{setting}": value for setting, value in settings.items()}
    function: Callable[..., Any] = torch.compile(instance.function, backend=kevolve, dynamic=False, options=options)
    with spending(row, name):
        prepared = clock.prepare(bound(function, instance))
    row[name] = search_row(row["seconds"][name])
    return prepared


def _measure(row: Row, prepared: dict[str, Prepared], instance: Instance, clock: Clock, ceilings: Ceilings) -> None:
    times_us = clock.medians_us(prepared, *ROUNDS)
    best_us = min(times_us["eager"], times_us["inductor"])
    row["times_us"] = times_us
    row["speedups"] = {name: best_us / times_us[name] for name in ("quick", "full")}
    row["reached"] = times_us["full"] / times_us["quick"]


def describe(clock: Clock, arguments: argparse.Namespace, rows: Sequence[Row]) -> dict[str, Any]:
    limits = {"quick_s": arguments.quick_s, "full_s": arguments.full_s, "unsanitized": arguments.unsanitized}
    return record.header("quick-full", clock) | limits | summary(rows) | {"cases": list(rows)}


def summary(rows: Sequence[Row]) -> dict[str, Any]:
    """``reached`` is the median share of the full search's speed; ``warm_searches`` counts regions searched when warm."""
    done = [row for row in rows if not row["error"]]
    if not done:
        return {"reached": None}
    return {
        "reached": statistics.median(row["reached"] for row in done),
        "geomeans": {
            name: statistics.geometric_mean(row["speedups"][name] for row in done) for name in ("quick", "full")
        },
        "longest_s": {name: max(row[name]["compile_s"] for row in done) for name in ("quick", "warm", "full")},
        "warm_searches": sum(row["warm"]["searched"] for row in done),
    }


def format_table(document: dict[str, Any]) -> str:
    lines = [
        f"{document['chip']}, {document['date']}; speedup over the faster of eager and Inductor, compile in seconds"
    ]
    lines.append(f"{'case':<24}{'quick':>8}{'full':>8}{'reached':>9}{'quick s':>9}{'warm s':>8}{'full s':>8}")
    for row in document["cases"]:
        if row["error"]:
            lines.append(f"{row['name']:<24}error: {row['error'].splitlines()[0][:90]}")
            continue
        speedups = "".join(f"{row['speedups'][name]:>7.2f}x" for name in ("quick", "full"))
        seconds = [row[name]["compile_s"] for name in ("quick", "warm", "full")]
        line = (
            f"{row['name']:<24}{speedups}{row['reached']:>9.0%}{seconds[0]:>9.1f}{seconds[1]:>8.1f}{seconds[2]:>8.1f}"
        )
        lines.append("  ".join([line, *(f"{name}: {problem}" for name, problem in row["problems"].items())]))
    if document["reached"] is not None:
        lines.append(f"quick reaches {document['reached']:.0%} of full in the median")
        lines.append(f"longest compiles: {document['longest_s']}; searched when warm: {document['warm_searches']}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
