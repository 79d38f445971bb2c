"""AMD GPUs: Triton kernels are compiled for them and held against their limits, but not run."""

from __future__ import annotations

from ..exc import PlatformError
from ..kernel import Language
from .platform import Ceilings, Platform, Target
from .triton_build import SHARED_LIMITS, triton_version


class HipPlatform(Platform):
    """``chip`` is the architecture to compile for, ``"gfx942"`` or ``"gfx950"``; no such GPU need be here."""

    name = "hip"
    language: Language = "triton"

    def __init__(self, chip: str = "gfx942") -> None:
        self._chip = chip

    def target(self) -> Target:
        return Target(
            platform="hip",
            chip=self._chip,
            features=(self._chip,),
            threads=0,
            units=0,
            shared_bytes=SHARED_LIMITS[self._chip],
            warp_size=64,
            toolchain={"triton": triton_version()},
        )

    def ceilings(self) -> Ceilings:
        raise PlatformError(f"{self._chip} is compiled for, not run, so its ceilings cannot be measured")

    def available(self) -> str | None:
        return f"kernels for {self._chip} can be compiled here, not run"
