"""The platforms by name: literal tables, so that what exists can be read here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..exc import PlatformError
from .build_folder import build_folder, use_build_folder
from .cpu import CpuPlatform
from .cuda import CudaPlatform
from .hip import HipPlatform
from .null import NullPlatform
from .platform import Platform

if TYPE_CHECKING:
    from .executor import Executor

__all__ = ["PLATFORMS", "build_folder", "executor_for", "platform_for", "use_build_folder"]

PLATFORMS: dict[str, type[Platform]] = {
    "cpu": CpuPlatform,
    "cuda": CudaPlatform,
    "hip": HipPlatform,
    "null": NullPlatform,
}


def platform_for(device_type: str) -> Platform:
    """The platform of a device type (``"cpu"``, ``"cuda"``) or of a name in the table. Raises ``PlatformError``."""
    if device_type not in PLATFORMS:
        raise PlatformError(f"no platform for {device_type!r}; there are {', '.join(PLATFORMS)}")
    return PLATFORMS[device_type]()


def executor_for(name: str) -> Executor:
    """What runs kernels of a platform in this process. Raises ``PlatformError`` where none can run here."""
    # Imported on demand: where nothing is timed, nothing of it is loaded.
    if name == "cpu":
        from .cpu_executor import CpuExecutor

        return CpuExecutor()
    if name == "cuda":
        from .cuda_executor import CudaExecutor

        return CudaExecutor()
    raise PlatformError(f"kernels of the platform {name!r} cannot be run here")
