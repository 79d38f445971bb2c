"""What torch's own profiler shows of a kernel's launches; Nsight Compute, where it may be asked, knows more."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from .executor import Call, Resources
from .profile import Profile

SOURCE = "torch profiler"
_GPU_WORK = ("kernel", "gpu_memset", "gpu_memcpy")


def profile_launches(call: Call, resources: Resources) -> Profile:
    """Of one call on the current device."""
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        call()
        torch.cuda.synchronize()
    with tempfile.TemporaryDirectory(prefix="kevolve-") as folder:
        path = Path(folder, "trace.json")
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    return profile_of_trace(events, resources)


def profile_of_trace(events: Sequence[Mapping[str, Any]], resources: Resources) -> Profile:
    """Of the GPU's events in a trace; times are microseconds, ``blocks per SM`` those of the grid for each processor."""
    work = [event for event in events if event.get("cat") in _GPU_WORK]
    kernels = [event for event in work if event["cat"] == "kernel"]
    if not kernels:
        return Profile.without(SOURCE, "the trace holds no launch")
    figures = {"launch_us": sum(event["dur"] for event in work), "launches": len(work)}
    # Which launch the compiler's figures are of is only known where there is one.
    if len(kernels) == 1 and resources.occupancy is not None:
        figures |= _spread(float(kernels[0].get("args", {}).get("blocks per SM", 0.0)), resources.occupancy.blocks)
    return Profile.of(SOURCE, figures)


def _spread(blocks: float, resident: int) -> dict[str, float]:
    """How the grid's ``blocks`` per processor fill the processors, each of which holds ``resident`` at a time."""
    if not blocks or not resident:
        return {}
    figures = {"waves": blocks / resident}
    if blocks <= resident:
        # All begin at once, so that a processor with fewer than the fullest has nothing to do at the end.
        figures["idle_share"] = 1.0 - blocks / math.ceil(blocks)
    return figures
