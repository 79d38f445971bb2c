"""What a worker knows of the region at hand: the bench runs and times candidates, the referee knows what is right."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from ..exc import ResourceError
from ..graph.reference import to_graph_module
from ..kernel import Kernel
from ..platforms.executor import Call, CompiledKernel, Executor
from ..platforms.platform import Ceilings
from .build import Built, build
from .correctness import Agreed, Judge, NoReference
from .diagnosis import diagnose, least_bytes
from .evaluation import Crashed, Evaluation, Mismatch, Passed, Refused, ResourceFailed, to_json
from .guarded import read_outputs, run_guarded, write_outputs
from .inputs import TIMED, generate, named
from .job import ApplyJob, JudgeJob, OpenJob, RunJob, TimeJob
from .timing import Contest, Timing

_CEILING_SLACK = 1.05
# Below this multiple of the last-level cache, part of the data may still be in it.
_BEYOND_CACHES = 4


class BenchSession:
    """Never sees an expected output of the inputs that candidates are checked on."""

    def __init__(self, job: OpenJob, seed: int, executor: Executor, folder: Path) -> None:
        self._region, self._workload = job.region, job.workload
        self._symbols = job.workload.symbols
        self._executor, self._folder, self._seed = executor, folder, seed
        self._built: dict[str, Built] = {}
        self._failures: dict[str, str] = {}
        self._inputs = generate(self._region, self._workload, TIMED, seed, executor.device)
        self._skip = job.skip

    @cached_property
    def _contest(self) -> Contest:
        return Contest(self._executor, self._baseline_calls(self._skip))

    def baselines(self) -> dict[str, Any]:
        return {"times_us": self._contest.known_us, "failures": self._failures}

    def _baseline_calls(self, skip: Sequence[str]) -> dict[str, Call]:
        makers: Mapping[str, Callable[[], Call]] = {"eager": self._eager, "inductor": self._inductor}
        calls: dict[str, Call] = {}
        for name, make in makers.items():
            if name in skip:
                self._failures[name] = "ended the worker process"
                continue
            try:
                calls[name] = self._executor.timed(make())
            except Exception as error:  # noqa: BLE001 - a compiler's failure of any kind leaves one baseline fewer
                self._failures[name] = f"{type(error).__name__}: {error}"[:500]
        return calls

    def _eager(self) -> Call:
        module, inputs = to_graph_module(self._region, self._executor.device, self._symbols), self._inputs

        def call() -> object:
            with torch.no_grad():
                return module(*inputs)

        return call

    def _inductor(self) -> Call:
        # Loads Inductor, which takes longer than most candidates' whole judgement.
        from .baselines import compile_inductor, decomposed

        inputs = self._inputs
        module = decomposed(to_graph_module(self._region, self._executor.device, self._symbols), inputs)
        compiled = compile_inductor(module, inputs)
        return lambda: compiled(inputs)

    def run(self, job: RunJob) -> dict[str, Any]:
        built = self._build(job.kernel)
        if not isinstance(built, Built):
            return {"evaluation": to_json(built)}
        inputs = generate(self._region, self._workload, job.distribution, self._seed, self._executor.device)
        symbols = named(job.distribution, self._workload)[1].symbols
        try:
            result = run_guarded(built.compiled, self._region, symbols, inputs, self._executor, job.distribution)
        except ResourceError as error:
            return {"evaluation": to_json(ResourceFailed(error.resource, error.needed, error.available))}
        except RuntimeError as error:
            return {"evaluation": to_json(Crashed(None, str(error)[:500]))}
        if isinstance(result, Mismatch):
            return {"evaluation": to_json(result)}
        if not result.raised:
            write_outputs(result, Path(job.outputs))
        return {"raised": result.raised, "build_s": built.build_s}

    def _build(self, kernel: Kernel) -> Built | Evaluation:
        if kernel.digest not in self._built:
            built = build(kernel, self._region, self._executor, self._folder)
            if not isinstance(built, Built):
                return built
            self._built = {kernel.digest: built}
        return self._built[kernel.digest]

    def time(self, job: TimeJob) -> dict[str, Any]:
        built = self._build(job.kernel)
        if not isinstance(built, Built):
            return {"evaluation": to_json(built)}
        if not self._contest.known_us:
            return {"evaluation": to_json(Refused("baselines", f"none could be measured: {self._failures}"))}
        timing = self._contest.time(self._executor.timed(self._candidate(built.compiled)), job.decide_at)
        ceilings = recorded_ceilings(self._executor, self._folder)
        refusal = self._too_fast(timing, ceilings)
        if refusal is not None:
            return {"evaluation": to_json(refusal)}
        diagnosis = diagnose(self._region, self._symbols, timing.latency_us, ceilings, built.compiled.resources)
        passed = Passed(
            timing.latency_us,
            timing.baselines_us,
            timing.speedup,
            timing.speedup_low,
            job.max_error,
            diagnosis,
            job.build_s,
        )
        return {"evaluation": to_json(passed)}

    def _candidate(self, compiled: CompiledKernel) -> Call:
        """The kernel as a compiled graph will call it: outputs are allocated on every call."""
        executor, inputs, symbols = self._executor, self._inputs, self._symbols
        values = [symbols[name] for name in self._region.symbol_names]
        allocations = [executor.allocation(spec, symbols) for spec in self._region.output_specs]

        def call() -> object:
            outputs = [allocate() for allocate in allocations]
            compiled(inputs, outputs, values)
            return outputs

        return call

    def _too_fast(self, timing: Timing, ceilings: Ceilings) -> Refused | None:
        moved = least_bytes(self._region, self._symbols)
        if moved <= _BEYOND_CACHES * self._executor.last_level_bytes():
            return None
        achieved = moved / (timing.latency_us / 1e6)
        if achieved <= _CEILING_SLACK * ceilings.bytes_per_s:
            return None
        # A ceiling that was measured while the machine was busy is too low: it must hold now.
        limit = max(ceilings.bytes_per_s, recorded_ceilings(self._executor, self._folder, again=True).bytes_per_s)
        if achieved <= _CEILING_SLACK * limit:
            return None
        return Refused("ceiling", f"moves {achieved / 1e9:.1f} GB/s where {limit / 1e9:.1f} GB/s was measured")


class RefereeSession:
    """Never runs a candidate."""

    def __init__(self, job: OpenJob, seed: int, executor: Executor) -> None:
        self._region, self._workload, self._device = job.region, job.workload, executor.device
        self._judge = Judge(job.region, job.workload, seed, executor.device)

    def applies(self, job: ApplyJob) -> dict[str, Any]:
        return {"applies": self._judge.applies(job.distribution)}

    def judge(self, job: JudgeJob) -> dict[str, Any]:
        outputs = None
        if job.outputs is not None:
            symbols = named(job.distribution, self._workload)[1].symbols
            outputs = read_outputs(self._region, symbols, Path(job.outputs), self._device)
        match self._judge.judge(job.distribution, outputs):
            case Agreed(max_error=max_error):
                return {"max_error": max_error}
            case NoReference(reason=reason):
                return {"evaluation": to_json(Refused("reference", reason))}
            case Mismatch() as mismatch:
                return {"evaluation": to_json(mismatch)}


def recorded_ceilings(executor: Executor, folder: Path, again: bool = False) -> Ceilings:
    """The device's ceilings, measured once per build folder; measured ``again``, the higher of both figures counts."""
    path = folder / f"ceilings-{executor.device.type}.json"
    known = None
    try:
        known = Ceilings.from_json(json.loads(path.read_text()))
    except (OSError, ValueError, KeyError, TypeError):
        again = True
    if known is not None and not again:
        return known
    now = executor.ceilings_now()
    if known is not None:
        flops = {name: max(rate, known.flops_per_s.get(name, 0.0)) for name, rate in now.flops_per_s.items()}
        now = Ceilings(max(now.bytes_per_s, known.bytes_per_s), flops, min(now.launch_s, known.launch_s))
    temporary = path.with_suffix(f".{os.getpid()}")
    temporary.write_text(json.dumps(asdict(now)))
    os.replace(temporary, path)
    return now
