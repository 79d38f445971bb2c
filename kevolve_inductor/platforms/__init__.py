"""The platforms by name: a literal table, so that what exists can be read here."""

from __future__ import annotations

from ..exc import PlatformError
from .cpu import CpuPlatform
from .platform import Platform

PLATFORMS: dict[str, type[Platform]] = {
    "cpu": CpuPlatform,
}


def platform_for(device_type: str) -> Platform:
    """The platform of a device type (``"cpu"``, ``"cuda"``) or of a name in the table. Raises ``PlatformError``."""
    if device_type not in PLATFORMS:
        raise PlatformError(f"no platform for {device_type!r}; there are {', '.join(PLATFORMS)}")
    return PLATFORMS[device_type]()
