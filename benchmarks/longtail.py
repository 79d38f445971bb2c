"""Eager, Inductor, Inductor max-autotune and kevolve side by side on every case, in one process and one session.

    python -m benchmarks.longtail [--device cpu|cuda] [--cases SUBSTRING ...] [--budget-s 60] [--quick]

Each callable is checked against eager, then all are timed interleaved with a cold cache; on a GPU each is replayed
from a CUDA graph. Writes one JSON file and prints a short table last.
"""

from __future__ import annotations

import argparse
import io
import json
import logging
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch._inductor.utils import fresh_cache

from kevolve_inductor import report

from . import record
from .cases import CASES, Case, Instance, Selection
from .clock import Ceilings, Clock, Prepared, clock_for
from .shapes import drawn

LABELS = {"eager": "eager", "inductor": "Inductor", "max_autotune": "autotune", "kevolve": "kevolve"}
_TOLERANCES = {torch.float32: 1e-4, torch.float64: 1e-9, torch.bfloat16: 2e-2, torch.float16: 4e-3}


@dataclass(frozen=True)
class Limits:
    """How much each case may take: seconds of search, seconds of timing, least and most rounds."""

    search_s: float
    timing_s: float
    rounds: tuple[int, int]


def main(argv: list[str] | None = None) -> int:
    """Exit code 0 where every case ran and agreed with eager, else 1."""
    arguments = _parser().parse_args(argv)
    device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    chosen = select(arguments.cases, device, drawn(arguments.random, arguments.seed) if arguments.random else CASES)
    if not chosen:
        print(f"no case for {device} matches {' '.join(arguments.cases)}", file=sys.stderr)
        return 1
    limits = Limits(arguments.budget_s, 1.5, (5, 15)) if arguments.quick else Limits(arguments.budget_s, 5.0, (9, 101))
    autotune = device == "cuda" or arguments.max_autotune
    clock = clock_for(device)
    with torch.no_grad(), fresh_cache(), _store(arguments.store) as store:
        ceilings = clock.measure_ceilings()
        options = {"kevolve.search": arguments.search, "kevolve.budget_s": limits.search_s, "kevolve.store": store}
        rows = []
        for number, case in enumerate(chosen, 1):
            print(f"[{number}/{len(chosen)}] {case.name}", file=sys.stderr, flush=True)
            rows.append(run_case(case, clock, ceilings, limits, options, autotune))
            document = describe(clock, ceilings, arguments, rows)
            record.write(arguments.out or record.default_path(document), document)
    print(json.dumps(document, indent=1) if arguments.json else format_table(document))
    return int(any(row["error"] or any(row["disagreements"].values()) for row in rows))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="longtail", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda where there is one")
    parser.add_argument("--cases", nargs="*", default=[], help="only cases whose name or family contains one of these")
    parser.add_argument(
        "--random", type=int, metavar="COUNT", help="COUNT cases of each family, drawn at random, instead"
    )
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn")
    parser.add_argument("--budget-s", type=float, default=60.0, help="seconds of search for each case (default 60)")
    parser.add_argument("--search", choices=("lookup", "quick", "full"), default="quick")
    parser.add_argument("--store", help="keep kernels here (default: a folder that is deleted, so every case searches)")
    parser.add_argument("--max-autotune", action="store_true", help="time Inductor's max-autotune on a CPU too")
    parser.add_argument("--quick", action="store_true", help="fewer timing rounds")
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/<chip>-<date>.json")
    parser.add_argument("--json", action="store_true", help="print the JSON in place of the table")
    return parser


def select(substrings: list[str], device: str, known: Iterable[Case] = CASES) -> list[Case]:
    cases = [case for case in known if device in case.devices]
    return [case for case in cases if not substrings or any(s in case.name or s in case.family for s in substrings)]


@contextmanager
def _store(path: str | None) -> Iterator[str]:
    if path:
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="kevolve-bench-") as folder:
        yield folder


def run_case(
    case: Case, clock: Clock, ceilings: Ceilings, limits: Limits, options: dict[str, Any], autotune: bool
) -> dict[str, Any]:
    """One row of the result. Whatever a case raises becomes its ``error``, so that the run goes on."""
    row: dict[str, Any] = {"name": case.name, "family": case.family, "origin": case.origin, "error": None}
    row |= {"times_us": {}, "disagreements": {}, "failures": {}}
    torch.manual_seed(0)
    torch._dynamo.reset()
    try:
        instance = case.make(clock.device)
        row["inputs"] = _describe_inputs(instance.inputs)
        _run_instance(row, instance, clock, ceilings, limits, options, autotune)
    except Exception as error:  # noqa: BLE001 - one broken case must not lose the results of the others
        row["error"] = f"{type(error).__name__}: {error}"[:2000]
    if clock.device == "cuda":
        torch.cuda.empty_cache()
    return row


def _run_instance(
    row: dict[str, Any],
    instance: Instance,
    clock: Clock,
    ceilings: Ceilings,
    limits: Limits,
    options: dict[str, Any],
    autotune: bool,
) -> None:
    calls = _compilations(instance, options, autotune)
    prepared: dict[str, Prepared] = {"eager": clock.prepare(calls["eager"])}
    expected = prepared["eager"].outputs
    report.reset()
    for name, call in calls.items():
        if name == "eager":
            continue
        started = time.perf_counter()
        try:
            with _quiet(name == "max_autotune"):
                prepared[name] = clock.prepare(call)
        except Exception as error:  # noqa: BLE001 - a compiler that refuses a case is a result, not the end of the run
            if name == "kevolve":
                raise
            row["failures"][name] = f"{type(error).__name__}: {error}"[:500]
            continue
        row["disagreements"][name] = disagreement(expected, prepared[name].outputs, instance)
        if name == "kevolve":
            row |= _search_row(time.perf_counter() - started)
    row["peak_bytes"] = {name: clock.peak_bytes(call) for name, call in calls.items() if name in prepared}
    row["replayed"] = all(entry.replayed for entry in prepared.values())
    row["times_us"] = clock.medians_us(prepared, limits.timing_s, limits.rounds)
    if instance.flops:
        clock.measure_flops(ceilings, instance.flops_dtype)
    least_bytes = instance.least_bytes or _size_bytes((*instance.inputs, *_tensors(expected)))
    row["floor_us"] = ceilings.floor_us(least_bytes, instance.flops, instance.flops_dtype)
    row |= _ratios(row)


@contextmanager
def _quiet(wanted: bool) -> Iterator[None]:
    """Without the pages that autotuning prints about choices that do not fit this chip."""
    logger = logging.getLogger("torch._inductor.select_algorithm")
    level = logger.level
    if not wanted:
        yield
        return
    logger.setLevel(logging.CRITICAL)
    try:
        with redirect_stderr(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)


def _compilations(instance: Instance, options: dict[str, Any], autotune: bool) -> dict[str, Callable[[], Any]]:
    function = instance.function
    compiled = {"eager": function, "inductor": torch.compile(function, dynamic=False)}
    if autotune:
        compiled["max_autotune"] = torch.compile(function, dynamic=False, mode="max-autotune-no-cudagraphs")
    compiled["kevolve"] = torch.compile(function, backend="kevolve", dynamic=False, options=options)
    bind = _bind_training if instance.trained else _bind
    return {name: bind(call, instance) for name, call in compiled.items()}


def _bind(function: Callable[..., Any], instance: Instance) -> Callable[[], Any]:
    return lambda: function(*instance.inputs)


def _bind_training(function: Callable[..., Any], instance: Instance) -> Callable[[], Any]:
    """One step: the outputs, then the gradients for a random gradient of the outputs, the same for every compiler."""
    inputs = [
        tensor.detach().requires_grad_() if position in instance.trained else tensor
        for position, tensor in enumerate(instance.inputs)
    ]
    gradients: list[torch.Tensor] = []

    def step() -> tuple[torch.Tensor, ...]:
        with torch.enable_grad():
            outputs = _tensors(function(*inputs))
            if not gradients:
                generator = torch.Generator(outputs[0].device).manual_seed(0)
                gradients.extend(_normal_like(output, generator) for output in outputs)
            found = torch.autograd.grad(outputs, [inputs[position] for position in instance.trained], gradients)
        return (*(output.detach() for output in outputs), *found)

    return step


def _normal_like(output: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    return torch.randn(output.shape, generator=generator, device=output.device).to(output.dtype)


def _search_row(compile_s: float) -> dict[str, Any]:
    """What the search did, from the report of the compile that just ran."""
    run = report.last_run()
    regions = run.regions
    return {
        "compile_s": compile_s,
        "search_s": sum(region.search_s for region in regions),
        "trials": sum(region.trials for region in regions),
        "swapped": sum(region.kernel_us is not None for region in regions),
        "verdicts": [f"{region.title}: {region.verdict}" for region in regions],
        "graphs": [graph.verdict for graph in run.graph_verdicts],
        "rejections": [f"{family}: {message}" for family, _, message in run.rejections],
    }


def _ratios(row: dict[str, Any]) -> dict[str, Any]:
    others = {name: time_us for name, time_us in row["times_us"].items() if name != "kevolve"}
    best = min(others, key=lambda name: others[name])
    kevolve_us = row["times_us"]["kevolve"]
    return {
        "best_other": best,
        "speedup": others[best] / kevolve_us,
        "ceiling_share": row["floor_us"] / kevolve_us,
        "best_other_ceiling_share": row["floor_us"] / others[best],
    }


def disagreement(expected: Any, actual: Any, instance: Instance) -> str | None:
    """``None`` where outputs agree with eager's: integers exactly, floats within rounding, selections up to ties."""
    wanted, got = _tensors(expected), _tensors(actual)
    if len(wanted) != len(got):
        return f"{len(got)} outputs for {len(wanted)}"
    for index, (left, right) in enumerate(zip(wanted, got, strict=True)):
        if left.shape != right.shape or left.dtype != right.dtype:
            return f"output {index}: {right.dtype} {tuple(right.shape)} for {left.dtype} {tuple(left.shape)}"
        if instance.selection and instance.selection.index_output == index:
            problem = _selection_problem(left, right, instance.selection, instance.inputs)
        else:
            problem = _value_problem(left, right)
        if problem:
            return f"output {index}: {problem}"
    return None


def _value_problem(expected: torch.Tensor, actual: torch.Tensor) -> str | None:
    if not expected.dtype.is_floating_point:
        wrong = int((expected != actual).sum())
    else:
        # What cancels keeps the errors of what it was made from: those of the output's typical value.
        tolerance, exact = _TOLERANCES[expected.dtype], expected.double()
        finite = exact[exact.isfinite()]
        absolute = tolerance * float(finite.abs().mean()) if finite.numel() else 0.0
        close = torch.isclose(actual.double(), exact, rtol=tolerance, atol=absolute, equal_nan=True)
        wrong = int((~close).sum())
    return f"{wrong} of {expected.numel()} elements differ" if wrong else None


def _selection_problem(
    expected: torch.Tensor, actual: torch.Tensor, selection: Selection, inputs: tuple[torch.Tensor, ...]
) -> str | None:
    scores = selection.scores(*inputs)
    reduced = expected.dim() < scores.dim()
    if reduced:
        expected, actual = expected.unsqueeze(selection.dim), actual.unsqueeze(selection.dim)
    if int(actual.min()) < 0 or int(actual.max()) >= scores.shape[selection.dim]:
        return "an index is out of range"
    ordered = torch.sort(actual, dim=selection.dim).values
    if bool((ordered.diff(dim=selection.dim) == 0).any()):
        return "an index is selected twice"
    return _value_problem(scores.gather(selection.dim, expected), scores.gather(selection.dim, actual))


def describe(
    clock: Clock, ceilings: Ceilings, arguments: argparse.Namespace, rows: list[dict[str, Any]]
) -> dict[str, Any]:
    speedups = [row["speedup"] for row in rows if "speedup" in row]
    return record.header("longtail", clock) | {
        "ceilings": {"bytes_per_s": ceilings.bytes_per_s, "flops_per_s": ceilings.flops_per_s},
        "search": arguments.search,
        "budget_s": arguments.budget_s,
        "quick": arguments.quick,
        "geomean_speedup": statistics.geometric_mean(speedups) if speedups else None,
        "cases": rows,
    }


def format_table(document: dict[str, Any]) -> str:
    names = [name for name in LABELS if any(name in row["times_us"] for row in document["cases"])]
    lines = [f"{document['chip']}, torch {document['versions']['torch']}, {document['date']}; milliseconds, medians"]
    header = f"{'case':<24}{'floor':>9}" + "".join(f"{LABELS[name]:>10}" for name in names)
    lines.append(header + f"{'speedup':>9}{'share':>7}{'search s':>10}{'trials':>8}")
    for row in document["cases"]:
        lines.append(_table_line(row, names))
    if document["geomean_speedup"]:
        lines.append(f"geomean speedup over the best of the others: {document['geomean_speedup']:.2f}")
    return "\n".join(lines)


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


def _describe_inputs(inputs: tuple[torch.Tensor, ...]) -> list[str]:
    """Shapes and dtypes, equal neighbours counted: ``64 x float32[65536]``."""
    described: list[tuple[str, int]] = []
    for tensor in inputs:
        text = f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"
        if described and described[-1][0] == text:
            described[-1] = (text, described[-1][1] + 1)
        else:
            described.append((text, 1))
    return [text if count == 1 else f"{count} x {text}" for text, count in described]


def _tensors(value: Any) -> tuple[torch.Tensor, ...]:
    return (value,) if isinstance(value, torch.Tensor) else tuple(value)


def _size_bytes(tensors: tuple[torch.Tensor, ...]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


if __name__ == "__main__":
    sys.exit(main())
