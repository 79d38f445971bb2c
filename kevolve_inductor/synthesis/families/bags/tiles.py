"""How many bags, positions and columns a GPU program takes in one step, and how many steps' rows are in flight."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ....graph.dims import product
from ....graph.region import ITEM_SIZES
from ...family import Schedule
from ..triton_tiles import next_power_of_2
from .plan import Bag, Loop, extents, gathers

LANES = 32
# Bytes of a lane that one instruction loads at most.
LOADED = 16
# Elements of a row that one program takes at most.
_WIDEST = 1024


@dataclass(frozen=True)
class Tile:
    """``positions`` x ``bags`` x ``columns``, each a power of two, as axes in this order.

    Columns lie innermost: a lane holds as many neighbours as it loads with one instruction, and lanes beside one another
    hold a row. Lanes that a row leaves over Triton gives to the first axis first: to positions, then to bags.
    """

    positions: int
    bags: int
    columns: int

    @property
    def is_row(self) -> bool:
        return self.bags == 1 and self.positions == 1


def columns_of(bag: Bag) -> int:
    """Elements of a row that one program takes."""
    return min(_WIDEST, next_power_of_2(int(product(extents(bag.inner)))))


def item_bytes(bag: Bag) -> int:
    """Bytes of the widest element that is gathered, at least two."""
    reads = [read for fold in bag.folds for read in gathers(fold.body) if bag.is_row(read) or not bag.inner]
    return max((ITEM_SIZES[read.value[1]] for read in reads), default=2)


def lanes_of(bag: Bag, vector: int) -> int:
    """Lanes that hold a row when each takes ``vector`` bytes of it."""
    return columns_of(bag) // max(1, min(columns_of(bag), vector // item_bytes(bag)))


def tile_of(bag: Bag, schedule: Schedule) -> Tile:
    """``across`` positions at most share a step; lanes that are still free take further bags."""
    room = max(1, LANES * int(schedule["num_warps"]) // lanes_of(bag, int(schedule["vector"])))
    lengths = [loop.span.length for loop in bag.loops]
    longest = max((room if length is None else next_power_of_2(length) for length in lengths), default=1)
    positions = min(int(schedule["across"]), room, longest)
    count = product(extents(bag.axes))
    most = next_power_of_2(count) if isinstance(count, int) else room
    return Tile(positions, min(room // positions, most), columns_of(bag))


def steps_of(loop: Loop, tile: Tile, schedule: Schedule, usual: int) -> int:
    """Steps whose rows are in flight together, where bags have the ``usual`` length if theirs varies."""
    loads = int(schedule["loads"]) * (LOADED // int(schedule["vector"]))
    return balanced(math.ceil((loop.span.length or usual) / tile.positions), loads)


def balanced(steps: int, most: int) -> int:
    """At most ``most`` of ``steps``, and evenly many each time around."""
    return math.ceil(steps / math.ceil(steps / most))
