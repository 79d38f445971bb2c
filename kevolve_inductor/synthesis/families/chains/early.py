"""Loads that a program without a loop over units begins with: their latencies pass together instead of in turn."""

from __future__ import annotations

from collections.abc import Iterator

from ....graph.region import ITEM_SIZES
from .plan import Dot, Reduce, Store, Tile
from .printing import Scope
from .sweeps import Order
from .tiles import Extent, Extents, Tiles

# What is loaded early stays: operands in shared memory, of which several programs need some at a time, values in registers.
_MOST_OPERAND_BYTES = 56 * 1024
_MOST_VALUES = 4096


def load_early(order: Order, tiles: Tiles, rows: Extent, scope: Scope) -> None:
    """Loads what the parts of ``order`` outside of sweeps read, as long as there is room for it."""
    left = _MOST_OPERAND_BYTES
    for tile, kinds, dtype in _tiles(order, rows):
        if tile.turned:
            kinds = (kinds[1], kinds[0])
        placed = tiles.placed(tile, kinds, scope)
        elements = placed.shape[0] * placed.shape[1]
        reads = [read for read in tiles.reads(placed) if not scope.printer.has(read)]
        if dtype is not None:
            left -= elements * ITEM_SIZES[dtype] if reads else 0
            reads = reads if left >= 0 else []
        for read in reads:
            if dtype is not None or tiles.share(read, placed) <= _MOST_VALUES:
                scope.printer.load_early(read)


def _tiles(order: Order, rows: Extent) -> Iterator[tuple[Tile, Extents, str | None]]:
    """The tiles read outside of sweeps, how they are placed, and their type if they are operands of products."""
    for part in order.parts:
        if isinstance(part, Dot):
            yield part.left, (rows, "whole"), part.dtype
            yield part.right, ("whole", "whole"), part.dtype
        elif isinstance(part, Reduce | Store):
            yield part.tile, (rows, "whole"), None
