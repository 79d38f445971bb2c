"""One region's schedules: emitted, built side by side, compared with eager, timed. See ``sweep.py``."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures import TimeoutError as NotYet
from dataclasses import dataclass
from functools import partial
from typing import Any, TextIO

import torch

from kevolve_inductor.evaluate.baselines import compile_inductor, decomposed
from kevolve_inductor.evaluate.gate import check_kernel
from kevolve_inductor.evaluate.inputs import GRAPH, generate
from kevolve_inductor.exc import BuildError, EmissionError, KevolveError, ResourceError
from kevolve_inductor.graph.capture import canonical_kernel
from kevolve_inductor.graph.discovery import Found
from kevolve_inductor.graph.reference import to_graph_module
from kevolve_inductor.graph.region import Region
from kevolve_inductor.kernel import Kernel
from kevolve_inductor.platforms import executor_for, platform_for
from kevolve_inductor.platforms.build_folder import build_folder
from kevolve_inductor.platforms.executor import Call, Executor, Resources
from kevolve_inductor.platforms.platform import Target
from kevolve_inductor.platforms.triton_build import SHARED_LIMITS, compile_for

# How long a kernel is waited for when it is its turn; it was begun before.
_BUILD_LIMIT_S = 30.0
_ROUNDS, _LAST_ROUNDS, _LAST = 7, 41, 12
_LOOSE, _TIGHT = 3e-2, 1e-3


@dataclass(frozen=True)
class Planned:
    """A kernel to be tried, in which place, and where its schedule is from: a seed, the default, or drawn."""

    order: int
    origin: str
    schedule: dict[str, Any]
    kernel: Kernel


@dataclass(frozen=True)
class Sweep:
    """Kernels of ``found`` whose digests are not ``known``; rows are appended to ``file``, one JSON object a line."""

    case: str
    found: Found
    count: int
    seed: int
    known: set[str]
    file: TextIO

    @property
    def region(self) -> Region:
        return self.found.captured.region

    def planned(self, target: Target) -> Iterator[Planned]:
        """Each kernel once."""
        match, family = self.found.match, self.found.family
        space = family.space(match, target)
        seeds = [("seed", {**space.default, **seed}) for seed in space.seeds]
        generator, digests = random.Random(self.seed), set(self.known)
        drawn = (("random", {k: generator.choice(v) for k, v in space.choices.items()}) for _ in range(self.count))
        for order, (origin, schedule) in enumerate([*seeds, ("default", space.default), *drawn]):
            try:
                kernel = canonical_kernel(family.emit(match, schedule, "triton"), match.inputs)
            except EmissionError:
                continue
            if kernel.digest not in digests:
                digests.add(kernel.digest)
                check_kernel(kernel)
                yield Planned(order, origin, schedule, kernel)

    def write(self, digest: str, **values: Any) -> None:
        row = {"case": self.case, "region": self.found.title, "digest": digest, **values}
        self.file.write(json.dumps(row) + "\n")
        self.file.flush()

    def begin(self, one: Planned, status: str, **values: Any) -> None:
        self.write(one.kernel.digest, order=one.order, origin=one.origin, schedule=one.schedule, time_us=None,
                   family=self.found.family.name, status=status, **values)  # fmt: skip

    def run(self, jobs: int, deadline: float) -> bool:
        """False where a kernel has made the device unusable for this process."""
        runner = _Runner(self)
        for one, built in self.built(platform_for("cuda").target(), jobs, deadline):
            if not runner.run(one, built):
                return False
        return runner.settle()

    def built(self, target: Target, jobs: int, deadline: float) -> Iterator[tuple[Planned, Resources]]:
        """Kernels in the order of the search, as they get ready; why others do not is written here."""
        planned = list(self.planned(target))
        with _Builders(jobs, self.region, target.features[0]) as builders:
            builders.start(planned)
            for one in planned:
                if time.monotonic() > deadline:
                    return
                built = builders.result(one, deadline)
                if isinstance(built, Resources):
                    yield one, built
                else:
                    self.begin(one, *built)


class _Builders:
    """Processes that fill Triton's cache. Those that are still at it when this is left are ended."""

    def __init__(self, jobs: int, region: Region, target: str) -> None:
        self._pool = ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"))
        self._build = partial(_build, region=region, target=target)
        self._futures: dict[str, Future[Resources | tuple[str]]] = {}

    def __enter__(self) -> _Builders:
        return self

    def __exit__(self, *_: object) -> None:
        processes = list((self._pool._processes or {}).values())
        self._pool.shutdown(wait=False, cancel_futures=True)
        for process in processes:
            process.kill()

    def start(self, planned: Sequence[Planned]) -> None:
        for one in planned:
            self._futures[one.kernel.digest] = self._pool.submit(self._build, one.kernel)

    def result(self, one: Planned, deadline: float) -> Resources | tuple[str]:
        """What it takes, or why there is nothing to run."""
        limit_s = min(_BUILD_LIMIT_S, max(0.1, deadline - time.monotonic()))
        try:
            return self._futures[one.kernel.digest].result(limit_s)
        except NotYet:
            return ("slow build",)


def _build(kernel: Kernel, region: Region, target: str) -> Resources | tuple[str]:
    torch.set_num_threads(1)
    try:
        return compile_for(kernel, region, target, build_folder())
    except ResourceError:
        return ("too large",)
    except BuildError as error:
        return (f"not built: {error}"[:300],)


class _Runner:
    """Runs and times kernels on this process's GPU."""

    def __init__(self, sweep: Sweep) -> None:
        self.sweep = sweep
        self.executor: Executor = executor_for("cuda")
        found = sweep.found
        self.symbols = found.workload.symbols
        self.inputs = generate(sweep.region, found.workload, GRAPH, 0, self.executor.device)
        module = to_graph_module(sweep.region)
        with torch.no_grad():
            self.expected = list(module(*self.inputs))
        self._timed: dict[str, Call] = {}
        self._times: dict[str, float] = {}
        self._baselines()

    def _baselines(self) -> None:
        for name, make in (("eager", self._eager), ("inductor", self._inductor)):
            if name in self.sweep.known:
                continue
            try:
                with torch.no_grad():
                    time_us = self._time(self.executor.timed(make()))
            except RuntimeError as error:
                print(f"{self.sweep.case}: no time of {name}: {error}", file=sys.stderr)
                continue
            self.sweep.write(name, order=-1, origin="baseline", schedule={}, status="baseline", time_us=time_us)

    def _eager(self) -> Call:
        return partial(to_graph_module(self.sweep.region), *self.inputs)

    def _inductor(self) -> Call:
        module = decomposed(to_graph_module(self.sweep.region), self.inputs)
        return partial(compile_inductor(module, self.inputs, {"compile_threads": 1}), self.inputs)

    def _time(self, call: Call) -> float:
        return statistics.median(self.executor.measure([call], _ROUNDS, cold=True)[0])

    def run(self, one: Planned, built: Resources) -> bool:
        """False where the device is lost."""
        figures = {"registers": built.registers, "spills": built.spills, "shared_bytes": built.shared_bytes}
        self.sweep.begin(one, "fault", **figures)
        outputs = [torch.full_like(value, 113) for value in self.expected]
        digest = one.kernel.digest
        try:
            compiled = self.executor.load(one.kernel, self.sweep.region, build_folder())
            call = partial(compiled, self.inputs, outputs, list(self.symbols.values()))
            call()
            self.executor.synchronize()
            worst = max(map(distance, outputs, self.expected))
            call_us = self._time(self.executor.timed(call))
        except KevolveError as error:
            self.sweep.write(digest, status=f"refused: {error}"[:200])
            return True
        except RuntimeError as error:
            self.sweep.write(digest, status="fault", message=str(error)[:300])
            return False
        agrees = worst <= (_LOOSE if any(v.element_size() == 2 for v in (*self.inputs, *outputs)) else _TIGHT)
        self.sweep.write(digest, status="ok" if agrees else "disagrees", worst=worst, time_us=call_us)
        if agrees:
            self._timed[digest], self._times[digest] = call, call_us
            self._forget()
        return True

    def _forget(self) -> None:
        """What will not be timed again need not keep its outputs."""
        best = sorted(self._times, key=self._times.__getitem__)[:_LAST]
        self._timed = {digest: self._timed[digest] for digest in best}

    def settle(self) -> bool:
        """Times the best ones once more, in turn."""
        calls = [self.executor.timed(call) for call in self._timed.values()]
        for digest, times in zip(self._timed, self.executor.measure(calls, _LAST_ROUNDS, cold=True), strict=True):
            self.sweep.write(digest, time_us=statistics.median(times))
        return True


def distance(output: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference, as a part of the largest magnitude; of integers, the part that differs."""
    if not expected.is_floating_point():
        return float((output != expected).double().mean()) if expected.numel() else 0.0
    if not expected.numel():
        return 0.0
    finite = expected.isfinite()
    apart = torch.where(finite, (output.double() - expected.double()).abs(), 0.0).nan_to_num(float("inf")).max()
    return float(apart / torch.where(finite, expected, 0).double().abs().max().clamp_min(1e-30))


def compile_only(sweep: Sweep, target: str, jobs: int, deadline: float) -> None:
    """Rows with what each kernel takes, on a machine without the chip."""
    place = Target("cuda", target, (target,), threads=0, units=132, shared_bytes=SHARED_LIMITS[target], warp_size=32)
    for one, built in sweep.built(place, min(jobs, os.cpu_count() or 1), deadline):
        blocks = built.occupancy.blocks if built.occupancy else None
        sweep.begin(one, "ok", registers=built.registers, spills=built.spills, blocks=blocks,
                    shared_bytes=built.shared_bytes)  # fmt: skip
