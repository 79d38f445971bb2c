"""How many warps of a kernel fit on one processor, from what each block takes and what the architecture has.

The rules are those of NVIDIA's CUDA Programming Guide (technical specifications per compute capability) and occupancy
calculator, and of AMD's CDNA instruction-set guides, which agree in form: a multiprocessor or compute unit has four
schedulers; each has 512 registers as wide as a warp, given out in units of 8 per warp; a block's warps are spread over
the schedulers, and its shared memory is given out in units as well. With ``w`` warps a block, ``r`` registers a thread
and ``s`` bytes of shared memory, as many blocks are resident as the least of these says:

    warps          most_warps // w
    blocks         most_blocks
    registers      4 * (512 // round_up(r, 8)) // w
    shared memory  shared_bytes // round_up(s + reserved, unit)

Occupancy is ``blocks * w / most_warps``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

_SCHEDULERS, _REGISTERS, _REGISTER_UNIT = 4, 512, 8
_KIB = 1024


@dataclass(frozen=True)
class ProcessorLimits:
    """Of one multiprocessor or compute unit; ``reserved_bytes`` of shared memory go to the system for each block."""

    most_warps: int
    most_blocks: int
    shared_bytes: int
    reserved_bytes: int
    shared_unit: int


LIMITS: Mapping[str, ProcessorLimits] = {
    "sm_80": ProcessorLimits(64, 32, 164 * _KIB, _KIB, 128),
    "sm_86": ProcessorLimits(48, 16, 100 * _KIB, _KIB, 128),
    "sm_89": ProcessorLimits(48, 24, 100 * _KIB, _KIB, 128),
    "sm_90": ProcessorLimits(64, 32, 228 * _KIB, _KIB, 128),
    "sm_100": ProcessorLimits(64, 32, 228 * _KIB, _KIB, 128),
    "sm_103": ProcessorLimits(64, 32, 228 * _KIB, _KIB, 128),
    "sm_120": ProcessorLimits(48, 24, 100 * _KIB, _KIB, 128),
    "gfx90a": ProcessorLimits(32, 16, 64 * _KIB, 0, 512),
    "gfx942": ProcessorLimits(32, 16, 64 * _KIB, 0, 512),
    "gfx950": ProcessorLimits(32, 16, 160 * _KIB, 0, 1280),
}


@dataclass(frozen=True)
class Occupancy:
    """``share`` of the warps that one processor can hold, in ``blocks`` resident blocks, and what allows no more."""

    share: float
    blocks: int
    limit: str


def occupancy_of(target: str, warps: int, registers: int | None, shared_bytes: int | None) -> Occupancy | None:
    """Theoretical occupancy on ``target`` (``"sm_90"``, ``"gfx942"``); ``None`` for targets that are not in the table."""
    limits = LIMITS.get(target)
    if limits is None:
        return None
    possible = {"warps": limits.most_warps // warps, "blocks": limits.most_blocks}
    if registers:
        possible["registers"] = _SCHEDULERS * (_REGISTERS // _rounded_up(registers, _REGISTER_UNIT)) // warps
    if shared_bytes:
        taken = _rounded_up(shared_bytes + limits.reserved_bytes, limits.shared_unit)
        possible["shared memory"] = limits.shared_bytes // taken
    limit = min(possible, key=lambda name: possible[name])
    return Occupancy(possible[limit] * warps / limits.most_warps, possible[limit], limit)


def _rounded_up(value: int, unit: int) -> int:
    return -(-value // unit) * unit
