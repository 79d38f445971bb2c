"""Interleaved medians with a cold cache, and the ceilings that floors are computed from, on a CPU or a CUDA device."""

from __future__ import annotations

import ctypes
import statistics
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from kevolve_inductor.platforms import executor_for, platform_for
from kevolve_inductor.platforms.cuda import device_name
from kevolve_inductor.platforms.turns import turn_on

Call = Callable[[], Any]

# Seconds that a round waits for other processes' measurements.
_PATIENCE_S = 20.0
# Parameters of glibc's mallopt (malloc.h).
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4


@dataclass(frozen=True)
class Prepared:
    """A callable ready to be timed, what it returned, and whether it is replayed from a CUDA graph."""

    run: Call
    outputs: Any
    replayed: bool


@dataclass
class Ceilings:
    """What this device reaches now: bytes/s read and written by a large copy, flop/s of a large product by dtype."""

    bytes_per_s: float
    flops_per_s: dict[str, float] = field(default_factory=dict)

    def floor_us(self, least_bytes: int, flops: int, dtype: torch.dtype) -> float:
        memory_s = least_bytes / self.bytes_per_s
        compute_s = flops / self.flops_per_s[dtype_name(dtype)] if flops else 0.0
        return 1e6 * max(memory_s, compute_s)


class Clock(ABC):
    """Times callables on one device."""

    device: str

    @abstractmethod
    def prepare(self, call: Call) -> Prepared:
        """Warm ``call`` up."""

    @abstractmethod
    def time_once_us(self, prepared: Prepared) -> float:
        """One cold run."""

    @abstractmethod
    def chip(self) -> str: ...

    def usable(self) -> bool:
        """Whether the device still answers: a kernel that faulted may have ended it for this process."""
        return True

    def release_unused(self) -> None:
        """Give memory back that nothing holds, so that worker processes find it."""
        platform_for(self.device).release_unused()

    def turn(self) -> AbstractContextManager[object]:
        """While no other process that asks for a turn measures on this device."""
        return nullcontext()

    def peak_bytes(self, call: Call) -> int | None:
        """The most that one call holds at a time beyond what was held before; ``None`` where nothing counts it."""
        return None

    def medians_us(self, calls: Mapping[str, Prepared], limit_s: float, rounds: tuple[int, int]) -> dict[str, float]:
        """Median of each, interleaved in rotating order: between ``rounds`` many rounds, fewer once ``limit_s`` is spent."""
        names = list(calls)
        samples: dict[str, list[float]] = {name: [] for name in names}
        started = time.perf_counter()
        for turn in range(rounds[1]):
            if turn >= rounds[0] and time.perf_counter() - started > limit_s:
                break
            with self.turn():
                for position in range(len(names)):
                    name = names[(position + turn) % len(names)]
                    samples[name].append(self.time_once_us(calls[name]))
        return {name: statistics.median(times) for name, times in samples.items()}

    def measure_ceilings(self) -> Ceilings:
        numel = 2**26 if self.device == "cpu" else 2**30
        source = torch.randn(numel, device=self.device)
        target = torch.empty_like(source)
        # By a kernel, not by a copy: a captured copy becomes a transfer, which is slower than what kernels reach.
        copy_us = self._best_us(lambda: torch.neg(source, out=target))
        return Ceilings(2 * 4 * numel / (copy_us * 1e-6))

    def measure_flops(self, ceilings: Ceilings, dtype: torch.dtype) -> None:
        """Adds the rate of a square product in ``dtype`` unless it is known."""
        if dtype_name(dtype) in ceilings.flops_per_s:
            return
        size = 1024 if self.device == "cpu" else (4096 if dtype is torch.float32 else 8192)
        left, right = (torch.randn(size, size, device=self.device, dtype=dtype) for _ in range(2))
        ceilings.flops_per_s[dtype_name(dtype)] = 2 * size**3 / (1e-6 * self._best_us(lambda: left @ right))

    def _best_us(self, call: Call) -> float:
        prepared = self.prepare(call)
        with self.turn():
            return min(self.time_once_us(prepared) for _ in range(7))


class CpuClock(Clock):
    device = "cpu"

    def __init__(self) -> None:
        keep_heap()
        self._flush = torch.ones(max(64 * 2**20, 2 * _last_level_cache_bytes()) // 4)

    def prepare(self, call: Call) -> Prepared:
        outputs = call()
        call()
        return Prepared(call, outputs, replayed=False)

    def time_once_us(self, prepared: Prepared) -> float:
        self._flush.add_(1.0)
        started = time.perf_counter_ns()
        outputs = prepared.run()
        elapsed_ns = time.perf_counter_ns() - started
        del outputs
        return elapsed_ns / 1e3

    def chip(self) -> str:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return f"{line.split(':', 1)[1].strip()}, {torch.get_num_threads()} threads"
        return f"CPU, {torch.get_num_threads()} threads"


class CudaClock(Clock):
    device = "cuda"

    def __init__(self) -> None:
        l2_bytes = torch.cuda.get_device_properties(0).L2_cache_size
        self._flush = torch.empty(max(256 * 2**20, 4 * l2_bytes), dtype=torch.int8, device="cuda")

    def prepare(self, call: Call) -> Prepared:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                call()
        torch.cuda.current_stream().wait_stream(stream)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                outputs = call()
        except RuntimeError:
            # Something in it waits for the device, which a graph cannot hold: it is timed as it is called.
            torch.cuda.synchronize()
            return Prepared(call, call(), replayed=False)
        graph.replay()
        torch.cuda.synchronize()
        return Prepared(graph.replay, outputs, replayed=True)

    def time_once_us(self, prepared: Prepared) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self._flush.zero_()
        start.record()
        prepared.run()
        end.record()
        end.synchronize()
        return 1e3 * float(start.elapsed_time(end))

    def usable(self) -> bool:
        try:
            torch.cuda.synchronize()
        except RuntimeError:
            return False
        return True

    def release_unused(self) -> None:
        if self.usable():
            super().release_unused()

    def turn(self) -> AbstractContextManager[object]:
        return turn_on(device_name(), _PATIENCE_S)

    def peak_bytes(self, call: Call) -> int | None:
        return executor_for("cuda").peak_bytes(call)

    def chip(self) -> str:
        return torch.cuda.get_device_name()


def clock_for(device: str) -> Clock:
    return CudaClock() if device == "cuda" else CpuClock()


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def keep_heap() -> None:
    """Keeps freed memory in the process: large outputs mapped anew on every call would time the kernel's page faults."""
    mallopt = ctypes.CDLL(None).mallopt
    mallopt(_M_MMAP_MAX, 0)
    mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
    mallopt(_M_TOP_PAD, 512 * 2**20)


def _last_level_cache_bytes() -> int:
    sizes = [path.read_text().strip() for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")]
    return max((int(size[:-1]) * 1024 for size in sizes if size.endswith("K")), default=32 * 2**20)
