"""Sizes of tiles: powers of two, and no smaller than what the matrix units take."""

from __future__ import annotations

from ....graph.dims import Dim

LEAST_SIDE = 16


def power(size: int) -> int:
    """The least power of two that is not below ``size``."""
    return 1 << max(size - 1, 0).bit_length()


def padded(size: Dim) -> int:
    """The side of a tile that holds ``size`` rows or columns of a product. Only what is cut up may be dynamic."""
    assert isinstance(size, int)
    return max(LEAST_SIDE, power(size))
