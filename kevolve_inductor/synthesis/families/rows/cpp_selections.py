"""C++ helpers of row programs that select: keys, packing, what keeps the first few, and sorting.

A *packed* value orders as the selection asks, smallest first: its key above its position, so that equal keys keep their
order and every packed value is unique. The lowest bit remembers the sign of a zero, which the key does not.
"""

from __future__ import annotations

from .networks import sorting

# Name → text, as in ``cpp_prelude``.
SELECTIONS: dict[str, str] = {}

# The first element in an order, per lane. Orders: 0 greatest, 1 smallest (NaN is the greatest number), 2 least (NaN first).
SELECTIONS["kv_first"] = r"""
template <typename T> struct kv_place { typedef typename std::conditional_t<sizeof(T) == 8, int64_t, int32_t> type; };
template <int O, typename V> static inline auto kv_before(V x, V v) {
  if constexpr (O == 0) return ~(x <= v) & (v == v);
  else if constexpr (O == 1) return (x < v) | ((v != v) & (x == x));
  else return ~(x >= v) & (v == v);
}
template <int O, int L, typename T, typename I>
static inline void kv_first(T* value, I* place, const T* tile, int64_t n, int64_t at) {
  constexpr int V = kv_lanes<T, L>();
  typedef typename kv_simd<T, V>::type vec;
  typedef typename kv_simd<I, V>::type ints;
  for (int h = 0; h < L; h += V) {
    int64_t i = at == 0 ? 1 : 0;
    vec v = at == 0 ? kv_get<vec>(tile + h) : kv_get<vec>(value + h);
    ints p = at == 0 ? ints{} : kv_get<ints>(place + h);
    ints q = ints{} + I(at + i);
    for (; i < n; ++i) {
      vec x = kv_get<vec>(tile + i * L + h);
      auto better = kv_before<O>(x, v);
      v = better ? x : v;
      p = better ? q : p;
      q += I(1);
    }
    kv_put(value + h, v);
    kv_put(place + h, p);
  }
}
template <int O, int L, typename T, typename I> static inline int kv_first_across(const T* value, const I* place) {
  int best = 0;
  for (int l = 1; l < L; ++l) {
    typename kv_simd<T, 1>::type x = {value[l]}, v = {value[best]};
    bool better = kv_before<O>(x, v)[0] != 0, worse = kv_before<O>(v, x)[0] != 0;
    bool sooner = int64_t(place[l]) * L + l < int64_t(place[best]) * L + best;
    best = better || (!worse && sooner) ? l : best;
  }
  return best;
}
"""

SELECTIONS["kv_key"] = r"""
template <int O> static inline int32_t kv_key(float x) {
  int32_t b = std::bit_cast<int32_t>(x + 0.0f), k = b ^ ((b >> 31) & 0x7fffffff);
  k = O == 0 ? ~k : k;
  return x != x ? (O == 1 ? INT32_MAX : INT32_MIN) : k;
}
template <int O> static inline int64_t kv_key(double x) {
  int64_t b = std::bit_cast<int64_t>(x + 0.0), k = b ^ ((b >> 63) & INT64_MAX);
  k = O == 0 ? ~k : k;
  return x != x ? (O == 1 ? INT64_MAX : INT64_MIN) : k;
}
template <int O> static inline int32_t kv_key(int32_t x) { return O == 0 ? ~x : x; }
template <int O> static inline int64_t kv_key(int64_t x) { return O == 0 ? ~x : x; }
static inline bool kv_negative_zero(float x) { return std::bit_cast<int32_t>(x) == INT32_MIN; }
static inline bool kv_negative_zero(double x) { return std::bit_cast<int64_t>(x) == INT64_MIN; }
static inline bool kv_negative_zero(int32_t) { return false; }
static inline bool kv_negative_zero(int64_t) { return false; }
template <int O> static inline void kv_unkey(int32_t k, bool z, float& x) {
  k = O == 0 ? ~k : k;
  x = std::bit_cast<float>(k ^ ((k >> 31) & 0x7fffffff));
  x = z ? -x : x;
}
template <int O> static inline void kv_unkey(int64_t k, bool z, double& x) {
  k = O == 0 ? ~k : k;
  x = std::bit_cast<double>(k ^ ((k >> 63) & INT64_MAX));
  x = z ? -x : x;
}
template <int O> static inline void kv_unkey(int32_t k, bool, int32_t& x) { x = O == 0 ? ~k : k; }
template <int O> static inline void kv_unkey(int64_t k, bool, int64_t& x) { x = O == 0 ? ~k : k; }
"""

# Values of up to 32 bits (T: float or int32_t) packed into 64.
SELECTIONS["kv_code32"] = r"""
template <int O, typename T> struct kv_code32 {
  typedef int64_t packed;
  static constexpr packed last = INT64_MAX;
  static constexpr int low_bits = 32, bits = 64;
  static inline packed pack(T x, int64_t at) {
    return (int64_t(kv_key<O>(x)) << 32) | (at << 1) | int64_t(kv_negative_zero(x));
  }
  static inline T value(packed p) {
    T x;
    kv_unkey<O>(int32_t(p >> 32), p & 1, x);
    return x;
  }
  static inline int64_t position(packed p) { return (p & 0xffffffff) >> 1; }
};
"""
# Values of up to 16 bits packed into 32: half-precision floats (held as float) by their bits, small integers by value.
SELECTIONS["kv_code16"] = r"""
struct kv_bits_bf16 {
  typedef float held;
  static inline int32_t of(float x) { return std::bit_cast<int32_t>(x) >> 16; }
  static inline float to(int32_t b) { return kv_from_bf16(uint16_t(b)); }
};
struct kv_bits_fp16 {
  typedef float held;
  static inline int32_t of(float x) { return int16_t(kv_to_fp16(x)); }
  static inline float to(int32_t b) { return kv_from_fp16(uint16_t(b)); }
};
template <int O, typename Bits> struct kv_code16 {
  typedef int32_t packed;
  static constexpr packed last = INT32_MAX;
  static constexpr int low_bits = 16, bits = 32;
  static inline packed pack(float x, int64_t at) {
    int32_t b = x == 0 ? 0 : Bits::of(x), k = b ^ ((b >> 31) & 0x7fff);
    k = O == 0 ? ~k : k;
    k = x != x ? (O == 1 ? 32767 : -32768) : k;
    return (k << 16) | int32_t(at << 1) | int32_t(kv_negative_zero(x));
  }
  static inline float value(packed p) {
    int32_t k = O == 0 ? ~(p >> 16) : p >> 16;
    float x = Bits::to(k ^ ((k >> 31) & 0x7fff));
    return p & 1 ? -x : x;
  }
  static inline int64_t position(packed p) { return (p & 0xffff) >> 1; }
};
"""
SELECTIONS["kv_code_small"] = r"""
template <int O> struct kv_code_small {
  typedef int32_t packed;
  static constexpr packed last = INT32_MAX;
  static constexpr int low_bits = 16, bits = 32;
  static inline packed pack(int32_t x, int64_t at) { return (kv_key<O>(x) << 16) | int32_t(at << 1); }
  static inline int32_t value(packed p) { return kv_key<O>(p >> 16); }
  static inline int64_t position(packed p) { return (p & 0xffff) >> 1; }
};
"""
# Values of 64 bits do not fit beside their position: a pair.
SELECTIONS["kv_code64"] = r"""
struct kv_pair {
  int64_t key, low;
  bool operator<(const kv_pair& other) const { return key < other.key || (key == other.key && low < other.low); }
};
template <int O, typename T> struct kv_code64 {
  typedef kv_pair packed;
  static constexpr packed last = {INT64_MAX, INT64_MAX};
  static constexpr int low_bits = 0, bits = 64;
  static inline packed pack(T x, int64_t at) { return {kv_key<O>(x), (at << 1) | int64_t(kv_negative_zero(x))}; }
  static inline T value(packed p) {
    T x;
    kv_unkey<O>(p.key, p.low & 1, x);
    return x;
  }
  static inline int64_t position(packed p) { return p.low >> 1; }
};
"""

# Batcher's odd-even merge sort of registers.
SELECTIONS["kv_exchange"] = r"""
template <typename V> static inline void kv_exchange(V& a, V& b) {
  V low = b < a ? b : a;
  b = b < a ? a : b;
  a = low;
}
template <int N, typename V> static inline void kv_network(V (&r)[N]) {
NETWORKS}
"""

# The K first of every lane, kept in order in registers; each element passes through K compare-exchanges.
SELECTIONS["kv_insert"] = r"""
template <int K, int L, typename P> static inline void kv_insert(P* best, const P* tile, int64_t n) {
  constexpr int V = kv_lanes<P, L>();
  typedef typename kv_simd<P, V>::type vec;
  for (int h = 0; h < L; h += V) {
    vec b[K];
#pragma GCC unroll 64
    for (int j = 0; j < K; ++j) b[j] = kv_get<vec>(best + j * L + h);
    for (int64_t c = 0; c < n; ++c) {
      vec x = kv_get<vec>(tile + c * L + h);
#pragma GCC unroll 64
      for (int j = 0; j < K; ++j) {
        vec low = x < b[j] ? x : b[j];
        x = x < b[j] ? b[j] : x;
        b[j] = low;
      }
    }
#pragma GCC unroll 64
    for (int j = 0; j < K; ++j) kv_put(best + j * L + h, b[j]);
  }
}
"""

# The same by runs of K (a power of two): each is sorted by itself, then only its better half meets what is kept.
SELECTIONS["kv_keep_runs"] = r"""
template <int K, typename V> static inline void kv_clean(V (&r)[K]) {
#pragma GCC unroll 8
  for (int d = K / 2; d > 0; d /= 2)
#pragma GCC unroll 32
    for (int i = 0; i < K; ++i)
      if (!(i & d)) kv_exchange(r[i], r[i + d]);
}
template <int K, int L, typename P> static inline void kv_keep_runs(P* best, const P* tile, int64_t n) {
  constexpr int W = kv_lanes<P, L>();
  typedef typename kv_simd<P, W>::type vec;
  for (int h = 0; h < L; h += W) {
    vec b[K];
#pragma GCC unroll 32
    for (int j = 0; j < K; ++j) b[j] = kv_get<vec>(best + j * L + h);
    for (int64_t c = 0; c < n; c += K) {
      vec r[K];
#pragma GCC unroll 32
      for (int j = 0; j < K; ++j) r[j] = kv_get<vec>(tile + (c + j) * L + h);
      kv_network<K>(r);
#pragma GCC unroll 32
      for (int j = 0; j < K; ++j) b[j] = r[K - 1 - j] < b[j] ? r[K - 1 - j] : b[j];
      kv_clean<K>(b);
    }
#pragma GCC unroll 32
    for (int j = 0; j < K; ++j) kv_put(best + j * L + h, b[j]);
  }
}
"""

# The same by values and places apart: no packing, any type; of equal values the earlier stays in front.
SELECTIONS["kv_rank"] = r"""
template <int O, bool Numbers, typename V> static inline auto kv_ahead(V x, V v) {
  if constexpr (!Numbers) return kv_before<O>(x, v);
  else if constexpr (O == 0) return x > v;
  else return x < v;
}
template <int O, int K, bool Numbers, bool Filling, typename V, typename P>
static inline void kv_rank_one(V (&v)[K], P (&p)[K], V x, P i) {
#pragma GCC unroll 64
  for (int j = 0; j < K; ++j) {
    auto better = kv_ahead<O, Numbers>(x, v[j]);
    if constexpr (Filling) better |= p[j] < 0;
    V w = better ? x : v[j];
    x = better ? v[j] : x;
    v[j] = w;
    P o = better ? i : p[j];
    i = better ? p[j] : i;
    p[j] = o;
  }
}
// Two neighbours at once into a list of two: ordered by themselves, then one comparison for each place.
template <int O, typename V, typename P> static inline void kv_rank_two(V (&v)[2], P (&p)[2], V x, V y, P i, P j) {
  auto turn = kv_ahead<O, true>(y, x);
  V h = turn ? y : x, l = turn ? x : y;
  P hi = turn ? j : i, li = turn ? i : j;
  auto lead = kv_ahead<O, true>(h, v[0]);
  V t = lead ? v[0] : v[1], u = lead ? l : h;
  P ti = lead ? p[0] : p[1], ui = lead ? li : hi;
  v[0] = lead ? h : v[0];
  p[0] = lead ? hi : p[0];
  auto second = kv_ahead<O, true>(u, t);
  v[1] = second ? u : t;
  p[1] = second ? ui : ti;
}
template <int O, int K, int L, bool Numbers, typename T, typename I>
static inline void kv_rank_lanes(T* value, I* place, const T* tile, int64_t n, int64_t at) {
  constexpr int V = kv_lanes<T, L>();
  typedef typename kv_simd<T, V>::type vec;
  typedef typename kv_simd<I, V>::type ints;
  vec v[K];
  ints p[K];
#pragma GCC unroll 64
  for (int j = 0; j < K; ++j) {
    v[j] = at == 0 ? vec{} : kv_get<vec>(value + j * L);
    p[j] = at == 0 ? ints{} - I(1) : kv_get<ints>(place + j * L);
  }
  int64_t c = 0;
  for (; at == 0 && c < K; ++c) kv_rank_one<O, K, Numbers, true>(v, p, kv_get<vec>(tile + c * L), ints{} + I(c));
  if constexpr (K == 2 && Numbers)
    for (; c + 1 < n; c += 2) {
      ints q = ints{} + I(at + c);
      kv_rank_two<O>(v, p, kv_get<vec>(tile + c * L), kv_get<vec>(tile + c * L + L), q, q + I(1));
    }
  for (; c < n; ++c) kv_rank_one<O, K, Numbers, false>(v, p, kv_get<vec>(tile + c * L), ints{} + I(at + c));
#pragma GCC unroll 64
  for (int j = 0; j < K; ++j) {
    kv_put(value + j * L, v[j]);
    kv_put(place + j * L, p[j]);
  }
}
template <int O, int K, int L, typename T, typename I>
static inline void kv_rank(T* value, I* place, const T* tile, int64_t n, int64_t at) {
  constexpr int V = kv_lanes<T, L>();
  typedef typename kv_simd<T, V>::type vec;
  for (int h = 0; h < L; h += V) {
    bool numbers = true;
    if constexpr (T(0.5) != T(0)) {
      // NaN, which needs more comparisons, would show in a sum; so would infinities.
      vec sum = at == 0 ? vec{} : kv_get<vec>(value + h) + kv_get<vec>(value + (K - 1) * L + h);
      for (int64_t c = 0; c < n; ++c) sum += kv_get<vec>(tile + c * L + h);
      T rest = 0;
      for (int l = 0; l < V; ++l) rest += sum[l] - sum[l];
      numbers = rest == 0;
    }
    if (numbers) kv_rank_lanes<O, K, L, true>(value + h, place + h, tile + h, n, at);
    else kv_rank_lanes<O, K, L, false>(value + h, place + h, tile + h, n, at);
  }
}
"""

# Insertion of one element into a row's first `count`, kept in order.
SELECTIONS["kv_place_one"] = r"""
template <typename P> static inline void kv_place_one(P* best, int64_t count, P x) {
  if (!(x < best[count - 1])) return;
  int64_t k = count - 1;
  for (; k > 0 && x < best[k - 1]; --k) best[k] = best[k - 1];
  best[k] = x;
}
"""

# The first `count` of one row, block by block: a block without anything before the last kept is skipped.
SELECTIONS["kv_filter"] = r"""
template <typename Code, int O, typename T>
static inline void kv_filter(typename Code::packed* best, int64_t count, const T* tile, int64_t n, int64_t at) {
  for (int64_t i = 0; i < n; i += 64) {
    int64_t m = n - i < 64 ? n - i : 64, hits = m;
    if (best[count - 1] < Code::last) {
      auto limit = kv_key<O>(T(Code::value(best[count - 1])));
      hits = 0;
      for (int64_t j = 0; j < m; ++j) hits += kv_key<O>(tile[i + j]) < limit;
    }
    if (hits > 0)
      for (int64_t j = 0; j < m; ++j) kv_place_one(best, count, Code::pack(tile[i + j], at + i + j));
  }
}
"""

# The first `count` of a whole row in two reads of it. First one representative, about the best, of each of G groups: the
# `count`-th best of these is a bound that no element wanted is behind. Then the few elements that reach the bound.
SELECTIONS["kv_bound"] = r"""
template <int O, typename T> static inline bool kv_reaches(T x, T bound) { return O == 0 ? !(x < bound) : !(x > bound); }
template <typename Code, int O, int G, typename T>
static inline void kv_bound(typename Code::packed* best, int64_t count, const T* row, int64_t n) {
  constexpr int V = kv_lanes<T, G>();
  typedef typename kv_simd<T, V>::type vec;
  vec a[G / V];
#pragma GCC unroll 16
  for (int g = 0; g < G / V; ++g) a[g] = kv_get<vec>(row + g * V);
  for (int64_t i = G; i + G <= n; i += G)
#pragma GCC unroll 16
    for (int g = 0; g < G / V; ++g) {
      vec x = kv_get<vec>(row + i + g * V);
      a[g] = (O == 0 ? x > a[g] : x < a[g]) ? x : a[g];
    }
  alignas(64) T group[G];
#pragma GCC unroll 16
  for (int g = 0; g < G / V; ++g) kv_put(group + g * V, a[g]);
  decltype(kv_key<O>(T())) keys[G];
  for (int g = 0; g < G; ++g) keys[g] = kv_key<O>(group[g]);
  std::nth_element(keys, keys + count - 1, keys + G);
  T bound;
  kv_unkey<O>(keys[count - 1], false, bound);
  for (int64_t i = 0; i < n; i += 128) {
    int64_t end = n - i < 128 ? n : i + 128;
    int hits = 0;
    for (int64_t j = i; j < end; ++j) hits += kv_reaches<O>(row[j], bound);
    for (int64_t k = i; hits > 0 && k < end; k += 16) {
      int64_t stop = end - k < 16 ? end : k + 16;
      int some = 0;
      for (int64_t j = k; j < stop; ++j) some += kv_reaches<O>(row[j], bound);
      for (int64_t j = k; some > 0 && j < stop; ++j)
        if (kv_reaches<O>(row[j], bound)) kv_place_one(best, count, Code::pack(row[j], j));
    }
  }
}
"""

# Sorting of lanes: 16 positions at a time by a fixed network, then bitonic merges, up to 16 positions in registers.
SELECTIONS["kv_sort_tile"] = r"""
template <int N, typename V> static inline void kv_merge_registers(V (&r)[16]) {
#pragma GCC unroll 4
  for (int d = N / 2; d > 0; d /= 2)
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i)
      if (!(i & d)) kv_exchange(r[i], r[i + d]);
}
template <int M, int L, typename V, typename P> static inline void kv_merge_block(P* tile, int64_t first) {
  if constexpr (M <= 16) {
    V r[16];
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) r[i] = kv_get<V>(tile + (first + i) * L);
    kv_merge_registers<M>(r);
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) kv_put(tile + (first + i) * L, r[i]);
  } else {
    constexpr int step = M / 8;
    for (int a = 0; a < step; ++a) {
      V r[8];
#pragma GCC unroll 8
      for (int i = 0; i < 8; ++i) r[i] = kv_get<V>(tile + (first + a + i * step) * L);
#pragma GCC unroll 3
      for (int d = 4; d > 0; d /= 2)
#pragma GCC unroll 8
        for (int i = 0; i < 8; ++i)
          if (!(i & d)) kv_exchange(r[i], r[i + d]);
#pragma GCC unroll 8
      for (int i = 0; i < 8; ++i) kv_put(tile + (first + a + i * step) * L, r[i]);
    }
    constexpr int rest = step < 16 ? 16 : step;
    for (int64_t at = first; at < first + M; at += rest) kv_merge_block<step, L, V>(tile, at);
  }
}
// Two sorted runs of S / 2 into one of S: first against one another's mirror image, three rounds per visit to memory.
template <int S, int L, typename V, typename P> static inline void kv_merge_runs(P* tile, int64_t first) {
  constexpr int step = S / 8;
  for (int a = 0; a < step / 2; ++a) {
    V r[8], m[8];
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) {
      r[i] = kv_get<V>(tile + (first + a + i * step) * L);
      m[i] = kv_get<V>(tile + (first + step - 1 - a + i * step) * L);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      kv_exchange(r[i], m[7 - i]);
      kv_exchange(m[i], r[7 - i]);
    }
#pragma GCC unroll 2
    for (int d = 2; d > 0; d /= 2)
#pragma GCC unroll 8
      for (int i = 0; i < 8; ++i)
        if (!(i & d)) {
          kv_exchange(r[i], r[i + d]);
          kv_exchange(m[i], m[i + d]);
        }
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) {
      kv_put(tile + (first + a + i * step) * L, r[i]);
      kv_put(tile + (first + step - 1 - a + i * step) * L, m[i]);
    }
  }
  constexpr int rest = step < 16 ? 16 : step;
  for (int64_t at = first; at < first + S; at += rest) kv_merge_block<step, L, V>(tile, at);
}
template <int S, int N, int L, typename V, typename P> static inline void kv_merge_all(P* tile, int64_t n) {
  if constexpr (S <= N) {
    for (int64_t first = 0; first < n; first += S) kv_merge_runs<S, L, V>(tile, first);
    kv_merge_all<2 * S, N, L, V>(tile, n);
  }
}
template <int N, int L, typename P> static inline void kv_sort_tile(P* tile, int64_t n) {
  constexpr int W = kv_lanes<P, L>();
  typedef typename kv_simd<P, W>::type vec;
  for (int h = 0; h < L; h += W) {
    for (int64_t first = 0; first < n; first += 16) {
      vec r[16];
#pragma GCC unroll 16
      for (int i = 0; i < 16; ++i) r[i] = kv_get<vec>(tile + h + (first + i) * L);
      kv_network<16>(r);
#pragma GCC unroll 16
      for (int i = 0; i < 16; ++i) kv_put(tile + h + (first + i) * L, r[i]);
    }
    kv_merge_all<32, N, L, vec>(tile + h, n);
  }
}
"""

# Least significant digit first over the key's bytes; positions rise from the start, so equal keys stay in order.
SELECTIONS["kv_radix"] = r"""
static inline uint32_t kv_digit(int64_t p, int shift) { return uint32_t(uint64_t(p) >> shift) & 255u; }
static inline uint32_t kv_digit(int32_t p, int shift) { return (uint32_t(p) >> shift) & 255u; }
template <typename P> static inline uint32_t kv_digit(const P& p, int shift) { return uint32_t(uint64_t(p.key) >> shift) & 255u; }
template <typename P> static inline void kv_radix(P* data, P* scratch, int64_t n, int low_bits, int bits) {
  P *from = data, *to = scratch;
  for (int shift = low_bits; shift < bits; shift += 8) {
    const uint32_t flip = shift + 8 == bits ? 128u : 0u;
    int64_t starts[256] = {};
    for (int64_t i = 0; i < n; ++i) ++starts[kv_digit(from[i], shift) ^ flip];
    if (starts[kv_digit(from[0], shift) ^ flip] == n) continue;
    int64_t sum = 0;
    for (int d = 0; d < 256; ++d) {
      int64_t next = sum + starts[d];
      starts[d] = sum;
      sum = next;
    }
    for (int64_t i = 0; i < n; ++i) to[starts[kv_digit(from[i], shift) ^ flip]++] = from[i];
    P* swapped = from;
    from = to;
    to = swapped;
  }
  if (from != data) std::memcpy(data, from, size_t(n) * sizeof(P));
}
"""


def networks() -> str:
    lines = []
    for n in (2, 4, 8, 16):
        steps = " ".join(f"kv_exchange(r[{a}], r[{b}]);" for a, b in sorting(n))
        lines.append(f"  if constexpr (N == {n}) {{ {steps} }}\n")
    return "".join(lines)
