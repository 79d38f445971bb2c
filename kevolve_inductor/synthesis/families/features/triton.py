"""Tasks as Triton: one launch whose programs find their group, their task, and their block."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ....graph.dims import Dim
from ....graph.region import TensorSpec
from ....kernel import Argument, Kernel, Launch
from ...expression import TritonPrinter
from ...expression import expression as ex
from ...expression.expression import Expr
from ...expression.triton import TRITON_TYPES, used_helpers
from ...family import Schedule
from .groups import Group
from .modulo import TRITON_REMAINDER

_SEARCHES = """
@triton.jit
def kv_below(border, value, right: tl.constexpr):
    if right:
        return ~(border > value)
    else:
        return ~(border >= value)

@triton.jit
def kv_search_binary(borders, step, count, halvings: tl.constexpr, value, right: tl.constexpr):
    low = tl.zeros(value.shape, tl.int32)
    length = count
    for _ in tl.static_range(halvings):
        half = length >> 1
        border = tl.load(borders + tl.maximum(low + half - 1, 0) * step).to(value.dtype)
        low += tl.where(kv_below(border, value, right), half, 0)
        length -= half
    last = tl.load(borders + low * step).to(value.dtype)
    return (low + kv_below(last, value, right).to(tl.int32)).to(tl.int64)

@triton.jit
def kv_search_count(borders, step, count, value, right: tl.constexpr):
    found = tl.zeros(value.shape, tl.int32)
    for k in range(count):
        border = tl.load(borders + k * step).to(value.dtype)
        found += kv_below(border, value, right).to(tl.int32)
    return found.to(tl.int64)

@triton.jit
def kv_search_pivots(borders, step, count, halvings: tl.constexpr, value, right: tl.constexpr):
    # Sixteen ranges by comparing with every border between them, then a binary search of one range.
    width = (count + 15) // 16
    low = tl.zeros(value.shape, tl.int32)
    for k in tl.static_range(1, 16):
        at = k * width - 1
        border = tl.load(borders + tl.minimum(at, count - 1) * step).to(value.dtype)
        low += tl.where(kv_below(border, value, right) & (at < count), width, 0)
    length = width
    for _ in tl.static_range(halvings):
        half = (length + 1) >> 1
        at = low + half - 1
        border = tl.load(borders + tl.minimum(at, count - 1) * step).to(value.dtype)
        low += tl.where(kv_below(border, value, right) & (at < count) & (length > 0), half, 0)
        length -= half
    return low.to(tl.int64)
"""
