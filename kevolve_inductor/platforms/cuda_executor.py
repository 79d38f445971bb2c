"""Running and timing on an NVIDIA GPU."""

from __future__ import annotations

import gc
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..exc import BuildError
from ..graph.region import Region
from ..kernel import Kernel
from .cuda import architecture, device_name, launch_functions, measured_ceilings
from .cuda_profile import profile_launches
from .executor import Call, CompiledKernel, Executor, Resources
from .platform import Ceilings
from .profile import Profile
from .triton_build import compile_for, load_triton
from .turns import turn_on

# More than the cache: clearing it must also take longer than submitting what is timed next.
_FLUSH_CACHES = 4
_WARM_UP_CALLS = 3
# What clearing the cache takes at least.
_LEAST_FLUSH_S = 30e-6


@dataclass(frozen=True)
class CudaKernel:
    kernel: Kernel
    functions: tuple[Any, ...]
    symbol_names: tuple[str, ...]
    resources: Resources

    def __call__(
        self, inputs: Sequence[torch.Tensor], outputs: Sequence[torch.Tensor], symbols: Sequence[int],
        workspaces: Sequence[torch.Tensor] | None = None,
    ) -> None:  # fmt: skip
        named = dict(zip(self.symbol_names, symbols, strict=True))
        launch_functions(self.kernel, self.functions, inputs, outputs, named, workspaces)

    def machine_code(self) -> Profile:
        """The compiler's report is all there is; see ``resources``."""
        return Profile()


class CudaExecutor(Executor):
    submits_ahead = True

    def __init__(self) -> None:
        self.device = torch.device("cuda", torch.cuda.current_device())

    def load(self, kernel: Kernel, region: Region, folder: Path) -> CudaKernel:
        if kernel.language != "triton":
            raise BuildError("language", f"{kernel.language} kernels do not run on a GPU")
        # Compiled ahead of the first launch: the resources are known, and the launch finds the code in Triton's cache.
        resources = compile_for(kernel, region, architecture(), folder)
        return CudaKernel(kernel, tuple(load_triton(kernel, folder)), region.symbol_names, resources)

    def timed(self, call: Call) -> Call:
        """A captured graph's replay; the call itself where it synchronises and cannot be captured."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UP_CALLS):
                call()
        torch.cuda.current_stream().wait_stream(stream)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                kept = call()
        except RuntimeError:
            torch.cuda.synchronize()
            return call
        return _Replay(graph, kept)

    def measure(self, timed: Sequence[Call], rounds: int, cold: bool) -> list[list[float]]:
        with turn_on(device_name()):
            return self._measure(timed, rounds, cold)

    def _measure(self, timed: Sequence[Call], rounds: int, cold: bool) -> list[list[float]]:
        events: list[list[tuple[Any, Any]]] = [[] for _ in timed]
        for turn in range(rounds):
            for step in range(len(timed)):
                which = (turn + step) % len(timed)
                start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
                for _ in range(math.ceil(self.head_start_s / _LEAST_FLUSH_S)):
                    self._flush()
                if cold:
                    # Also keeps the GPU busy while the replay is being submitted, so that only the replay is timed.
                    self._flush()
                start.record()
                timed[which]()
                end.record()
                events[which].append((start, end))
        torch.cuda.synchronize()
        return [[start.elapsed_time(end) * 1e3 for start, end in row] for row in events]

    def _flush(self) -> None:
        if self._flushed is None:
            size = _FLUSH_CACHES * self.last_level_bytes()
            self._flushed = torch.empty(size, dtype=torch.uint8, device=self.device)
        self._flushed.zero_()

    def synchronize(self) -> None:
        torch.cuda.synchronize()

    def last_level_bytes(self) -> int:
        return int(torch.cuda.get_device_properties().L2_cache_size)

    def free_bytes(self) -> int:
        return int(torch.cuda.mem_get_info()[0])

    def peak_bytes(self, call: Call) -> int | None:
        # What earlier calls left in cycles would be freed during this one, and hide as much.
        gc.collect()
        torch.cuda.synchronize()
        held = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        kept = call()
        torch.cuda.synchronize()
        del kept
        return int(torch.cuda.max_memory_allocated() - held)

    def bound_memory(self, share: float) -> int:
        allowed = super().bound_memory(share)
        torch.cuda.set_per_process_memory_fraction(allowed / torch.cuda.mem_get_info()[1], self.device)
        return allowed

    def ceilings_now(self) -> Ceilings:
        return measured_ceilings()

    def bus_bytes_per_s(self) -> float:
        from triton.testing import get_dram_gbps

        return 1e9 * float(get_dram_gbps())

    def profile(self, compiled: CompiledKernel, call: Call) -> Profile:
        return profile_launches(call, compiled.resources)

    def show(self, call: Call) -> None:
        call()
        torch.cuda.synchronize()
        torch.cuda.profiler.start()
        call()
        torch.cuda.synchronize()
        torch.cuda.profiler.stop()


@dataclass(frozen=True)
class _Replay:
    """Keeps what the captured graph writes to alive."""

    graph: torch.cuda.CUDAGraph
    kept: object

    def __call__(self) -> object:
        self.graph.replay()
        return self.kept
