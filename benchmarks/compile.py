"""What a compile costs beside Inductor's own, with every kernel in the store: ``python -m benchmarks.compile``.

Each compile runs in a process of its own with Inductor's caches empty; the two backends take turns.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from . import record
from .clock import clock_for
from .quickstart import load_example

Built = tuple[nn.Module, Sequence[Tensor]]


def click_model(device: str) -> Built:
    """Eight regions, four of them different, in some 700 nodes."""
    example = load_example()
    model, inputs = example.build(device, 2048)
    return model, inputs


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before, self.after = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mixed, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.wide, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        rows, length, width = x.shape
        split = self.mixed(self.before(x)).view(rows, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(*split.unbind(0))
        x = x + self.out(mixed.transpose(1, 2).reshape(rows, length, width))
        return x + self.narrow(functional.gelu(self.wide(self.after(x))))


def encoder(device: str) -> Built:
    """Layers in which there is nothing to swap: the whole cost is the looking."""
    return nn.Sequential(*(Block(128, 4) for _ in range(8))).eval().to(device), [torch.randn(8, 64, 128).to(device)]


MODELS: dict[str, Callable[[str], Built]] = {"click model": click_model, "encoder": encoder}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="compile", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, default=5, help="compiles of each kind (default 5)")
    parser.add_argument(
        "--budget-s", type=float, default=60.0, help="seconds of search that fill the store (default 60)"
    )
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/compile-<chip>-<date>.json")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.one:
        name, kind = arguments.one
        print(json.dumps(compile_once(name, kind, arguments.device, arguments.budget_s)))
        return 0
    document = record.header("compile", clock_for(arguments.device)) | {
        "models": {name: measure(name, arguments.device, arguments.rounds, arguments.budget_s) for name in MODELS}
    }
    record.write(arguments.out or record.default_path(document, "compile"), document)
    for name, row in document["models"].items():
        print(
            f"{name:<14}{row['inductor_s']:>8.2f} s{row['kevolve_s']:>8.2f} s{row['ratio']:>7.2f}", row["look_ups_us"]
        )
    return 0


def measure(name: str, device: str, rounds: int, budget_s: float) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="kevolve-bench-") as store:
        _in_process(name, "quick", device, budget_s, store)
        rows: dict[str, list[dict[str, Any]]] = {"inductor": [], "lookup": []}
        for turn in range(rounds):
            for kind in sorted(rows, reverse=bool(turn % 2)):
                rows[kind].append(_in_process(name, kind, device, budget_s, store))
    medians = {kind: statistics.median(row["compile_s"] for row in found) for kind, found in rows.items()}
    return {
        "inductor_s": medians["inductor"],
        "kevolve_s": medians["lookup"],
        "ratio": medians["lookup"] / medians["inductor"],
        "swapped": rows["lookup"][0]["swapped"],
        "look_ups_us": [
            statistics.median(times) for times in zip(*(r["look_ups_us"] for r in rows["lookup"]), strict=True)
        ],
        "samples_s": {kind: [row["compile_s"] for row in found] for kind, found in rows.items()},
    }


def _in_process(name: str, kind: str, device: str, budget_s: float, store: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.compile", "--device", device, "--budget-s", str(budget_s)]
    with tempfile.TemporaryDirectory(prefix="inductor-") as cache:
        environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": cache, "KEVOLVE_STORE": store}
        done = subprocess.run(
            [*command, "--one", name, kind], capture_output=True, text=True, env=environment, check=True
        )
    return dict(json.loads(done.stdout.splitlines()[-1]))


@torch.no_grad()
def compile_once(name: str, kind: str, device: str, budget_s: float) -> dict[str, Any]:
    """Seconds until the first call returns. The package is imported before, as it is where other models were compiled."""
    from kevolve_inductor import report

    model, inputs = MODELS[name](device)
    # What a process pays once for either backend: Inductor's own imports, its worker pool, the first tracing.
    torch.compile(nn.Linear(8, 8).to(device), dynamic=False)(torch.randn(2, 8, device=device))
    if kind == "inductor":
        compiled = torch.compile(model, dynamic=False)
    else:
        options: dict[str, Any] = {"kevolve.search": kind, "kevolve.budget_s": budget_s}
        compiled = torch.compile(model, backend="kevolve", dynamic=False, options=options)
    # Collections of garbage take a fifth of a second each and fall on whatever happens to run.
    gc.disable()
    started = time.perf_counter()
    compiled(*inputs)
    seconds = time.perf_counter() - started
    run = report.last_run()
    swapped = sum(row.speedup is not None for row in run.regions)
    return {"compile_s": seconds, "swapped": swapped, "look_ups_us": run.look_ups_us}


if __name__ == "__main__":
    sys.exit(main())
