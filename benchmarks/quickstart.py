"""The whole model of examples/quickstart.py under eager, Inductor and kevolve: ``python -m benchmarks.quickstart``."""

from __future__ import annotations

import argparse
import importlib.util
import sys
import tempfile
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from kevolve_inductor import report

from . import record
from .clock import Prepared, clock_for

EXAMPLE = Path(__file__).parent.parent / "examples" / "quickstart.py"


def main(argv: list[str] | None = None) -> int:
    cuda = torch.cuda.is_available()
    parser = argparse.ArgumentParser(prog="quickstart", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if cuda else "cpu")
    parser.add_argument("--rows", type=int, default=None, help="batch size (default: the example's)")
    parser.add_argument("--budget-s", type=float, default=60.0, help="seconds of search (default 60)")
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/quickstart-<chip>-<date>.json")
    arguments = parser.parse_args(argv)
    document = measure(arguments.device, arguments.rows, arguments.budget_s)
    record.write(arguments.out or record.default_path(document, "quickstart"), document)
    for name, time_us in document["times_us"].items():
        print(f"{name:<10}{time_us / 1e3:>9.3f} ms")
    return 0


@torch.no_grad()
def measure(device: str, rows: int | None, budget_s: float) -> dict[str, Any]:
    example = load_example()
    clock = clock_for(device)
    model, inputs = example.build(device, rows or example.default_rows(device))
    with tempfile.TemporaryDirectory(prefix="kevolve-bench-") as store:
        options: dict[str, Any] = {"kevolve.budget_s": budget_s, "kevolve.store": store}
        inductor = torch.compile(model, dynamic=False)
        kevolve = torch.compile(model, backend="kevolve", dynamic=False, options=options)
        calls: dict[str, Prepared] = {"eager": clock.prepare(lambda: model(*inputs))}
        calls["inductor"] = clock.prepare(lambda: inductor(*inputs))
        report.reset()
        started = time.perf_counter()
        calls["kevolve"] = clock.prepare(lambda: kevolve(*inputs))
        compile_s = time.perf_counter() - started
    differing = {name: example.differing_rows(calls[name].outputs, calls["eager"].outputs) for name in calls}
    if differing["kevolve"] > inputs[0].shape[1] // 1000:
        raise AssertionError(f"rows that differ from eager: {differing}")
    return record.header("quickstart", clock) | {
        "rows": inputs[0].shape[1],
        "rows_differing": differing,
        "replayed": all(call.replayed for call in calls.values()),
        "times_us": clock.medians_us(calls, limit_s=20.0, rounds=(15, 101)),
        "compile_s": compile_s,
        "report": report.last_run().to_json(),
    }


def load_example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("quickstart_example", EXAMPLE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up by name.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    sys.exit(main())
