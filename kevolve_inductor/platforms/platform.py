"""What a platform is: the only place that knows which hardware this is.

``Platform`` objects are cheap, stateless and safe to share; they import their toolchain (triton, a compiler) only when
asked to do something.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from ..kernel import Language
from .profile import Profile


@dataclass(frozen=True)
class Ceilings:
    """Measured limits of one target: bytes/s of a large copy (read + written), flop/s by dtype, seconds per launch."""

    bytes_per_s: float
    flops_per_s: dict[str, float]
    launch_s: float

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Ceilings:
        return cls(data["bytes_per_s"], dict(data["flops_per_s"]), data["launch_s"])


@dataclass(frozen=True)
class Target:
    """One concrete chip and toolchain, complete enough to be a cache-key field.

    ``chip`` e.g. ``"NVIDIA H200"`` or a resolved CPU model with its feature set; ``features`` sorted ISA features or
    compute capability; ``threads`` OpenMP threads (CPU) or 0; ``units`` cores or multiprocessors; ``shared_bytes``
    per-block shared memory (GPU) or level-2 cache (CPU); ``toolchain`` name → version.
    """

    platform: str
    chip: str
    features: tuple[str, ...]
    threads: int
    units: int
    shared_bytes: int
    warp_size: int
    toolchain: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


class Platform(ABC):
    """A device family. ``name`` is also the registry key in ``platforms/__init__.py``."""

    name: str
    language: Language

    @abstractmethod
    def target(self) -> Target:
        """The chip at hand. Raises ``PlatformError`` where there is none."""

    @abstractmethod
    def ceilings(self) -> Ceilings:
        """Measured once per process and target (well under a second), remembered on disk by the caller."""

    @abstractmethod
    def available(self) -> str | None:
        """``None`` where kernels can be built and run here, else the reason in one sentence."""

    def modes(self) -> Mapping[str, Mapping[str, Any]]:
        """By name, settings of Inductor's own, none of them its default, that may make a whole graph faster here."""
        return {}

    def release_unused(self) -> None:  # noqa: B027 - most allocators keep nothing
        """Give memory that this process's allocator keeps for later back to the device."""

    def watch(self, command: Sequence[str], environment: Mapping[str, str]) -> Profile:
        """What a tool sees that watches ``command`` while it shows a kernel (``Executor.show``). May take seconds."""
        return Profile()
