"""Judging a kernel for a GPU that is not here: it can be compiled and held against the target's limits, no more."""

from __future__ import annotations

from pathlib import Path

from ..exc import BuildError, ResourceError
from ..graph.region import Region
from ..kernel import Kernel
from ..platforms.triton_build import compile_for
from .build import gate
from .evaluation import BuildFailed, Compiled, Refused, ResourceFailed


def cross_compile(
    kernel: Kernel, region: Region, target: str, folder: Path
) -> Compiled | ResourceFailed | BuildFailed | Refused:
    """``target`` is ``"sm_90"``, ``"gfx942"``, ``"gfx950"`` ...; no GPU is needed."""
    refusal = gate(kernel)
    if refusal is not None:
        return refusal
    try:
        resources = compile_for(kernel, region, target, folder)
    except BuildError as error:
        return BuildFailed(error.stage, error.message, error.line)
    except ResourceError as error:
        return ResourceFailed(error.resource, error.needed, error.available)
    occupancy = None if resources.occupancy is None else resources.occupancy.share
    return Compiled(target, resources.registers, resources.spills, resources.shared_bytes, occupancy)
