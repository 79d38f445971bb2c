"""One case under eager, Inductor, Inductor max-autotune and kevolve: compiled, compared with eager, timed side by side."""

from __future__ import annotations

import io
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from kevolve_inductor import report
from kevolve_inductor.backend import kevolve
from kevolve_inductor.cache.store import Store
from kevolve_inductor.evaluate.evaluation import Crashed, Mismatch, from_json
from kevolve_inductor.evaluate.explain import explain

from .agreement import disagreement, tensors
from .cases import Case, Instance
from .clock import Ceilings, Clock, Prepared

# What was swapped may measure this much slower than the best of the others before it counts as a loss.
LOSS = 0.98


@dataclass(frozen=True)
class Limits:
    """How much each case may take: seconds of search, seconds of timing, least and most rounds."""

    search_s: float
    timing_s: float
    rounds: tuple[int, int]


QUICK_ROUNDS, ROUNDS = (1.5, (5, 15)), (5.0, (9, 101))


@dataclass(frozen=True)
class Session:
    """What all cases of a run share. ``search`` is kevolve's mode; ``autotune`` asks for max-autotune beside it."""

    clock: Clock
    ceilings: Ceilings
    limits: Limits
    search: str
    store: str
    autotune: bool

    def options(self) -> dict[str, Any]:
        return {
            "kevolve.search": self.search,
            "kevolve.budget_s": self.limits.search_s,
            "kevolve.store": self.store,
        }


def run_case(case: Case, session: Session) -> dict[str, Any]:
    """One row of the result. Whatever a case raises becomes its ``error``, so that the run goes on."""
    row: dict[str, Any] = {"name": case.name, "family": case.family, "origin": case.origin, "error": None}
    row |= {"times_us": {}, "disagreements": {}, "failures": {}, "seconds": {}}
    torch.manual_seed(0)
    torch._dynamo.reset()
    try:
        with spending(row, "inputs"):
            instance = case.make(session.clock.device)
        row["inputs"] = described(instance.inputs)
        _run_instance(row, instance, session)
    except Exception as error:  # noqa: BLE001 - one broken case must not lose the results of the others
        row["error"] = f"{type(error).__name__}: {error}"[:2000]
    return row


def _run_instance(row: dict[str, Any], instance: Instance, session: Session) -> None:
    calls = _compilations(instance, session)
    with spending(row, "eager"):
        prepared: dict[str, Prepared] = {"eager": session.clock.prepare(calls["eager"])}
    expected = prepared["eager"].outputs
    report.reset()
    for name in [name for name in calls if name not in ("eager", "kevolve")]:
        try:
            with spending(row, name), _quiet(name == "max_autotune"):
                prepared[name] = session.clock.prepare(calls[name])
        except Exception as error:  # noqa: BLE001 - a compiler that refuses a case is a result, not the end of the run
            row["failures"][name] = f"{type(error).__name__}: {error}"[:500]
    started = time.time()
    with spending(row, "kevolve"):
        prepared["kevolve"] = session.clock.prepare(calls["kevolve"])
    row |= search_row(row["seconds"]["kevolve"]) | trials_since(Store.open(session.store), started)
    with spending(row, "comparison"):
        for name in [name for name in prepared if name != "eager"]:
            row["disagreements"][name] = disagreement(expected, prepared[name].outputs, instance, exactly(instance))
    row["peak_bytes"] = {name: session.clock.peak_bytes(call) for name, call in calls.items() if name in prepared}
    row["replayed"] = all(entry.replayed for entry in prepared.values())
    with spending(row, "timing"):
        row |= measured(prepared, instance, session.clock, session.ceilings, session.limits, row["swapped"] > 0)


def measured(
    prepared: Mapping[str, Prepared], instance: Instance, clock: Clock, ceilings: Ceilings, limits: Limits,
    swapped: bool,
) -> dict[str, Any]:  # fmt: skip
    """Times, floor and ratios. What was swapped and seems to lose is timed once more, longer; then that counts."""
    if instance.flops:
        clock.measure_flops(ceilings, instance.flops_dtype)
    outputs = tensors(prepared["eager"].outputs)
    least_bytes = instance.least_bytes or _size_bytes((*instance.inputs, *outputs))
    row: dict[str, Any] = {"floor_us": ceilings.floor_us(least_bytes, instance.flops, instance.flops_dtype)}
    row["times_us"] = clock.medians_us(prepared, limits.timing_s, limits.rounds)
    row |= _ratios(row)
    if swapped and row["speedup"] < LOSS:
        rounds = (2 * limits.rounds[0], 4 * limits.rounds[1])
        row["times_us"] = clock.medians_us(prepared, 4 * limits.timing_s, rounds)
        row |= _ratios(row) | {"measured_again": True}
    return row


@contextmanager
def spending(row: dict[str, Any], what: str) -> Iterator[None]:
    """Counts the seconds under ``row["seconds"]``."""
    started = time.perf_counter()
    try:
        yield
    finally:
        row["seconds"][what] = row["seconds"].get(what, 0.0) + time.perf_counter() - started


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


def _compilations(instance: Instance, session: Session) -> dict[str, Callable[[], Any]]:
    function = instance.function
    compiled = {"eager": function, "inductor": torch.compile(function, dynamic=False)}
    if session.autotune:
        compiled["max_autotune"] = torch.compile(function, dynamic=False, mode="max-autotune-no-cudagraphs")
    compiled["kevolve"] = torch.compile(function, backend=kevolve, dynamic=False, options=session.options())
    return {name: bound(call, instance) for name, call in compiled.items()}


def bound(function: Callable[..., Any], instance: Instance) -> Callable[[], Any]:
    """``function`` on the instance's inputs; where something is trained, one step."""
    if instance.trained:
        return _bound_training(function, instance)
    return lambda: function(*instance.inputs)


def exactly(instance: Instance) -> Callable[[], Any]:
    """The same in float64."""
    inputs = tuple(tensor.double() if tensor.is_floating_point() else tensor for tensor in instance.inputs)
    return bound(instance.function, replace(instance, inputs=inputs))


def _bound_training(function: Callable[..., Any], instance: Instance) -> Callable[[], Any]:
    """The outputs, then the gradients for a random gradient of the outputs, the same for every compiler."""
    inputs = [
        tensor.detach().requires_grad_() if position in instance.trained else tensor
        for position, tensor in enumerate(instance.inputs)
    ]
    gradients: list[Tensor] = []

    def step() -> tuple[Tensor, ...]:
        with torch.enable_grad():
            outputs = tensors(function(*inputs))
            if not gradients:
                generator = torch.Generator(outputs[0].device).manual_seed(0)
                gradients.extend(_normal_like(output, generator) for output in outputs)
            found = torch.autograd.grad(outputs, [inputs[position] for position in instance.trained], gradients)
        return (*(output.detach() for output in outputs), *found)

    return step


def _normal_like(output: Tensor, generator: torch.Generator) -> Tensor:
    # Values that every dtype holds.
    values = torch.randn(output.shape, generator=generator, device=output.device)
    return values.bfloat16().to(output.dtype)


def search_row(compile_s: float) -> dict[str, Any]:
    """What the search did, from the report of the compile that just ran."""
    run = report.last_run()
    regions = run.regions
    return {
        "compile_s": compile_s,
        "search_s": sum(region.search_s for region in regions),
        "trials": sum(region.trials for region in regions),
        "searched": run.searched,
        "swapped": sum(region.kernel_us is not None for region in regions),
        "verdicts": [f"{region.title}: {region.verdict}" for region in regions],
        "graphs": [graph.verdict for graph in run.graph_verdicts],
        "rejections": [f"{family}: {message}" for family, _, message in run.rejections],
    }


def trials_since(store: Store, started: float) -> dict[str, Any]:
    """How the trials of the regions decided since then ended, and in words those that were wrong."""
    rows = [row for entry in store.entries() if entry.created >= started for row in store.trials(entry.key)]
    wrong = []
    for row in rows:
        evaluation = from_json(row.evaluation) if row.evaluation is not None else None
        if isinstance(evaluation, Mismatch | Crashed):
            wrong.append(f"{dict(row.schedule)}: {explain(evaluation)}"[:500])
    return {"outcomes": dict(Counter(row.status for row in rows)), "wrong": wrong}


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


def described(inputs: tuple[Tensor, ...]) -> list[str]:
    """Shapes and dtypes, equal neighbours counted: ``64 x float32[65536]``. Strides are given where they say more."""
    found: list[tuple[str, int]] = []
    for tensor in inputs:
        text = f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"
        if not tensor.is_contiguous():
            text += f" strides {list(tensor.stride())}"
        if found and found[-1][0] == text:
            found[-1] = (text, found[-1][1] + 1)
        else:
            found.append((text, 1))
    return [text if count == 1 else f"{count} x {text}" for text, count in found]


def _size_bytes(several: tuple[Tensor, ...]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in several)
