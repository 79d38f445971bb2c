"""What one extra run of a kernel shows beyond its time, whoever measured it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any


@dataclass(frozen=True)
class Profile:
    """Figures of one call of a kernel; ``None`` where no source had one.

    ``sources`` names for each figure where it comes from (``"ncu"``, ``"disassembly"`` …), ``missing`` for each source
    that could not be asked why. Shares are from 0 to 1.

    * ``memory_bytes``: bytes moved between the chip and its memory; ``memory_share``, ``compute_share``: of what memory
      and arithmetic units can do at most.
    * ``occupancy``: resident warps of those possible, on average over time. ``waves``: blocks of the grid for each that
      can be resident. ``stalls``: what warps wait for, with its share of all waiting.
    * ``idle_share``: of the processors' time, while the slowest of them still works.
    * ``parallel_efficiency``: one thread's time over all threads' time and their number.
    * ``instructions``, ``cycles``, ``cache_misses``, ``branch_misses``, ``page_faults``: of one call on one thread.
    * ``vector_bits``: the widest registers that floating-point arithmetic uses, 0 where it works on single elements;
      ``vector_share``: of the elements that such instructions work on, those in vectors. ``stack_bytes``: the largest
      stack frame; ``stack_stores``: stores of vector registers to it, mostly spilled values.
    * ``launch_us``: time of the launches alone, without gaps between them; ``launches``: their number.
    """

    memory_bytes: float | None = None
    memory_share: float | None = None
    compute_share: float | None = None
    occupancy: float | None = None
    waves: float | None = None
    idle_share: float | None = None
    parallel_efficiency: float | None = None
    threads: int | None = None
    instructions: float | None = None
    cycles: float | None = None
    cache_misses: float | None = None
    branch_misses: float | None = None
    page_faults: float | None = None
    vector_bits: int | None = None
    vector_share: float | None = None
    stack_bytes: int | None = None
    stack_stores: int | None = None
    launch_us: float | None = None
    launches: int | None = None
    stalls: dict[str, float] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, source: str, figures: Mapping[str, Any]) -> Profile:
        """All ``figures`` from one source; those that are ``None`` or empty have none."""
        known = {name: value for name, value in figures.items() if value is not None and value != {}}
        return cls(**known, sources=dict.fromkeys(known, source))

    @classmethod
    def without(cls, source: str, reason: str) -> Profile:
        return cls(missing={source: reason})

    def __or__(self, other: Profile) -> Profile:
        """Both; where both have a figure, this one's."""
        more = {name: getattr(other, name) for name in other.sources if name not in self.sources}
        sources, missing = other.sources | self.sources, other.missing | self.missing
        return replace(self, **more, sources=sources, missing=missing)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Profile:
        """What this version does not know is left out, so that older and newer evidence can be read."""
        return cls(**{part.name: data[part.name] for part in fields(cls) if part.name in data})
