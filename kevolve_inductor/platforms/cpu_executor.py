"""Running and timing on the CPU."""

from __future__ import annotations

import ctypes
import math
import mmap
import resource
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ..graph.region import Region
from ..kernel import Kernel
from .cpu import BuiltCpp, CpuPlatform, compile_cpp, last_level_cache_bytes, measured_ceilings
from .cpu_profile import profile_threads
from .disassembly import read_machine_code
from .executor import Call, CompiledKernel, Executor, Resources
from .free_memory import free_memory_bytes
from .platform import Ceilings
from .profile import Profile

_FLUSH_CACHES = 2
_WARM_UP_CALLS = 2
_TRIES = 4
# About the scheduler's time slice: on a busy machine a call that takes longer is disturbed however often it is tried.
_SLICE_US = 20e3
# Wide enough for indices that are wrong by whole rows; it takes addresses, no memory.
_FENCE_BYTES = 2**26
_PROT_NONE = 0


# Deeper than the interpreter's frames between two calls differ, and than a kernel's variables reach.
_DIRTY_STACK = r"""
#include <cstdint>
static __attribute__((noinline)) void dirty(int byte) {
  volatile uint8_t held[1 << 18];
  for (uint8_t volatile& one : held) one = uint8_t(byte);
}
extern "C" __attribute__((visibility("default"))) void dirty_stacks(int byte) {
#pragma omp parallel
  dirty(byte);
}
"""


@dataclass(frozen=True)
class CpuKernel:
    built: BuiltCpp
    resources: Resources = Resources()

    def __call__(
        self, inputs: Sequence[torch.Tensor], outputs: Sequence[torch.Tensor], symbols: Sequence[int],
        workspaces: Sequence[torch.Tensor] | None = None,
    ) -> None:  # fmt: skip
        self.built.call(*inputs, *outputs, *symbols, *(workspaces or ()))

    def machine_code(self) -> Profile:
        return read_machine_code(self.built.path)


class CpuExecutor(Executor):
    def __init__(self) -> None:
        self.device = torch.device("cpu")
        self._dirty_stacks: Callable[[int], None] | None = None

    def load(self, kernel: Kernel, region: Region, folder: Path) -> CpuKernel:
        if self._dirty_stacks is None:
            self._dirty_stacks = ctypes.CDLL(str(compile_cpp(_DIRTY_STACK, folder, checked=False))).dirty_stacks
        return CpuKernel(CpuPlatform().build(kernel, region, folder))

    def timed(self, call: Call) -> Call:
        for _ in range(_WARM_UP_CALLS):
            call()
        return call

    def measure(self, timed: Sequence[Call], rounds: int, cold: bool) -> list[list[float]]:
        times: list[list[float]] = [[] for _ in timed]
        for turn in range(rounds):
            for step in range(len(timed)):
                which = (turn + step) % len(timed)
                times[which].append(self._sample_us(timed[which], cold))
        return times

    def _sample_us(self, call: Call, cold: bool) -> float:
        """One call's time; a short one's again, a few times at most, where another process took a processor away meanwhile."""
        least_disturbed, sample_us = math.inf, 0.0
        for _ in range(_TRIES):
            if cold:
                self._flush()
            switches = resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw
            start = time.perf_counter_ns()
            result = call()
            taken_us = (time.perf_counter_ns() - start) / 1e3
            disturbed = resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw - switches
            del result
            if disturbed < least_disturbed:
                least_disturbed, sample_us = disturbed, taken_us
            if disturbed == 0 or taken_us > _SLICE_US:
                break
        return sample_us

    def _flush(self) -> None:
        if self._flushed is None:
            self._flushed = torch.zeros(_FLUSH_CACHES * last_level_cache_bytes() // 4)
        # Through torch's threads, so that every core's own caches are emptied as well as the shared one.
        self._flushed.add_(1.0)

    def synchronize(self) -> None:
        pass

    def dirty_stacks(self, byte: int) -> None:
        if self._dirty_stacks is not None:
            self._dirty_stacks(byte)

    def fenced(self, size: int) -> torch.Tensor:
        pages = max(1, -(-size // mmap.PAGESIZE)) * mmap.PAGESIZE
        memory = mmap.mmap(-1, pages + 2 * _FENCE_BYTES)
        whole = torch.frombuffer(memory, dtype=torch.uint8)
        protect = ctypes.CDLL(None, use_errno=True).mprotect
        protect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
        for start in (0, _FENCE_BYTES + pages):
            if protect(whole.data_ptr() + start, _FENCE_BYTES, _PROT_NONE) != 0:
                raise OSError(ctypes.get_errno(), "memory could not be protected")
        return whole[_FENCE_BYTES : _FENCE_BYTES + pages]

    def last_level_bytes(self) -> int:
        return last_level_cache_bytes()

    def free_bytes(self) -> int:
        return free_memory_bytes()

    def ceilings_now(self) -> Ceilings:
        return measured_ceilings()

    def profile(self, compiled: CompiledKernel, call: Call) -> Profile:
        return profile_threads(self, call) | compiled.machine_code()
