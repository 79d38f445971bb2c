"""Large tensors in parts, so that what is computed of them on the way does not take as much memory again and again."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch

# Of float64, an eighth of a gigabyte.
BLOCK_ELEMENTS = 2**24
# Of float64, a megabyte: what many passes are made over stays in a processor's cache.
CACHED_ELEMENTS = 2**17

Place = tuple[slice, ...]


def row_blocks(shape: Sequence[int], most: int = BLOCK_ELEMENTS) -> Iterator[Place]:
    """Indices of the parts of a tensor of ``shape``: whole rows along the last dimension, about ``most`` elements each."""
    numel = math.prod(shape)
    if len(shape) < 2 or numel <= most:
        yield ()
        return
    dim = max(range(len(shape) - 1), key=shape.__getitem__)
    step = max(1, most * shape[dim] // numel)
    for start in range(0, shape[dim], step):
        yield (*(slice(None),) * dim, slice(start, start + step))


def blocks_of(values: torch.Tensor) -> Iterator[Place]:
    """``row_blocks`` as suits where ``values`` lie."""
    in_cache = values.device.type == "cpu" and values.dim() and values.stride(-1) == 1
    return row_blocks(values.shape, CACHED_ELEMENTS if in_cache else BLOCK_ELEMENTS)
