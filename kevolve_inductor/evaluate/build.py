"""From a kernel's text to something callable, or to the reason why not."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from ..exc import BuildError, GateError, ResourceError
from ..graph.region import Region
from ..kernel import Kernel
from ..platforms.executor import CompiledKernel, Executor
from .evaluation import BuildFailed, Refused, ResourceFailed
from .gate import check_kernel


@dataclass(frozen=True)
class Built:
    compiled: CompiledKernel
    build_s: float


def build(
    kernel: Kernel, region: Region, executor: Executor, folder: Path
) -> Built | BuildFailed | ResourceFailed | Refused:
    """Gate, compile, load. Raises only what is no fault of the kernel's (``CompilerMissingError``, ``OSError``)."""
    refusal = gate(kernel)
    if refusal is not None:
        return refusal
    start = time.monotonic()
    try:
        compiled = executor.load(kernel, region, folder)
    except GateError as error:
        return Refused("gate", str(error))
    except BuildError as error:
        return BuildFailed(error.stage, error.message, error.line)
    except ResourceError as error:
        return ResourceFailed(error.resource, error.needed, error.available)
    return Built(compiled, time.monotonic() - start)


@lru_cache(maxsize=4096)
def gate(kernel: Kernel) -> Refused | None:
    """Why the static gate refuses ``kernel``, or ``None``. Every compilation asks again for what the store holds."""
    try:
        check_kernel(kernel)
    except GateError as error:
        return Refused("gate", str(error))
    return None
