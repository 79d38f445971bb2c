"""Schedules of scans on a GPU, and which of them to try first: read off sizes, element widths and how many units there are."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ....platforms.platform import Target
from ...family import Schedule, ScheduleSpace
from ..triton_tiles import next_power_of_2
from .plan import ScanPlan

# Bytes that a unit has to have asked memory for at any time so as not to wait for it.
_IN_FLIGHT = 40 * 1024
# Rows: elements of a tile, for values of 32 bits; and of a thread.
_LARGEST_BLOCK, _LARGEST_TILE, _SMALLEST_TILE = 8192, 16384, 1024
_EACH = (16, 32, 8)
# Neighbours that a thread reads one by one, where memory does not hand out several at once or joining is costly. Lines of
# lengths that this divides are read in vectors.
_NEIGHBOURS, _ALIGNED = (16, 8), 4
# Columns: positions that a thread reads at once, and how many of running values of two tensors, which take long to build.
_STEPS, _STEPS_OF_PAIRS = (16, 8, 32), (8, 4, 16)
_THREADS, _MOST_THREADS, _WARP = 512, 1024, 32
# Lanes side by side whose elements fill the smallest piece of memory that can be read.
_SECTOR = 32
# Lines of fewer steps than the first stay whole; a part has at least the second; so many programs a unit are wanted.
_FEW_STEPS, _LEAST_STEPS, _PROGRAMS, _MOST_PARTS = 16, 2, 4, 1024


def gpu_space(plan: ScanPlan, lines: int, length: int, target: Target) -> ScheduleSpace:
    """``lines`` of ``length`` positions, as seen."""
    if plan.task.lane is None:
        return _rows(plan, lines, length, target)
    return _columns(plan, lines, length, target)


def _rows(plan: ScanPlan, lines: int, length: int, target: Target) -> ScheduleSpace:
    # Pairs, and numbers of 64 bits, take twice the registers.
    is_wide = plan.is_pair or plan.kind == "logsumexp" or plan.held in ("float64", "int64")
    largest = _LARGEST_BLOCK // 2 if is_wide else _LARGEST_BLOCK
    whole = next_power_of_2(length)
    block = min(whole, largest)
    if 2 * lines <= target.units:
        # Steps so short that a line makes parts for all units.
        share = lines * length // (_PROGRAMS * target.units)
        shorter = max(_SMALLEST_TILE, next_power_of_2(share + 1) // 2)
        block = min(block, shorter) if length // shorter >= _FEW_STEPS else block
    parts = _parts(lines, length // block, target)
    smaller = [b for b in (4096, 2048, 1024, 512) if b < block and (b >= 1024 or whole > largest)]
    # Those first that reach least beyond the end of a line.
    smaller.sort(key=lambda b: (-(-length // b) * b, -b))
    most = max(1, min(next_power_of_2(lines), _LARGEST_TILE // block))
    at_once = min(max(1, _SMALLEST_TILE // block), most)
    tile = at_once * block
    blocks = (block, *smaller)
    choices: dict[str, tuple[int | str | bool, ...]] = {
        "block": blocks,
        "lines": _distinct([n for n in (at_once, 2 * at_once, 4 * at_once, at_once // 2) if 1 <= n <= most]),
        "num_warps": _distinct([_warps(tile // each) for each in _EACH] + [4, 8, 2, 16, 1]),
        "steps": (0, *(steps for steps in _NEIGHBOURS if block >= steps * _WARP)),
        "parts": parts,
    }
    default: Schedule = {name: values[0] for name, values in choices.items()}
    seeds = [{**default, "num_warps": _warps(tile // each)} for each in _EACH[:2]]
    seeds += [{**default, "block": b, "lines": 1, "num_warps": _warps(b // 16)} for b in smaller[:2]]
    if not smaller:
        seeds += [{**default, "lines": 2 * at_once, "num_warps": _warps(2 * tile // each)} for each in _EACH[:2]]
    seeds.append({**default, "num_warps": _warps(tile // _EACH[2])})
    seeds += [{**default, "parts": count} for count in parts[1:]]
    if length % _ALIGNED or plan.kind == "logsumexp":
        seeds[1:1] = [
            {**default, "block": b, "lines": 1, "steps": steps, "num_warps": _warps(b // steps)}
            for steps in _NEIGHBOURS for b in blocks[:2]
        ]  # fmt: skip
    return ScheduleSpace(choices, _unique(choices, seeds))


def _columns(plan: ScanPlan, lines: int, length: int, target: Target) -> ScheduleSpace:
    size = max(getattr(torch, spec.dtype).itemsize for spec in (*plan.inputs, *plan.outputs))
    vector = max(1, 4 // size)
    lanes = _lanes(lines, size, vector * _WARP, target)
    reach = next_power_of_2(length)
    depths = _STEPS_OF_PAIRS if plan.is_pair or plan.kind == "logsumexp" else _STEPS
    steps = min(depths[0], reach)
    # Threads beyond the lines themselves: pieces of a line side by side, until enough is asked of memory.
    asked = _IN_FLIGHT * target.units / max(lines * size * steps, 1)
    most = max(1, min(_THREADS * vector // lanes, reach // steps))
    pieces = min(next_power_of_2(round(asked)), most)
    parts = _parts(-(-lines // lanes), length // (pieces * steps), target)
    choices: dict[str, tuple[int | str | bool, ...]] = {
        "steps": _distinct([steps, *(s for s in depths if s <= reach)]),
        "pieces": _distinct([pieces, *(p for p in (2 * pieces, pieces // 2, 1, 4 * pieces) if 1 <= p <= 2 * most)]),
        "lanes": _distinct([lanes, 2 * lanes, *([lanes // 2] if lanes * size > _SECTOR else [])]),
        "vector": _distinct([v for v in (vector, 2 * vector, 1, 4) if v * _WARP <= max(lanes * pieces, _WARP)]),
        "parts": parts,
    }
    default: Schedule = {name: values[0] for name, values in choices.items()}
    changes: list[Schedule] = [
        {},
        {"pieces": 2 * pieces, "steps": steps // 2},
        {"pieces": pieces // 2, "steps": 2 * steps},
        {"pieces": 2 * pieces},
        *({"parts": count} for count in parts[1:]),
        {"pieces": pieces // 2},
        {"lanes": 2 * lanes},
        {"lanes": 2 * lanes, "vector": 2 * vector},
        {"pieces": 4 * pieces, "steps": steps // 2},
        {"pieces": 1, "steps": 2 * steps},
    ]
    return ScheduleSpace(choices, _unique(choices, [{**default, **change} for change in changes]))


def _lanes(lines: int, size: int, widest: int, target: Target) -> int:
    """Lines side by side: narrower programs where that makes enough of them, but no narrower than memory hands out."""
    least = min(widest, max(1, _SECTOR // size))
    lanes = widest
    if lines >= least * target.units // 2:
        while lanes > least and lines < lanes * target.units:
            lanes //= 2
        return lanes
    return max(least, min(widest, next_power_of_2(lines)))


def _parts(programs: int, steps: int, target: Target) -> tuple[int, ...]:
    """Into how many parts each line may be cut: as many as keep all units busy, or none."""
    if programs >= target.units or steps < _FEW_STEPS:
        return (1,)
    wanted = next_power_of_2(_PROGRAMS * target.units // max(programs, 1) + 1) // 2
    most = next_power_of_2(max(steps // _LEAST_STEPS, 1) + 1) // 2
    parts = min(wanted, most, _MOST_PARTS)
    if parts <= 1:
        return (1,)
    # Reading twice is worth it only if otherwise most units had nothing to do.
    order = [parts, parts // 2, 1] if 2 * programs <= target.units else [1, parts, parts // 2]
    return _distinct([count for count in order if count >= 1])


def _warps(threads: int) -> int:
    return min(max(threads // _WARP, 1), _MOST_THREADS // _WARP)


def _distinct(values: list[int]) -> tuple[int, ...]:
    return tuple(dict.fromkeys(values))


def _unique(choices: dict[str, tuple[int | str | bool, ...]], seeds: Sequence[Schedule]) -> tuple[Schedule, ...]:
    """``seeds`` that the choices and the number of a program's threads allow, each once."""
    fitting = [seed for seed in seeds if all(seed[name] in values for name, values in choices.items())]
    fitting = [
        s for s in fitting if "lanes" not in s or int(s["lanes"]) * int(s["pieces"]) <= _MOST_THREADS * int(s["vector"])
    ]
    return tuple(seed for k, seed in enumerate(fitting) if seed not in fitting[:k])
