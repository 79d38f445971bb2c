"""Schedules of a case's regions, one by one: what each takes, and what of the hardware. For whoever writes a family.

    python -m benchmarks.sweep CASE [CASE ...] [--device cpu|cuda] [--limit-s 60] [--seed 0] [--family NAME] [--out FILE]

Every region that the families find in the case (forward and backward) is opened for evaluation; then the seeds of its
schedule space, the default and random schedules are built side by side and timed beside eager and Inductor until the limit.
Nothing is swapped or remembered. A schedule that ends its process, does not build or does not fit is a row as well.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torch.fx
from torch._inductor.compile_fx import compile_fx
from torch._inductor.custom_graph_pass import CustomGraphPass

from kevolve_inductor.evaluate.client import WorkerEvaluator
from kevolve_inductor.evaluate.evaluation import Passed, to_json
from kevolve_inductor.exc import EmissionError
from kevolve_inductor.graph.capture import canonical_kernel
from kevolve_inductor.graph.discovery import Found, discover
from kevolve_inductor.graph.ranges import propagate, seen_ranges
from kevolve_inductor.kernel import Kernel
from kevolve_inductor.platforms import platform_for
from kevolve_inductor.platforms.platform import Ceilings
from kevolve_inductor.search.evolution import EvolutionSearcher
from kevolve_inductor.synthesis.families import FAMILIES

from . import record
from .cases import CASES, Case
from .clock import clock_for
from .contenders import bound

_BATCH = 16
_SHOWN = 8


class _Regions(CustomGraphPass):
    """Notes the regions of every graph that is compiled and changes nothing."""

    def __init__(self, device: str, ceilings: Ceilings) -> None:
        self._device, self._ceilings = device, ceilings
        self.seen: Sequence[Any] = ()
        self.found: list[Found] = []

    def __call__(self, graph: torch.fx.Graph) -> None:
        kept = copy.deepcopy(graph)
        self.found += discover(kept, FAMILIES, propagate(kept, self.seen), self._ceilings, self._device).found

    def uuid(self) -> None:
        """Nothing is cached: a graph that is found compiled is never seen."""


def main(argv: list[str] | None = None) -> int:
    """Exit code 0 where every region had a schedule that passed."""
    arguments = _parser().parse_args(argv)
    cases = [case for case in CASES if case.name in arguments.cases]
    unknown = set(arguments.cases) - {case.name for case in cases}
    if unknown:
        print(f"no such case: {', '.join(sorted(unknown))}; see benchmarks/cases.py", file=sys.stderr)
        return 2
    device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    document = record.header("sweep", clock_for(device)) | {"regions": []}
    for case in cases:
        for found in regions_of(case, device):
            if arguments.family in (None, found.family.name):
                rows = sweep(found, device, arguments.limit_s, arguments.seed)
                document["regions"].append({"case": case.name, "region": found.title, **rows})
                print(in_words(case.name, found, rows), flush=True)
                if arguments.out is not None:
                    record.write(arguments.out, document)
    return int(not document["regions"] or any(not _passed(region["rows"]) for region in document["regions"]))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="sweep", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("cases", nargs="+", metavar="CASE", help="names as in benchmarks/cases.py")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda where there is one")
    parser.add_argument("--family", help="only regions of this family")
    parser.add_argument("--limit-s", type=float, default=60.0, help="seconds for each region (default 60)")
    parser.add_argument("--seed", type=int, default=0, help="of the random schedules")
    parser.add_argument("--out", type=Path, help="write every row here as JSON")
    return parser


def regions_of(case: Case, device: str) -> list[Found]:
    """Each different region once, in the order in which the graphs are compiled."""
    noted = _Regions(device, platform_for(device).ceilings())

    def backend(gm: torch.fx.GraphModule, inputs: Sequence[Any]) -> Any:
        noted.seen = seen_ranges(inputs)
        return compile_fx(gm, inputs, config_patches={"post_grad_custom_post_pass": noted})

    torch._dynamo.reset()
    torch.manual_seed(0)
    instance = case.make(device)
    with torch.no_grad():
        bound(torch.compile(instance.function, backend=backend, dynamic=False), instance)()
    return list({found.captured.region.digest: found for found in noted.found}.values())


def sweep(found: Found, device: str, limit_s: float, seed: int) -> dict[str, Any]:
    """The baselines' times, and a row for each different kernel."""
    platform = platform_for(device)
    candidates = _kernels(found, device, seed)
    rows: list[dict[str, Any]] = []
    with (
        tempfile.TemporaryDirectory(prefix="kevolve-sweep-") as folder,
        WorkerEvaluator(platform, Path(folder)) as evaluator,
    ):
        baselines = evaluator.open(found.captured.region, found.workload)
        until = time.monotonic() + limit_s
        while time.monotonic() < until and (batch := list(islice(candidates, _BATCH))):
            evaluator.prepare(tuple(kernel for _, kernel in batch))
            for schedule, kernel in batch:
                if time.monotonic() > until:
                    break
                # Only timed (what is small is also screened): no speedup is enough.
                evaluation = evaluator.evaluate(kernel, beat=math.inf)
                rows.append({"schedule": schedule, "kernel": kernel.digest, "evaluation": to_json(evaluation)})
    return {"baselines_us": baselines.times_us, "floor_us": found.floor_us, "rows": rows}


def _kernels(found: Found, device: str, seed: int) -> Iterator[tuple[dict[str, Any], Kernel]]:
    """Schedules in the order in which a search without any news would ask for them."""
    platform = platform_for(device)
    searcher = EvolutionSearcher(found.family.space(found.match, platform.target()), seed, drafts=10_000)
    seen: set[str] = set()
    while (candidate := searcher.ask()) is not None:
        try:
            kernel = found.family.emit(found.match, candidate.schedule, platform.language)
        except EmissionError:
            continue
        kernel = canonical_kernel(kernel, found.match.inputs)
        if kernel.digest not in seen:
            seen.add(kernel.digest)
            yield dict(candidate.schedule), kernel


def _passed(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    passed = [row for row in rows if row["evaluation"]["status"] == Passed.status]
    return sorted(passed, key=lambda row: row["evaluation"]["latency_us"])


def in_words(name: str, found: Found, swept: dict[str, Any]) -> str:
    """The fastest schedules with what they take, and how the others ended."""
    rows = swept["rows"]
    baselines = ", ".join(f"{side} {us:.1f}" for side, us in swept["baselines_us"].items())
    lines = [f"{name}: {found.title}: floor {swept['floor_us']:.1f} us, {baselines}; {len(rows)} kernels"]
    for row in _passed(rows)[:_SHOWN]:
        diagnosis = row["evaluation"]["diagnosis"]
        taken = (
            f"{diagnosis['registers']} registers, {diagnosis['spills']} spilled, {diagnosis['shared_bytes']} B shared"
        )
        number = rows.index(row)
        lines.append(
            f"  {row['evaluation']['latency_us']:8.1f} us  #{number:<3} {taken}  {json.dumps(row['schedule'])}"
        )
    others = [row["evaluation"] for row in rows if row["evaluation"]["status"] != Passed.status]
    counts = {status: sum(other["status"] == status for other in others) for status in {o["status"] for o in others}}
    return "\n".join([*lines, f"  others: {counts}"] if counts else lines)


if __name__ == "__main__":
    sys.exit(main())
