"""Sorting networks as lists of comparators ``(i, j)``: after each one, the smaller value stands at ``i``."""

from __future__ import annotations


def sorting(n: int) -> list[tuple[int, int]]:
    """Batcher's odd-even merge sort of ``n`` values (Knuth, TAOCP 3, 5.2.2, algorithm M), in order."""
    found = []
    top = 1 << max(0, (n - 1).bit_length() - 1)
    p = top
    while p > 0:
        q, r, d = top, 0, p
        while True:
            found += [(i, i + d) for i in range(n - d) if i & p == r]
            if q == p:
                break
            d, q, r = q - p, q // 2, p
        p //= 2
    return found


def merging(n: int) -> list[tuple[int, int]]:
    """Sorts a bitonic sequence of ``n`` values, a power of two (Knuth, TAOCP 3, 5.3.4)."""
    distances = [1 << k for k in reversed(range(n.bit_length() - 1))]
    return [(i, i + d) for d in distances for i in range(n) if not i & d]
