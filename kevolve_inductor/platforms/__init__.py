"""The platforms by name: a literal table, so that what exists can be read here."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..exc import PlatformError
from .cpu import CpuPlatform
from .platform import Platform

if TYPE_CHECKING:
    from .executor import Executor

PLATFORMS: dict[str, type[Platform]] = {
    "cpu": CpuPlatform,
}


def platform_for(device_type: str) -> Platform:
    """The platform of a device type (``"cpu"``, ``"cuda"``) or of a name in the table. Raises ``PlatformError``."""
    if device_type not in PLATFORMS:
        raise PlatformError(f"no platform for {device_type!r}; there are {', '.join(PLATFORMS)}")
    return PLATFORMS[device_type]()


def executor_for(name: str) -> Executor:
    """What runs kernels of a platform in this process. Raises ``PlatformError`` where none can run here."""
    # Imported on demand: only worker processes execute anything.
    if name == "cpu":
        from .cpu_executor import CpuExecutor

        return CpuExecutor()
    raise PlatformError(f"no kernel of the platform {name!r} can be run")


def use_build_folder(folder: Path) -> None:
    """Where compiled graphs of this process look for what was built, and put what is not there yet."""
    from . import cpu

    cpu.set_build_folder(folder)
