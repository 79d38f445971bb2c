"""NVIDIA GPUs: Triton kernels, launched in order from their declarative specs."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import torch

from ..exc import PlatformError, ResourceError
from ..graph.dims import evaluate
from ..graph.reference import dtype_of
from ..kernel import Kernel, Language, Launch
from ..settings import interpret_triton
from .build_folder import build_folder
from .ncu import profile_command
from .platform import Ceilings, Platform, Target
from .profile import Profile
from .triton_build import COMPILE_OPTIONS, load_triton, triton_missing, triton_version
from .turns import turn_on

__all__ = ["CudaPlatform", "autotuned_kernels", "launch", "load_triton", "measured_ceilings"]

# The second and third axis of a grid are limited by the hardware, the first is not in practice.
_GRID_LIMITS = (2**31 - 1, 65_535, 65_535)
_COPY_BYTES = 2**30
_LAUNCHES = 64


class CudaPlatform(Platform):
    name = "cuda"
    language: Language = "triton"

    def target(self) -> Target:
        reason = self.available()
        if reason is not None:
            raise PlatformError(reason)
        properties: Any = torch.cuda.get_device_properties()
        return Target(
            platform="cuda",
            chip=properties.name,
            features=(architecture(),),
            threads=0,
            units=properties.multi_processor_count,
            shared_bytes=properties.shared_memory_per_block_optin,
            warp_size=properties.warp_size,
            toolchain={
                "torch": torch.__version__,
                "triton": triton_version(),
                "cuda": str(torch.version.cuda),
                "driver": str(_driver_version()),
            },
        )

    def ceilings(self) -> Ceilings:
        reason = self.available()
        if reason is not None:
            raise PlatformError(reason)
        return _ceilings(torch.cuda.current_device())

    def available(self) -> str | None:
        if torch.version.cuda is None:
            return "this build of torch has no CUDA"
        if not torch.cuda.is_available():
            return "no CUDA device is visible"
        return triton_missing()

    def modes(self) -> Mapping[str, Mapping[str, Any]]:
        tuned = {"max_autotune": True, "coordinate_descent_tuning": True, "autotune_num_choices_displayed": 0}
        # Channels last is Inductor's guess for convolutions, and on some graphs a bad one.
        kept = {"layout_optimization": False}
        return {"as laid out": kept, "autotuned": tuned, "autotuned, as laid out": tuned | kept}

    def release_unused(self) -> None:
        torch.cuda.empty_cache()

    def watch(self, command: Sequence[str], environment: Mapping[str, str]) -> Profile:
        return profile_command(command, environment)


def _driver_version() -> int:
    version = ctypes.c_int(0)
    ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(version))
    return version.value


def architecture() -> str:
    """Of the current device, as compilers name it: ``"sm_90"``."""
    major, minor = torch.cuda.get_device_capability()
    return f"sm_{major}{minor}"


def device_name() -> str:
    """Of the current device, the same in every process."""
    return f"cuda-{torch.cuda.get_device_properties().uuid}"


def autotuned_kernels(kernel: Kernel) -> list[Any]:
    """The launches' functions with their warps and stages fixed, in the form Inductor takes user kernels in."""
    import triton

    return [
        triton.autotune([triton.Config({}, num_warps=step.num_warps, num_stages=step.num_stages)], key=[])(function)
        for step, function in zip(kernel.launches, load_triton(kernel, build_folder()), strict=True)
    ]


def launch(
    kernel: Kernel, inputs: Sequence[torch.Tensor], outputs: Sequence[torch.Tensor], symbols: Mapping[str, int]
) -> None:
    """Run all launches in order on the current stream; ``symbols`` in the region's order.

    Under ``TRITON_INTERPRET=1`` this works on CPU tensors. Raises ``BuildError``, and ``ResourceError`` where the grid, a
    block or the workspaces are too large.
    """
    launch_functions(kernel, load_triton(kernel, build_folder()), inputs, outputs, symbols)


def launch_functions(
    kernel: Kernel, functions: Sequence[Any], inputs: Sequence[torch.Tensor], outputs: Sequence[torch.Tensor],
    symbols: Mapping[str, int], workspaces: Sequence[torch.Tensor] | None = None,
) -> None:  # fmt: skip
    """:func:`launch` with the functions at hand, in lent ``workspaces`` or in new ones."""
    device = (*outputs, *inputs)[0].device
    if workspaces is None:
        workspaces = _workspaces(kernel, symbols, device)
    for memory, workspace in zip(workspaces, kernel.workspaces, strict=True):
        if workspace.zeroed:
            memory.zero_()
    values: dict[str, Sequence[Any]] = {
        "input": inputs,
        "output": outputs,
        "workspace": workspaces,
        "size": list(symbols.values()),
    }
    for step, function in zip(kernel.launches, functions, strict=True):
        arguments = [values[argument.kind][argument.index] for argument in step.arguments]
        grid = _grid(step, symbols)
        if 0 not in grid:
            # The interpreter takes no compiler's options.
            options = {} if interpret_triton() else COMPILE_OPTIONS
            fixed = {"num_warps": step.num_warps, "num_stages": step.num_stages, **options}
            _run(function[grid], arguments, dict(step.constants) | fixed)


def _run(function: Callable[..., object], arguments: Sequence[Any], named: Mapping[str, Any]) -> None:
    from triton.runtime.errors import OutOfResources

    try:
        function(*arguments, **named)
    except OutOfResources as error:
        raise ResourceError(error.name, error.required, error.limit) from error


def _workspaces(kernel: Kernel, symbols: Mapping[str, int], device: torch.device) -> list[torch.Tensor]:
    sizes = [(evaluate(workspace.numel, symbols), dtype_of(workspace.dtype)) for workspace in kernel.workspaces]
    try:
        return [torch.empty(numel, dtype=dtype, device=device) for numel, dtype in sizes]
    except torch.OutOfMemoryError as error:
        needed = sum(numel * dtype.itemsize for numel, dtype in sizes)
        raise ResourceError("bytes of workspace", needed, int(torch.cuda.mem_get_info(device)[0])) from error


def _grid(step: Launch, symbols: Mapping[str, int]) -> tuple[int, ...]:
    grid = tuple(evaluate(extent, symbols) for extent in step.grid)
    for axis, (extent, limit) in enumerate(zip(grid, _GRID_LIMITS, strict=False)):
        if extent > limit:
            raise ResourceError(f"grid axis {axis}", extent, limit)
    return grid


@cache
def _ceilings(device: int) -> Ceilings:
    return measured_ceilings()


def measured_ceilings() -> Ceilings:
    """Measured now on the current device, in a fraction of a second."""
    with turn_on(device_name()):
        return Ceilings(
            bytes_per_s=_copy_bytes_per_s(),
            flops_per_s={
                "bfloat16": _matmul_flops_per_s(torch.bfloat16, 8192),
                "float16": _matmul_flops_per_s(torch.float16, 8192),
                "float32": _matmul_flops_per_s(torch.float32, 4096),
            },
            launch_s=_launch_s(),
        )


def _copy_bytes_per_s() -> float:
    size = min(_COPY_BYTES, torch.cuda.mem_get_info()[0] // 8)
    source = torch.empty(size, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2.0 * size / _best_s(lambda: target.copy_(source))


def _matmul_flops_per_s(dtype: torch.dtype, size: int) -> float:
    # Random data: a chip runs faster on zeros, where little switches.
    left = torch.randn(size, size, device="cuda", dtype=dtype)
    right = torch.randn(size, size, device="cuda", dtype=dtype)
    return 2.0 * size**3 / _best_s(lambda: left @ right)


def _best_s(call: Callable[[], object], repeats: int = 6) -> float:
    call()
    best = float("inf")
    for _ in range(repeats):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        call()
        end.record()
        end.synchronize()
        best = min(best, start.elapsed_time(end) / 1e3)
    return best


def _launch_s() -> float:
    """Seconds that one small kernel takes inside a captured graph."""
    small = torch.zeros(1, device="cuda")
    small.add_(1)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(_LAUNCHES):
            small.add_(1)
    graph.replay()
    torch.cuda.synchronize()
    start = time.perf_counter()
    graph.replay()
    torch.cuda.synchronize()
    return (time.perf_counter() - start) / _LAUNCHES
