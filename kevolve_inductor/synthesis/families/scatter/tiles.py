"""How many events, rows and columns a GPU program adds in one step, and which schedules are worth trying first."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from ....graph.dims import product
from ....graph.region import ITEM_SIZES
from ...expression import expression as ex
from ...family import Schedule, ScheduleSpace
from .. import common
from ..bags.tiles import LANES, LOADED, balanced
from ..triton_tiles import next_power_of_2
from .plan import EVENT, Scatter, ScatterPlan

# Elements of a row that one program takes at most.
WIDEST = 1024
# Bytes that a lane has in flight at most: a quarter of its registers, and less.
_IN_FLIGHT = (256, 128, 64)
# Rows differ in their numbers of events: this many times the mean is enough for most.
_ENOUGH = 1.25
# Elements of a row from which on slots take less than adding each.
_LEAST_IN_SLOTS = 8
# Warps that add a very long row, and the bytes that each lane has in flight.
LONG_WARPS, _LONG_IN_FLIGHT = 8, 112


@dataclass(frozen=True)
class Tile:
    """``events`` x ``rows`` x ``columns``, powers of two, as axes in this order; ``steps`` of them are in flight."""

    events: int
    rows: int
    columns: int
    steps: int

    @property
    def is_row(self) -> bool:
        return self.events == 1 and self.rows == 1


def elements_of(scatter: Scatter) -> int:
    """Elements of a row."""
    return int(product(tuple(extent for _, extent in scatter.inner)))


def columns_of(plan: ScatterPlan) -> int:
    """Elements of a row that one program takes."""
    return min(WIDEST, next_power_of_2(elements_of(plan.built)))


def _lanes(plan: ScatterPlan, vector: int) -> int:
    """Lanes that hold a row's columns when each takes ``vector`` bytes of the widest value."""
    columns = columns_of(plan)
    return columns // max(1, min(columns, vector // _item_bytes(plan)))


def _item_bytes(plan: ScatterPlan) -> int:
    loads = [part for part in ex.walk(plan.built.value) if part.op == "load" and EVENT in ex.variables(part)]
    inner = {name for name, _ in plan.built.inner}
    wide = [load for load in loads if not inner.isdisjoint(ex.variables(load))]
    return max((ITEM_SIZES[plan.inputs[load.value].dtype] for load in wide or loads), default=2)


def stored_precision(plan: ScatterPlan) -> str | None:
    """The low precision in which the values lie in memory, or to which they were rounded, if there is one."""
    value = plan.built.value
    while value.op == "cast" and value.dtype in ex.FLOATS:
        value = value.args[0]
    if value.op == "round":
        return str(value.value)
    stored = plan.inputs[value.value].dtype if value.op == "load" else None
    return stored if stored in ex.LOW_PRECISION else None


def short_tile(plan: ScatterPlan, schedule: Schedule) -> Tile:
    """Lanes that ``across`` events leave over take further rows, and every lane ``lines`` of them."""
    room = max(1, LANES * int(schedule["num_warps"]) // _lanes(plan, int(schedule["vector"])))
    events = min(int(schedule["across"]), room)
    return Tile(events, room // events * int(schedule["lines"]), columns_of(plan), int(schedule["steps"]))


def long_tile(plan: ScatterPlan) -> Tile:
    """All lanes take events of the same row."""
    side = max(1, LANES * LONG_WARPS // _lanes(plan, LOADED))
    return Tile(side, 1, columns_of(plan), _LONG_IN_FLIGHT // LOADED)


def gpu_space(
    plan: ScatterPlan, events: int, rows: int, rooms: tuple[int, ...], copies: tuple[int, ...], *,
    has_extremes: bool, is_crowded: bool,
) -> ScheduleSpace:  # fmt: skip
    """``events`` and ``rows`` are numbers at the sizes seen, ``rooms`` numbers of slots that are worth trying.

    Without slots (``room`` 0) events are sorted by their rows in several launches. With ``has_extremes`` atomic operations
    are another way, with ``is_crowded`` products are, and with ``copies`` exact sums of integers are.
    """
    usual = math.ceil(_ENOUGH * max(1, events / max(rows, 1)))
    lanes = _lanes(plan, LOADED)
    most = next_power_of_2(usual)
    # Events of one row that a warp holds side by side.
    side = min(max(1, LANES // lanes), most)
    wider = tuple(size for size in (8, 4) if lanes < _lanes(plan, size) <= LANES)
    acrosses = _distinct(number for number in (side, 1, side // 2, 2 * side) if 1 <= number <= most)
    warps = max(1, min(8, lanes // LANES))
    limits = [size // vector for size in _IN_FLIGHT for vector in (LOADED, *wider)]
    choices: dict[str, tuple[int | str | bool, ...]] = {
        "room": (*rooms, 0),
        "across": acrosses,
        "steps": _distinct(_steps(usual, across, limit) for limit in limits for across in acrosses),
        "lines": (1, 2, 4),
        "num_warps": _distinct((warps, 2 * warps, 4 * warps, max(1, warps // 2))),
        "vector": (LOADED, *wider),
        "block": (512, 1024, 256),
        "longest": (_longest(events),),
    }
    changes = [*_changes(usual, side, warps, (LOADED, *wider)[-1])]
    if rooms:
        together = list(_several(usual, side, warps))
        others = ({"room": room} for room in (*rooms[1:], 0))
        changes = [*others, *changes, *together, *({**change, "room": 0} for change in changes[:3])]
    if has_extremes:
        choices["atomic"] = (False, True)
        ways: list[Schedule] = [
            {"num_warps": warps * k, "block": b} for k, b in ((1, 512), (4, 1024), (1, 256), (2, 1024))
        ]
        changes = [*({**way, "atomic": True} for way in ways), *changes]
    if is_crowded:
        choices |= {"crowded": (False, True), "taken": (64, 128, 32), "programs": (396, 264, 792), "height": (64, 128)}
        choices["num_warps"] = _distinct((*choices["num_warps"], 4, 2, 8))  # type: ignore[arg-type]
        products: list[Schedule] = [
            {"num_warps": 4}, {"num_warps": 4, "programs": 792}, {"num_warps": 2, "programs": 792},
            {"num_warps": 4, "height": 128}, {"num_warps": 4, "taken": 32}, {"num_warps": 8, "height": 128, "programs": 264},
        ]  # fmt: skip
        changes = [*({**way, "crowded": True} for way in products), *changes]
    leading: list[Schedule] = []
    if copies:
        choices |= {"exact": (False, True), "copies": copies, "flat": (True, False)}
        choices["num_warps"] = _distinct((*choices["num_warps"], 4))  # type: ignore[arg-type]
        several = ({"copies": count} for count in copies[1:3])
        integers: list[Schedule] = [{}, {"flat": False}, {"block": 1024}, *several, {"flat": False, "block": 1024}]
        ways = [{"num_warps": 4, **way, "exact": True} for way in integers]
        # An atomic operation for every element: slots, which rows of few events have, do with one for every event.
        is_behind = bool(rooms) and elements_of(plan.built) >= _LEAST_IN_SLOTS
        leading, before = ([], 2) if is_behind else (ways[:2], 1)
        rest = [*ways[:1], *changes[:before], *ways[1:]] if is_behind else [*changes[:before], *ways[2:]]
        changes = [*rest, *changes[before:]]
    space = common.seeded(choices, *leading, *changes)
    default, *seeds = space.seeds
    seeds.insert(len(leading), default)
    # Where rows have few events, several ways lead to the same schedule.
    return replace(space, seeds=tuple({tuple(seed.items()): seed for seed in seeds}.values()))


def _changes(usual: int, side: int, warps: int, vector: int) -> Iterator[Schedule]:
    """Rows with lanes of their own, whose events plain numbers name; then fewer loads in flight, and more warps."""
    most, half = (size // vector for size in _IN_FLIGHT[:2])
    if vector < LOADED:
        yield {"across": 1, "vector": vector, "steps": _steps(usual, 1, most)}
    yield {"steps": _steps(usual, side, _IN_FLIGHT[1] // LOADED)}
    yield {"num_warps": 2 * warps}
    if side > 1:
        yield {"across": 1, "steps": _steps(usual, 1, _IN_FLIGHT[1] // LOADED)}
        yield {"across": 1, "vector": vector, "steps": _steps(usual, 1, half)}
        yield {"across": 1, "steps": _steps(usual, 1, _IN_FLIGHT[1] // LOADED), "num_warps": 2 * warps}
    yield {"steps": _steps(usual, side, _IN_FLIGHT[1] // LOADED), "num_warps": 4 * warps}
    yield {"steps": _steps(usual, side, _IN_FLIGHT[2] // LOADED)}
    yield {"block": 1024}
    yield {"block": 256}


def _several(usual: int, side: int, warps: int) -> Iterator[Schedule]:
    """Several rows to each lane: all of them are waited for at once, from the number of events to the last of these."""
    for lines, size in zip((2, 4), _IN_FLIGHT[1:], strict=False):
        for across in dict.fromkeys((side, 1)):
            yield {"across": across, "lines": lines, "steps": _steps(usual, across, size // LOADED)}


def _steps(usual: int, across: int, most: int) -> int:
    """At most ``most`` steps in flight, evenly many each time around."""
    return balanced(math.ceil(usual / across), most)


def _longest(events: int) -> int:
    """Rows of more events than this are put in order by looking through all events.

    Work by the square of a row's events stays below ``events * longest``, looking through all of them for rows that are
    longer below ``events**2 / longest``; the former takes one comparison where the latter takes a few.
    """
    return next_power_of_2(2 * math.isqrt(events))


def _distinct(numbers: Iterable[int]) -> tuple[int, ...]:
    return tuple(dict.fromkeys(numbers))
