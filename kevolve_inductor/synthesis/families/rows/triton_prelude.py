"""Triton helpers of row programs.

A *packed* value orders as the selection asks, smallest first: its key above its position, so that equal keys keep their
order and every packed value is unique; the lowest bit remembers the sign of a zero, which the key does not. Keys of 32
bits are packed into int64, or into the mantissa of a positive double, which compares in one instruction on chips with
fast doubles; keys of 16 bits into int32.
"""

from __future__ import annotations

ROW_HELPERS = """
@triton.jit
def kv_exp_below(x):
    # Flushes results that are no normal numbers to zero.
    return tl.exp2(x * 1.4426950408889634)

@triton.jit
def kv_fast_divide(a, b):
    return libdevice.fast_dividef(a, b)

@triton.jit
def kv_add_two(a, b, c, d):
    return a + c, b + d

@triton.jit
def kv_add_three(a, b, c, d, e, f):
    return a + d, b + e, c + f

@triton.jit
def kv_row_sum(x):
    return tl.sum(tl.sum(tl.sum(x, 3), 2), 1)

@triton.jit
def kv_row_most(x):
    return tl.reduce(tl.reduce(tl.reduce(x, 3, kv_max), 2, kv_max), 1, kv_max)

@triton.jit
def kv_row_least(x):
    return tl.reduce(tl.reduce(tl.reduce(x, 3, kv_min), 2, kv_min), 1, kv_min)

@triton.jit
def kv_row_two_sums(a, b):
    return tl.reduce((tl.sum(tl.sum(a, 3), 2), tl.sum(tl.sum(b, 3), 2)), 1, kv_add_two)

@triton.jit
def kv_row_three_sums(a, b, c):
    a, b, c = tl.sum(tl.sum(a, 3), 2), tl.sum(tl.sum(b, 3), 2), tl.sum(tl.sum(c, 3), 2)
    return tl.reduce((a, b, c), 1, kv_add_three)

@triton.jit
def kv_key32(x, greatest: tl.constexpr, first_nan: tl.constexpr):
    b = (x + 0.0).to(tl.int32, bitcast=True)
    k = b ^ ((b >> 31) & 0x7FFFFFFF)
    k = ~k if greatest else k
    return tl.where(x != x, -2147483648 if first_nan else 2147483647, k)

@triton.jit
def kv_key64(x, greatest: tl.constexpr, first_nan: tl.constexpr):
    b = (x + 0.0).to(tl.int64, bitcast=True)
    k = b ^ ((b >> 63) & 0x7FFFFFFFFFFFFFFF)
    k = ~k if greatest else k
    return tl.where(x != x, -9223372036854775808 if first_nan else 9223372036854775807, k)

@triton.jit
def kv_key16(x, half: tl.constexpr, greatest: tl.constexpr, first_nan: tl.constexpr):
    b = (x + 0.0).to(half).to(tl.int16, bitcast=True).to(tl.int32)
    k = b ^ ((b >> 31) & 0x7FFF)
    k = ~k if greatest else k
    return tl.where(x != x, -32768 if first_nan else 32767, k)

@triton.jit
def kv_key_int(x, greatest: tl.constexpr):
    return ~x if greatest else x

@triton.jit
def kv_low_float(x, c):
    b = x.to(tl.int32, bitcast=True)
    changed = b ^ (x + 0.0).to(tl.int32, bitcast=True)
    return (c << 1) + ((changed >> 31) & 1)

@triton.jit
def kv_float_of(key, low, greatest: tl.constexpr):
    k = ~key if greatest else key
    return (k ^ ((k >> 31) & 0x7FFFFFFF) ^ (low << 31)).to(tl.float32, bitcast=True)

@triton.jit
def kv_half_of(key, low, half: tl.constexpr, greatest: tl.constexpr):
    k = ~key if greatest else key
    x = (k ^ ((k >> 31) & 0x7FFF)).to(tl.int16).to(half, bitcast=True).to(tl.float32)
    return tl.where((low & 1) != 0, -x, x)

@triton.jit
def kv_pack_float64(key, low):
    above = ((key >> 12) & 0xFFFFF) ^ 0x43380000
    below = (key << 20) | low
    bits = (above.to(tl.int64) << 32) | (below.to(tl.int64) & 0xFFFFFFFF)
    return bits.to(tl.float64, bitcast=True)

@triton.jit
def kv_pack_int64(key, low):
    return (key.to(tl.int64) << 32) | low.to(tl.int64)

@triton.jit
def kv_pack_int32(key, low):
    return (key << 16) | low

@triton.jit
def kv_unpack_float64(p):
    bits = p.to(tl.int64, bitcast=True)
    return (bits >> 20).to(tl.int32) ^ -2147483648, bits.to(tl.int32) & 0xFFFFF

@triton.jit
def kv_unpack_int64(p):
    return (p >> 32).to(tl.int32), (p & 0xFFFFFFFF).to(tl.int32)

@triton.jit
def kv_unpack_int32(p):
    return p >> 16, p & 0xFFFF

@triton.jit
def kv_lower(a, b):
    return tl.where(a > b, b, a)

@triton.jit
def kv_inserted(held, new):
    # Rows in order, each with one number more and without its last.
    k = tl.zeros(held.shape, tl.int32) + tl.arange(0, held.shape[1])[None, :]
    before = tl.gather(held, tl.maximum(k - 1, 0), 1)
    number = tl.broadcast_to(new[:, None], held.shape)
    moved = tl.where((k > 0) & (before > number), before, number)
    return tl.where(held > moved, moved, held)

@triton.jit
def kv_exchange(a, b):
    if a.dtype.is_floating():
        g = a > b
        return tl.where(g, b, a), tl.where(g, a, b)
    else:
        return tl.minimum(a, b), tl.maximum(a, b)

@triton.jit
def kv_keep(x, other, lower):
    return tl.where((x > other) == lower, other, x)
"""
