"""What a worker knows of the region at hand: the bench runs and times candidates, the referee knows what is right."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch

from ..exc import ResourceError, WorkerError
from ..graph.reference import to_graph_module
from ..kernel import Kernel
from ..platforms.executor import Call, CompiledKernel, Executor
from ..platforms.platform import Ceilings
from ..platforms.profile import Profile
from .build import Built, build
from .correctness import Agreed, Judge, NoReference
from .diagnosis import diagnose, least_bytes
from .evaluation import Crashed, Evaluation, Mismatch, Passed, Refused, ResourceFailed, to_json
from .footprint import most_workspace_bytes, needed_bytes, workspace_bytes
from .guarded import Suspect, read_outputs, write_outputs
from .inputs import generate, named, timed_inputs
from .job import ApplyJob, JudgeJob, OpenJob, ProfileJob, RunJob, TimeJob
from .timing import Contest, Rotation, Timing

_CEILING_SLACK = 1.05
# References that the referee keeps for the next candidate, of the memory that is free.
_REMEMBERED_SHARE = 0.1
# Below this multiple of the last-level cache, part of the data may still be in it.
_BEYOND_CACHES = 4
# From this speedup on the floor must allow it, wherever the data may be: the caches are emptied before each call.
_SUSPICIOUS = 10.0


class BenchSession:
    """Never sees an expected output of the inputs that candidates are checked on."""

    def __init__(self, job: OpenJob, seed: int, executor: Executor, folder: Path) -> None:
        self._region, self._workload = job.region, job.workload
        self._symbols = job.workload.symbols
        self._executor, self._folder, self._seed = executor, folder, seed
        self._built: dict[str, Built] = {}
        self._failures: dict[str, str] = {}
        names = timed_inputs(self._region, self._workload)
        self._inputs = [generate(self._region, self._workload, name, seed, executor.device) for name in names]
        self._skip = job.skip

    @cached_property
    def _contest(self) -> Contest:
        return Contest(self._executor, self._baseline_calls(self._skip))

    def baselines(self) -> dict[str, Any]:
        return {"times_us": self._contest.known_us, "failures": self._failures}

    def _baseline_calls(self, skip: Sequence[str]) -> dict[str, Call]:
        makers: Mapping[str, Callable[[], list[Call]]] = {"eager": self._eager, "inductor": self._inductor}
        calls: dict[str, Call] = {}
        for name, make in makers.items():
            if name in skip:
                self._failures[name] = "ended the worker process"
                continue
            try:
                calls[name] = self._in_turn(make())
            except Exception as error:  # noqa: BLE001 - a compiler's failure of any kind leaves one baseline fewer
                self._failures[name] = f"{type(error).__name__}: {error}"[:500]
        return calls

    def _in_turn(self, calls: Sequence[Call]) -> Call:
        return Rotation([self._executor.timed(call) for call in calls])

    def _eager(self) -> list[Call]:
        module = to_graph_module(self._region, self._executor.device, self._symbols)

        def on(inputs: list[torch.Tensor]) -> Call:
            def call() -> object:
                with torch.no_grad():
                    return module(*inputs)

            return call

        return [on(inputs) for inputs in self._inputs]

    def _inductor(self) -> list[Call]:
        # Loads Inductor, which takes longer than most candidates' whole judgement.
        from .baselines import compile_inductor, decomposed

        example = self._inputs[0]
        module = decomposed(to_graph_module(self._region, self._executor.device, self._symbols), example)
        # One region has few kernels, and Inductor's pool of compilers takes seconds to start.
        compiled = compile_inductor(module, example, {"compile_threads": 1})
        return [partial(compiled, inputs) for inputs in self._inputs]

    def run(self, job: RunJob) -> dict[str, Any]:
        built = self._build(job.kernel)
        if not isinstance(built, Built):
            return {"evaluation": to_json(built)}
        inputs = generate(self._region, self._workload, job.distribution, self._seed, self._executor.device)
        symbols = named(job.distribution, self._workload)[1].symbols
        too_large = self._too_large(job.kernel, symbols)
        if too_large is not None:
            return {"evaluation": to_json(too_large)}
        try:
            suspect = Suspect(built.compiled, job.kernel.workspaces, self._region, symbols, self._executor)
            result = suspect.run(inputs, job.distribution)
        except (ResourceError, RuntimeError) as error:
            return {"evaluation": to_json(self._broken_off(error))}
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

    def _too_large(self, kernel: Kernel, symbols: dict[str, int]) -> ResourceFailed | None:
        """What no attempt is needed for; one would be taken for a crash, and cost the process."""
        needed, allowed = workspace_bytes(kernel, symbols), self._executor.free_bytes()
        if kernel.language == "triton":
            allowed = min(allowed, most_workspace_bytes(self._region, symbols))
        return ResourceFailed("bytes of workspace", needed, allowed) if needed > allowed else None

    def time(self, job: TimeJob) -> dict[str, Any]:
        built = self._build(job.kernel)
        if not isinstance(built, Built):
            return {"evaluation": to_json(built)}
        if not self._contest.known_us:
            return {"evaluation": to_json(Refused("baselines", f"none could be measured: {self._failures}"))}
        too_large = self._too_large(job.kernel, self._symbols)
        if too_large is not None:
            return {"evaluation": to_json(too_large)}
        try:
            candidate = self._in_turn([self._candidate(built.compiled, inputs) for inputs in self._inputs])
            timing = self._contest.time(candidate, job.decide_at)
        except (ResourceError, RuntimeError) as error:
            # A kernel that is timed before it was checked may do anything.
            return {"evaluation": to_json(self._broken_off(error))}
        if job.decide_at is not None and timing.too_noisy_for(job.decide_at):
            interval = f"{timing.speedup_low:.2f} to {timing.speedup_high:.2f} after {timing.rounds} rounds"
            return {
                "evaluation": to_json(Refused("noise", f"the speedup is {interval}, {job.decide_at:.2f} is asked for"))
            }
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

    def _broken_off(self, error: ResourceError | RuntimeError) -> ResourceFailed | Crashed:
        if isinstance(error, ResourceError):
            return ResourceFailed(error.resource, error.needed, error.available)
        if isinstance(error, torch.OutOfMemoryError):
            # That others hold so much says nothing against the kernel.
            needed, free = needed_bytes(self._region, self._symbols), self._executor.free_bytes()
            return ResourceFailed("bytes of memory", needed, free)
        return Crashed(None, str(error)[:500])

    def profile(self, job: ProfileJob) -> dict[str, Any]:
        built = self._build(job.kernel)
        if not isinstance(built, Built):
            return {"evaluation": to_json(built)}
        try:
            call = self._executor.timed(self._candidate(built.compiled, self._inputs[0]))
            profile = self._executor.profile(built.compiled, call)
        except (RuntimeError, OSError, ValueError) as error:
            # A profiler that fails says nothing against the kernel.
            profile = Profile.without("profiler", f"{type(error).__name__}: {error}"[:500])
        return {"profile": asdict(profile)}

    def show(self, kernel: Kernel) -> None:
        """Run ``kernel`` before the eyes of a tool that watches this process. Raises ``WorkerError`` where it cannot."""
        built = self._build(kernel)
        if not isinstance(built, Built):
            raise WorkerError(f"the kernel to be watched was not built: {built}")
        self._executor.show(self._candidate(built.compiled, self._inputs[0]))

    def _candidate(self, compiled: CompiledKernel, inputs: list[torch.Tensor]) -> Call:
        """The kernel as a compiled graph will call it: outputs are allocated on every call."""
        executor, symbols = self._executor, self._symbols
        values = [symbols[name] for name in self._region.symbol_names]
        allocations = [executor.allocation(spec, symbols) for spec in self._region.output_specs]

        def call() -> object:
            outputs = [allocate() for allocate in allocations]
            compiled(inputs, outputs, values)
            return outputs

        return call

    def _too_fast(self, timing: Timing, ceilings: Ceilings) -> Refused | None:
        # Only bytes: a kernel may well do less arithmetic than the region says, by doing it in another order.
        moved = least_bytes(self._region, self._symbols)
        if moved <= _BEYOND_CACHES * self._executor.last_level_bytes() and timing.speedup <= _SUSPICIOUS:
            return None
        achieved = moved / (timing.latency_us / 1e6)
        if achieved <= _CEILING_SLACK * ceilings.bytes_per_s:
            return None
        # A ceiling that was measured while the machine was busy is too low: it must hold now.
        limit = max(ceilings.bytes_per_s, recorded_ceilings(self._executor, self._folder, again=True).bytes_per_s)
        # A copy turns between reading and writing; what mostly reads may be faster, though never than memory's clock.
        if achieved <= max(_CEILING_SLACK * limit, self._executor.bus_bytes_per_s()):
            return None
        return Refused("ceiling", f"moves {achieved / 1e9:.1f} GB/s where {limit / 1e9:.1f} GB/s was measured")


class RefereeSession:
    """Never runs a candidate."""

    def __init__(self, job: OpenJob, seed: int, executor: Executor) -> None:
        self._region, self._workload, self._device = job.region, job.workload, executor.device
        remembered = int(_REMEMBERED_SHARE * executor.free_bytes())
        self._judge = Judge(job.region, job.workload, seed, executor.device, remembered)
        if executor.device.type != "cpu":
            # A GPU's driver loads each of a hundred small kernels when it is first called. Now nobody waits for that: the
            # bench is building its baselines.
            self._judge.rehearse()

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
