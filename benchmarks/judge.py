"""How many candidates the judge takes a minute, where the time goes, and what candidates that crash or hang cost it.

    python -m benchmarks.judge [--device cpu|cuda] [--candidates 120] [--faulty 100]

The region is a small sum of rows. Of the ``--faulty`` candidates every tenth crashes, hangs or asks for too much.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from kevolve_inductor.evaluate.client import WorkerEvaluator
from kevolve_inductor.kernel import Argument, Kernel, Launch
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

_TRITON = """
@triton.jit
def row_sum(x, out, WIDTH: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    total = tl.zeros([ROWS, BLOCK], tl.float32) + %d
    for first in range(0, WIDTH, BLOCK):
        at = first + tl.arange(0, BLOCK)[None, :]
        total += tl.load(x + row * WIDTH + at, mask=(row < LAST) & (at < WIDTH), other=0.0)
    result = tl.sum(total, 1)[:, None] - BLOCK * %d
    tl.store(out + row, result, mask=row < LAST)
""".replace("LAST", str(ROWS))
_END = "  return 0;\n}"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="judge", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--candidates", type=int, default=120, help="right candidates (default 120)")
    parser.add_argument("--faulty", type=int, default=100, help="candidates of which every tenth fails (default 100)")
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/judge-<chip>-<date>.json")
    arguments = parser.parse_args(argv)
    document = record.header("judge", clock_for(arguments.device)) | {
        "cores": len(os.sched_getaffinity(0)),
        "throughput": throughput(arguments.device, arguments.candidates),
        "survival": survival(arguments.device, arguments.faulty),
    }
    record.write(arguments.out or record.default_path(document, "judge"), document)
    speed, lived = document["throughput"], document["survival"]
    print(
        f"{speed['per_minute']:.0f} candidates a minute, {speed['overhead_ms']:.1f} ms each besides", speed["seconds"]
    )
    print(f"faulty: {lived['outcomes']}, {lived['lost']} lost, leaked {lived['leaked']}, {lived['seconds']:.0f} s")
    return int(lived["lost"] > 0 or any(lived["leaked"].values()))


def throughput(device: str, count: int) -> dict[str, Any]:
    """Distinct right candidates, built in batches while others are judged, as a search has them."""
    with tempfile.TemporaryDirectory(prefix="kevolve-bench-") as folder, _evaluator(device, folder) as evaluator:
        evaluator.open(row_sum_region(device), row_sum_workload())
        kernels = list(itertools.islice(candidates(device), count))
        evaluator.spent_s.clear()
        outcomes: Counter[str] = Counter()
        start = time.monotonic()
        for first in range(0, len(kernels), _BATCH):
            evaluator.prepare(tuple(kernels[first : first + _BATCH]))
            outcomes.update(evaluator.evaluate(kernel).status for kernel in kernels[first : first + _BATCH])
        total = time.monotonic() - start
        spent = dict(evaluator.spent_s)
    return {
        "candidates": len(kernels),
        "outcomes": dict(outcomes),
        "per_minute": 60 * len(kernels) / total,
        "seconds": spent | {"total": total},
        "overhead_ms": 1e3 * (total - sum(spent.values())) / len(kernels),
    }


def survival(device: str, count: int) -> dict[str, Any]:
    """Every tenth candidate ends or blocks its process; none may be lost and nothing may be left behind."""
    before = _resources()
    outcomes: Counter[str] = Counter()
    lost = 0
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="kevolve-bench-") as folder, _evaluator(device, folder) as evaluator:
        evaluator.open(row_sum_region(device), row_sum_workload())
        right, bad = itertools.cycle(itertools.islice(candidates(device), 40)), itertools.cycle(faults(device))
        for number in range(count):
            faulty = number % 10 == 9
            status = evaluator.evaluate(next(bad) if faulty else next(right)).status
            outcomes[f"{'faulty' if faulty else 'right'}: {status}"] += 1
            lost += (status == "passed") == faulty
    after = _resources()
    leaked = {name: max(0, after[name] - before[name]) for name in before}
    return {"outcomes": dict(outcomes), "lost": lost, "leaked": leaked, "seconds": time.monotonic() - start}


def _evaluator(device: str, folder: str) -> WorkerEvaluator:
    return WorkerEvaluator(platform_for(device), Path(folder), limit_s=_LIMIT_S)


def candidates(device: str) -> Iterator[Kernel]:
    """Right kernels whose texts differ."""
    if device == "cpu":
        for chunk, unroll in itertools.product(range(1, 33), (1, 2, 4, 8, 16)):
            source = ROW_SUM_SOURCE.replace("parallel for", f"parallel for schedule(static, {chunk})")
            yield row_sum_kernel(source.replace("    float sum", f"    // unrolled {unroll}\n    float sum"))
        return
    for number in itertools.count():
        for rows, block, warps in itertools.product((1, 2, 4, 8), (32, 64, 128), (1, 2, 4)):
            yield _triton(_TRITON % (number, number), rows, block, warps)


def _triton(source: str, rows: int, block: int, warps: int) -> Kernel:
    constants = (("WIDTH", WIDTH), ("BLOCK", block), ("ROWS", rows))
    arguments = (Argument("input", 0), Argument("output", 0))
    launch = Launch("row_sum", arguments, (str(-(-ROWS // rows)),), constants, num_warps=warps)
    return Kernel("triton", source, (launch,))


def faults(device: str) -> Iterator[Kernel]:
    """A bad address, a computation without end, and more memory than there is."""
    if device == "cpu":
        yield row_sum_kernel(ROW_SUM_SOURCE.replace(_END, "  *(volatile int*)nullptr = 1;\n" + _END))
        yield row_sum_kernel(ROW_SUM_SOURCE.replace(_END, "  volatile int on = 1;\n  while (on) {}\n" + _END))
        yield row_sum_kernel(ROW_SUM_SOURCE.replace(_END, "  volatile char big[1 << 28];\n  big[0] = 1;\n" + _END))
        yield row_sum_kernel(ROW_SUM_SOURCE.replace(_END, "  volatile int z = 0;\n  out[0] = 7 / z;\n" + _END))
        return
    yield _triton((_TRITON % (0, 0)).replace("out + row,", "out + row.to(tl.int64) * 1000000000,"), 1, 128, 1)
    on = "on = tl.load(x, volatile=True) * 0 == 0\n"
    endless = f"    {on}    while on:\n        {on}    result"
    yield _triton((_TRITON % (0, 0)).replace("    result", endless, 1), 1, 128, 1)
    yield _triton(_TRITON % (0, 0), 8192, 1024, 4)


def _resources() -> dict[str, int]:
    """Open files and child processes of this process."""
    children = 0
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            fields = Path("/proc", entry, "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        children += fields[0] != "Z" and int(fields[1]) == os.getpid()
    return {"files": len(os.listdir("/proc/self/fd")), "processes": children}


if __name__ == "__main__":
    sys.exit(main())
