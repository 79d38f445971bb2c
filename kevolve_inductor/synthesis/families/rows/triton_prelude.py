"""Triton helpers of row programs.

A *packed* value orders as the selection asks, smallest first: its key above its position, so that equal keys keep their
order and every packed value is unique; the lowest bit remembers the sign of a zero, which the key does not. Keys of 32
bits are packed into int64, or into the mantissa of a positive double, which compares in one instruction on chips with
fast doubles; keys of 16 bits into int32.

Networks work on tensors ``[rows, lanes, m]`` whose last axis lies in each thread's registers: along it a
compare-exchange moves nothing between threads.
"""

from __future__ import annotations

ROW_HELPERS = """
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
def kv_exchange(x, d: tl.constexpr, up, rows: tl.constexpr, lanes: tl.constexpr, m: tl.constexpr):
    y = tl.permute(tl.reshape(x, [rows, lanes, m // (2 * d), 2, d]), (0, 1, 2, 4, 3))
    a, b = tl.split(y)
    g = (a > b) == up
    y = tl.join(tl.where(g, b, a), tl.where(g, a, b))
    return tl.reshape(tl.permute(y, (0, 1, 2, 4, 3)), [rows, lanes, m])

@triton.jit
def kv_other_lane(x, s: tl.constexpr, rows: tl.constexpr, lanes: tl.constexpr, m: tl.constexpr):
    if x.dtype == tl.int32:
        y = x
    else:
        y = x.to(tl.int64, bitcast=True)
    y = tl.reshape(y, [rows, lanes // (2 * s), 2, s, m])
    y = tl.sum(y, 2, keep_dims=True) - y
    return tl.reshape(y, [rows, lanes, m]).to(x.dtype, bitcast=True)

@triton.jit
def kv_opposite(x, where):
    return tl.where(where, -x, x) if x.dtype == tl.float64 else tl.where(where, ~x, x)

@triton.jit
def kv_reversed(x, rows: tl.constexpr, lanes: tl.constexpr, m: tl.constexpr):
    for s in tl.static_range(m.bit_length() - 1):
        y = tl.permute(tl.reshape(x, [rows, lanes, m >> (s + 1), 2, 1 << s]), (0, 1, 2, 4, 3))
        a, b = tl.split(y)
        x = tl.reshape(tl.permute(tl.join(b, a), (0, 1, 2, 4, 3)), [rows, lanes, m])
    return x

@triton.jit
def kv_sorted_runs(x, n: tl.constexpr, rows: tl.constexpr, lanes: tl.constexpr, m: tl.constexpr):
    for k in tl.static_range(1, n.bit_length()):
        for s in tl.static_range(k):
            if (1 << k) == m:
                x = kv_exchange(x, 1 << (k - 1 - s), True, rows, lanes, m)
            else:
                group = tl.arange(0, m >> (k - s))[None, None, :, None] >> s
                x = kv_exchange(x, 1 << (k - 1 - s), (group & 1) == 0, rows, lanes, m)
    return x

@triton.jit
def kv_merged(x, rows: tl.constexpr, lanes: tl.constexpr, m: tl.constexpr):
    for s in tl.static_range(m.bit_length() - 1):
        x = kv_exchange(x, m >> (s + 1), True, rows, lanes, m)
    return x

@triton.jit
def kv_sort(x, rows: tl.constexpr, lanes: tl.constexpr, m: tl.constexpr):
    steps: tl.constexpr = lanes.bit_length() - 1
    lane = tl.arange(0, lanes)[None, :, None]
    if steps > 0:
        x = kv_opposite(x, (lane & 1) != 0)
    x = kv_sorted_runs(x, m, rows, lanes, m)
    for k in tl.static_range(1, steps + 1):
        if k < steps:
            x = kv_opposite(x, (((lane >> (k - 1)) ^ (lane >> k)) & 1) != 0)
        else:
            x = kv_opposite(x, ((lane >> (k - 1)) & 1) != 0)
        for q in tl.static_range(k):
            other = kv_other_lane(x, 1 << (k - 1 - q), rows, lanes, m)
            x = tl.where((x > other) == ((lane & (1 << (k - 1 - q))) == 0), other, x)
        x = kv_merged(x, rows, lanes, m)
    return x

@triton.jit
def kv_first_of_thread(x, n: tl.constexpr, rows: tl.constexpr, lanes: tl.constexpr, m: tl.constexpr):
    bits: tl.constexpr = n.bit_length() - 1
    x = kv_sorted_runs(x, n, rows, lanes, m)
    for q in tl.static_range(m.bit_length() - 1 - bits):
        y = tl.permute(tl.reshape(x, [rows, lanes, m >> (q + 1 + bits), 2, n]), (0, 1, 2, 4, 3))
        a, b = tl.split(y)
        x = tl.reshape(kv_lower(a, b), [rows, lanes, m >> (q + 1)])
        for s in tl.static_range(bits):
            if (m >> (q + 1)) == n:
                x = kv_exchange(x, n >> (s + 1), True, rows, lanes, n)
            else:
                group = tl.arange(0, m >> (q + 1 + bits - s))[None, None, :, None] >> s
                x = kv_exchange(x, n >> (s + 1), (group & 1) == 0, rows, lanes, m >> (q + 1))
    return x

@triton.jit
def kv_first_of_lanes(x, rows: tl.constexpr, lanes: tl.constexpr, m: tl.constexpr):
    for q in tl.static_range(lanes.bit_length() - 1):
        other = kv_other_lane(kv_reversed(x, rows, lanes, m), 1 << q, rows, lanes, m)
        x = kv_merged(kv_lower(x, other), rows, lanes, m)
    return tl.min(x, 1)
"""
