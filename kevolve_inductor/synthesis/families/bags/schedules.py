"""Schedules of bags on GPUs: the lanes of a warp share rows so that each loads 16 bytes, and many rows are in flight."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from ...family import Schedule, ScheduleSpace
from .. import common
from ..triton_tiles import next_power_of_2
from .plan import Bag
from .tiles import LANES, LOADED, balanced, columns_of, item_bytes, lanes_of

# Bytes of a row that a lane takes.
_VECTORS = (LOADED, 8, 4)
# Loads that a lane has in flight: of 16 bytes each, the most fill a quarter of its registers.
_LOADS = (16, 8, 4, 2)


def gpu_space(bags: Sequence[Bag], longest: int, joins: bool, many: bool) -> ScheduleSpace:
    """``longest`` is the number of positions of the longest bags. ``joins``: numbers of some bags can be computed beside
    their rows; ``many``: some bags differ in their tensors only."""
    widest = max((bag for bag in bags if bag.loops), key=lambda bag: columns_of(bag) * item_bytes(bag), default=bags[0])
    lanes = lanes_of(widest, LOADED)
    # Rows that a warp takes in one step. Short rows are spread over several warps, of which an SM holds more that way.
    rows = max(1, LANES // lanes)
    warps = 2 if rows > 2 else max(1, min(8, lanes // LANES))
    most = min(rows * warps, next_power_of_2(longest))
    across = min(rows, most)
    positions = (across, 1, 2 * across, across // 2, 4 * across, across // 4)
    vectors = {lanes_of(widest, size): size for size in reversed(_VECTORS)}
    sides = _distinct(number for number in positions if 1 <= number <= most)
    choices: dict[str, tuple[int | str | bool, ...]] = {
        "across": sides,
        "loads": tuple(_different_loads(longest, sides)),
        "bags": (1, 2, 4, 8),
        "num_warps": _distinct((warps, 2 * warps, max(1, warps // 2), 4 * warps)),
        "vector": tuple(vectors[held] for held in sorted(vectors) if held <= max(lanes, LANES * warps)),
    }
    if joins:
        choices["joined"] = (True, False)
    if many:
        choices["order"] = ("tables", "bags")
    return common.seeded(choices, *_changes(rows, across, warps))


def _different_loads(longest: int, sides: Sequence[int]) -> Iterator[int]:
    """Those of ``_LOADS`` that lead to other kernels than larger ones."""
    seen: set[tuple[int, ...]] = set()
    for loads in _LOADS:
        steps = tuple(balanced(-(-longest // side), loads) for side in sides)
        if steps not in seen:
            seen.add(steps)
            yield loads


def _changes(rows: int, across: int, warps: int) -> tuple[Schedule, ...]:
    """What to try next. Where a row takes half a warp or more, it may as well take all of it, as plain numbers index it."""
    alone: Schedule = {"across": 1, "vector": 8} if rows > 1 else {"across": 1}
    short: tuple[Schedule, ...] = (
        {"num_warps": 2 * warps},
        {"across": across // 2},
        {"joined": False},
        {"num_warps": max(1, warps // 2)},
    )
    further: tuple[Schedule, ...] = (
        {"loads": 8},
        {"bags": 2},
        {"across": 1},
        {"across": 1, "num_warps": 2 * warps},
        {"across": 2 * across},
        {"order": "bags", **alone},
        {"loads": 4, "bags": 4, **alone},
        {"num_warps": 4 * warps},
    )
    return (*short, *further) if rows > 2 else (alone, {"loads": 8, **alone}, {"bags": 4, **alone}, *further)


def _distinct(numbers: Iterable[int]) -> tuple[int, ...]:
    return tuple(dict.fromkeys(numbers))
