"""Sizes of tiles: powers of two, and no smaller than what the matrix units take."""

from __future__ import annotations

from ....graph.dims import Dim
from ..triton_tiles import next_power_of_2

LEAST_SIDE = 16


def padded(size: Dim) -> int:
    """The side of a tile that holds ``size`` rows or columns of a product. Only what is cut up may be dynamic."""
    assert isinstance(size, int)
    return max(LEAST_SIDE, next_power_of_2(size))
