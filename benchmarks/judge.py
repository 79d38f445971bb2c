"""How many candidates the judge takes a minute, where the time goes, and what candidates that crash or hang cost it.

    python -m benchmarks.judge [--device cpu|cuda] [--candidates 120] [--faulty 100] [--limit-s 5]

The region is a small sum of rows. Of the ``--faulty`` candidates every tenth crashes, hangs, exhausts memory or would end
its process; a hang costs the time limit, which is part of the result. Progress goes to standard error, and the result is
written after each part.
"""

from __future__ import annotations

import argparse
import itertools
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import torch

from kevolve_inductor.evaluate.client import WorkerEvaluator
from kevolve_inductor.kernel import Argument, Kernel, Launch, Workspace
from kevolve_inductor.platforms import platform_for
from kevolve_inductor.testing.evaluators import (
    ROW_SUM_SOURCE,
    ROWS,
    WIDTH,
    row_sum_kernel,
    row_sum_region,
    row_sum_workload,
)

from . import record
from .clock import clock_for

_BATCH = 16
_LIMIT_S = 5.0
_PROGRESS_S = 5.0
# A process that was ended gives back its files and its memory a moment later.
_SETTLE_S = 10.0

_TRITON = """
@triton.jit
def row_sum(x, out, WIDTH: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    total = tl.zeros([ROWS, BLOCK], tl.float32)
    for first in RANGE(0, WIDTH, BLOCK):
        at = first + tl.arange(0, BLOCK)[None, :]
        total += tl.load(x + row * WIDTH + at, mask=(row < LAST) & (at < WIDTH), other=0.0)
    result = tl.sum(total, 1)[:, None]
    tl.store(out + row, result, mask=row < LAST)
""".replace("LAST", str(ROWS))
_END = "  return 0;\n}"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="judge", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--candidates", type=int, default=120, help="right candidates (default 120)")
    parser.add_argument("--faulty", type=int, default=100, help="candidates of which every tenth fails (default 100)")
    parser.add_argument("--limit-s", type=float, default=_LIMIT_S, help="seconds until a hang is ended (default 5)")
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/judge-<chip>-<date>.json")
    arguments = parser.parse_args(argv)
    document = record.header("judge", clock_for(arguments.device)) | {"cores": len(os.sched_getaffinity(0))}
    out = arguments.out or record.default_path(document, "judge")

    speed = document["throughput"] = throughput(arguments.device, arguments.candidates)
    record.write(out, document)
    print(
        f"{speed['per_minute']:.0f} a minute, {speed['overhead_ms']:.1f} ms each besides", speed["seconds"], flush=True
    )

    lived = document["survival"] = survival(arguments.device, arguments.faulty, arguments.limit_s)
    record.write(out, document)
    print(f"faulty: {lived['outcomes']}, {lived['lost']} lost, leaked {lived['leaked']}, {lived['seconds']:.0f} s")
    return int(lived["lost"] > 0 or any(lived["leaked"].values()))


class _Progress:
    """Says on standard error every few seconds how far a part has come: a run that is ended shows where it was."""

    def __init__(self, part: str, total: int) -> None:
        self._part, self._total = part, total
        self._start = self._said = time.monotonic()

    def tell(self, done: int, outcomes: Counter[str]) -> None:
        now = time.monotonic()
        if now - self._said > _PROGRESS_S or done == self._total:
            self._said = now
            print(f"{self._part} {done}/{self._total}, {now - self._start:.0f} s: {dict(outcomes)}", file=sys.stderr)


def throughput(device: str, count: int) -> dict[str, Any]:
    """Distinct right candidates, built in batches while others are judged, as a search has them."""
    with tempfile.TemporaryDirectory(prefix="kevolve-bench-") as folder, _evaluator(device, folder) as evaluator:
        evaluator.open(row_sum_region(device), row_sum_workload())
        kernels = list(itertools.islice(candidates(device), count))
        evaluator.spent_s.clear()
        outcomes: Counter[str] = Counter()
        progress = _Progress("throughput", len(kernels))
        start = time.monotonic()
        for done, kernel in enumerate(_prepared(evaluator, kernels), start=1):
            outcomes[evaluator.evaluate(kernel).status] += 1
            progress.tell(done, outcomes)
        total = time.monotonic() - start
        spent = dict(evaluator.spent_s)
    return {
        "candidates": len(kernels),
        "outcomes": dict(outcomes),
        "per_minute": 60 * len(kernels) / total,
        "seconds": spent | {"total": total},
        "overhead_ms": 1e3 * (total - sum(spent.values())) / len(kernels),
    }


def survival(device: str, count: int, limit_s: float) -> dict[str, Any]:
    """Every tenth candidate ends or blocks its process; none may be lost and nothing may be left behind.

    ``seconds_each``: of a candidate, by kind. What replaces a lost process is waited for by the next candidate (``after``).
    """
    before = _resources(device)
    outcomes: Counter[str] = Counter()
    seconds: defaultdict[str, list[float]] = defaultdict(list)
    lost, last, progress = 0, "", _Progress("survival", count)
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="kevolve-bench-") as folder:
        with _evaluator(device, folder, limit_s) as evaluator:
            evaluator.open(row_sum_region(device), row_sum_workload())
            opened = time.monotonic() - start
            evaluator.spent_s.clear()
            kinds, kernels = zip(*_sequence(device, count), strict=True)
            for done, (kind, kernel) in enumerate(zip(kinds, _prepared(evaluator, kernels), strict=True), start=1):
                began = time.monotonic()
                status = evaluator.evaluate(kernel).status
                outcomes[f"{kind}: {status}"] += 1
                lost += (status == "passed") == (kind != "right")
                seconds[f"after {last}" if kind == "right" and last not in ("", "right") else kind].append(
                    time.monotonic() - began
                )
                last = kind
                progress.tell(done, outcomes)
            total, spent = time.monotonic() - start, dict(evaluator.spent_s)
        left = _left(folder)
    leaked = {name: max(0, number - before[name]) for name, number in _resources(device, before).items()}
    return {
        "candidates": count,
        "limit_s": limit_s,
        "outcomes": dict(outcomes),
        "lost": lost,
        "leaked": leaked | {"workers": left},
        "seconds": total,
        "seconds_each": {kind: {"count": len(each), "mean": mean(each)} for kind, each in seconds.items()},
        "seconds_for": spent | {"open": opened},
        "overhead_ms": 1e3 * (total - opened - sum(spent.values())) / count,
    }


def _sequence(device: str, count: int) -> Iterator[tuple[str, Kernel]]:
    right, bad = itertools.cycle(itertools.islice(candidates(device), 40)), itertools.cycle(faults(device))
    for number in range(count):
        yield next(bad) if number % 10 == 9 else ("right", next(right))


def _evaluator(device: str, folder: str, limit_s: float = 30.0) -> WorkerEvaluator:
    return WorkerEvaluator(platform_for(device), Path(folder), limit_s=limit_s)


def _prepared(evaluator: WorkerEvaluator, kernels: Sequence[Kernel]) -> Iterator[Kernel]:
    """The kernels in order, asked for in batches, one batch ahead of those that are judged."""
    batches = [tuple(kernels[first : first + _BATCH]) for first in range(0, len(kernels), _BATCH)]
    for batch, following in itertools.zip_longest(batches, batches[1:], fillvalue=()):
        evaluator.prepare(batch + following)
        yield from batch


def candidates(device: str) -> Iterator[Kernel]:
    """Right kernels that differ in text or launch."""
    if device == "cpu":
        for chunk, unroll in itertools.product(range(1, 33), (1, 2, 4, 8, 16)):
            source = ROW_SUM_SOURCE.replace("parallel for", f"parallel for schedule(static, {chunk})")
            yield row_sum_kernel(source.replace("    float sum", f"    // unrolled {unroll}\n    float sum"))
        return
    loops = ("range", "tl.static_range", "tl.range")
    for loop, rows, block, warps, stages in itertools.product(
        loops, (1, 2, 4, 8), (16, 32, 64, 128), (1, 2, 4), (1, 2, 3)
    ):
        yield _triton(_TRITON.replace("RANGE", loop), rows, block, warps, stages)


def _triton(
    source: str, rows: int, block: int, warps: int, stages: int = 2, workspaces: tuple[Workspace, ...] = ()
) -> Kernel:
    constants = (("WIDTH", WIDTH), ("BLOCK", block), ("ROWS", rows))
    arguments = (Argument("input", 0), Argument("output", 0))
    grid = (str(-(-ROWS // rows)),)
    launch = Launch("row_sum", arguments, grid, constants, num_warps=warps, num_stages=stages)
    return Kernel("triton", source, (launch,), workspaces)


def faults(device: str) -> Iterator[tuple[str, Kernel]]:
    """A bad address, a computation without end, more memory than there is, and the end of the process.

    No text that the gate lets through can ask for the last; that one has to be refused.
    """
    if device == "cpu":
        for kind, line in (
            ("crashes", "*(volatile int*)nullptr = 1;"),
            ("hangs", "volatile int on = 1;\n  while (on) {}"),
            ("exhausts memory", "volatile char big[1 << 28];\n  big[0] = 1;"),
            ("exits", "std::exit(0);"),
        ):
            yield kind, row_sum_kernel(ROW_SUM_SOURCE.replace(_END, f"  {line}\n{_END}"))
        return
    right = _TRITON.replace("RANGE", "range")
    yield "crashes", _triton(right.replace("out + row,", "out + row.to(tl.int64) * 1000000000,"), 1, 128, 1)
    on = "on = tl.load(x, volatile=True) * 0 == 0\n"
    yield "hangs", _triton(right.replace("    result", f"    {on}    while on:\n        {on}    result", 1), 1, 128, 1)
    yield "exhausts memory", _triton(right, 1, 128, 1, workspaces=(Workspace("float32", str(2**40)),))
    yield "exits", _triton(right.replace("    result", "    exit(0)\n    result", 1), 1, 128, 1)


def _resources(device: str, before: dict[str, int] | None = None) -> dict[str, int]:
    """Open files and child processes of this process, and the device's memory in use; with ``before``, once it is back
    there or some seconds have passed."""
    deadline = time.monotonic() + _SETTLE_S
    while True:
        now = {"files": len(os.listdir("/proc/self/fd")), "processes": _children()}
        if device == "cuda":
            now["device_bytes"] = _device_bytes()
        if before is None or all(now[name] <= before[name] for name in now) or time.monotonic() > deadline:
            return now
        time.sleep(0.5)


def _children() -> int:
    children = 0
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            fields = Path("/proc", entry, "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        children += fields[0] != "Z" and int(fields[1]) == os.getpid()
    return children


def _left(folder: str) -> int:
    """Processes that name the evaluation's folder after its end: workers, whoever is their parent now."""
    deadline = time.monotonic() + _SETTLE_S
    while True:
        left = 0
        for entry in filter(str.isdigit, os.listdir("/proc")):
            try:
                left += folder.encode() in Path("/proc", entry, "cmdline").read_bytes()
            except OSError:
                continue
        if left == 0 or time.monotonic() > deadline:
            return left
        time.sleep(0.5)


def _device_bytes() -> int:
    """As a new process finds it: in this one the allocator's cache and the context would count."""
    torch.zeros(1, device="cuda")
    code = "import torch; free, total = torch.cuda.mem_get_info(); print(total - free)"
    return int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)


if __name__ == "__main__":
    sys.exit(main())
