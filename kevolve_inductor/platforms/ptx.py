"""What is known to go wrong between PTX and machine code."""

from __future__ import annotations

import re
from collections import defaultdict

# A descriptor of a matrix in shared memory (PTX ISA, asynchronous warpgroup matrix instructions): bits 0-13 are the
# address, the layout stands above them, and bits 62-63 say how rows are swizzled.
_DESCRIPTOR = re.compile(r"\b(?:or\.b64|add\.s64)\s+%rd\d+, (?P<address>%rd\d+), (?P<layout>-?\d+);")
_WORD, _ADDRESS_BITS, _SWIZZLE_AT = 2**64, 32, 62


def mixes_swizzles(ptx: str) -> bool:
    """Is one address in shared memory read by matrix instructions in two layouts?

    Assemblers up to that of CUDA 12.8 at least take the address of the second from a register that nothing was written
    to: the kernel computes with whatever lies there, or faults. It takes straight code in which an operand with rows of
    64 bytes comes to lie where one with rows of 128 bytes was.
    """
    if "wgmma.mma_async" not in ptx:
        return False
    swizzles: defaultdict[str, set[int]] = defaultdict(set)
    for found in _DESCRIPTOR.finditer(ptx):
        layout = int(found["layout"]) % _WORD
        if layout >> _ADDRESS_BITS:
            swizzles[found["address"]].add(layout >> _SWIZZLE_AT)
    return any(len(kinds) > 1 for kinds in swizzles.values())
