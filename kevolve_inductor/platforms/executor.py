"""What the evaluation worker needs of the hardware: load kernels, run them, time them.

Kernels that are being judged run in worker processes only; in the user's own, an executor times the user's own functions.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch

from ..graph.dims import evaluate
from ..graph.reference import dtype_of
from ..graph.region import Region, TensorSpec
from ..kernel import Kernel
from .occupancy import Occupancy
from .platform import Ceilings
from .profile import Profile

Call = Callable[[], Any]


@dataclass(frozen=True)
class Resources:
    """What a built kernel takes of one processor, where the toolchain tells; of its launches the one that takes most."""

    registers: int | None = None
    spills: int | None = None
    shared_bytes: int | None = None
    occupancy: Occupancy | None = None


class CompiledKernel(Protocol):
    """A kernel loaded in this process."""

    @property
    def resources(self) -> Resources: ...

    def machine_code(self) -> Profile:
        """What can be read from the built code without running it."""
        ...

    def __call__(
        self, inputs: Sequence[torch.Tensor], outputs: Sequence[torch.Tensor], symbols: Sequence[int],
        workspaces: Sequence[torch.Tensor] | None = None,
    ) -> None:  # fmt: skip
        """Write ``outputs``. Raises ``KernelIndexError`` where an index was out of range.

        ``workspaces`` are one-dimensional; without them each call has its own, as a compiled graph gives it.
        """
        ...


class Executor(ABC):
    """Bound to one device and one build folder. Not thread-safe."""

    device: torch.device
    # Whether calls return before the device has done what they ask for. Then ``head_start_s`` keeps the device busy before
    # each call that is measured, so that all of it is submitted by the time it begins: what is measured is the device's own.
    submits_ahead: ClassVar[bool] = False
    head_start_s: float = 0.0
    # What is written to where caches are to be emptied.
    _flushed: torch.Tensor | None = None

    @abstractmethod
    def load(self, kernel: Kernel, region: Region, folder: Path) -> CompiledKernel:
        """Raises ``BuildError`` or ``ResourceError``."""

    @abstractmethod
    def timed(self, call: Call) -> Call:
        """``call`` in the form it is timed in, warmed up (on a GPU: a captured graph's replay)."""

    @abstractmethod
    def measure(self, timed: Sequence[Call], rounds: int, cold: bool) -> list[list[float]]:
        """Microseconds of each call (rows) in each round (columns), taken in turn; ``cold`` empties the caches before each."""

    @abstractmethod
    def synchronize(self) -> None:
        """Wait for what runs; raises where it failed."""

    @abstractmethod
    def last_level_bytes(self) -> int:
        """Size of the cache before memory."""

    @abstractmethod
    def free_bytes(self) -> int:
        """Memory that can still be allocated on the device."""

    def peak_bytes(self, call: Call) -> int | None:
        """The most that one call of a warm ``call`` holds beyond what was held before; ``None`` where nothing counts it."""
        return None

    def bound_memory(self, share: float) -> int:
        """Allocate no more than this share of the device's memory that is free now; returns it in bytes.

        Main memory is bounded from outside of the process.
        """
        return int(share * self.free_bytes())

    @abstractmethod
    def ceilings_now(self) -> Ceilings:
        """Measured afresh, not remembered."""

    def bus_bytes_per_s(self) -> float:
        """What memory's clock and width allow, which nothing exceeds; 0 where they are not known."""
        return 0.0

    def rest(self) -> None:
        """Give up the memory that is kept from one measurement to the next."""
        self._flushed = None

    def dirty_stacks(self, byte: int) -> None:  # noqa: B027 - a GPU's local variables are out of reach
        """Leave ``byte`` wherever the next kernel's local variables may lie, as far as that can be reached."""

    def fenced(self, size: int) -> torch.Tensor:
        """At least ``size`` bytes; touching the memory before or after them ends the process.

        Raises ``NotImplementedError`` where the hardware cannot forbid that.
        """
        raise NotImplementedError(f"no fences on {self.device}")

    def profile(self, compiled: CompiledKernel, call: Call) -> Profile:
        """A closer look at a kernel that is worth one; ``call`` runs it as a compiled graph will."""
        return compiled.machine_code()

    def show(self, call: Call) -> None:
        """Run ``call`` once, warmed up, before the eyes of a tool that watches this process."""
        call()
        call()

    def allocation(self, spec: TensorSpec, symbols: dict[str, int]) -> Callable[[], torch.Tensor]:
        """Allocates an output, as the compiled wrapper does on every call."""
        shape = tuple(evaluate(dim, symbols) for dim in spec.shape)
        stride = tuple(evaluate(dim, symbols) for dim in spec.stride)
        dtype = dtype_of(spec.dtype)
        return lambda: torch.empty_strided(shape, stride, dtype=dtype, device=self.device)
