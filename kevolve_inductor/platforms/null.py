"""No hardware at all: lets everything above the platforms run in tests and on machines without a compiler."""

from __future__ import annotations

from ..kernel import Language
from .platform import Ceilings, Platform, Target


class NullPlatform(Platform):
    """The same on every machine, so that whatever is derived from it is too."""

    name = "null"
    language: Language = "cpp"

    def target(self) -> Target:
        return Target(
            platform="null",
            chip="null",
            features=("null",),
            threads=1,
            units=1,
            shared_bytes=2**20,
            warp_size=1,
            toolchain={"null": "1"},
        )

    def ceilings(self) -> Ceilings:
        return Ceilings(bytes_per_s=1e10, flops_per_s={"float32": 1e11}, launch_s=1e-6)

    def available(self) -> str | None:
        return None
