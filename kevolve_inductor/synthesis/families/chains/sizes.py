"""Sizes of tiles: powers of two, and no smaller than what the matrix units take."""

from __future__ import annotations

from dataclasses import dataclass

from ....graph.dims import Dim
from ..triton_tiles import next_power_of_2

LEAST_SIDE = 16


def padded(size: Dim) -> int:
    """The side of a tile that holds ``size`` rows or columns of a product. Only what is cut up may be dynamic."""
    assert isinstance(size, int)
    return max(LEAST_SIDE, next_power_of_2(size))


@dataclass(frozen=True)
class Piece:
    """``size`` places from ``start``, of which the last ones may lie behind the end."""

    start: int
    size: int


def pieces_of(extent: int, block: int, least: int) -> list[Piece]:
    """``extent`` columns in blocks, of which the last ones are as narrow as they may be, but have ``least`` columns."""
    pieces, start = [], 0
    while start < extent:
        rest = extent - start
        size = min(block, max(least, padded(rest)))
        half = size // 2
        if half < rest and half + max(least, padded(rest - half)) < size:
            size = half
        pieces.append(Piece(start, size))
        start += size
    return pieces
