"""C++ helpers of row programs, in pieces; a kernel's text holds those it uses.

Terms: a *tile* is ``n`` positions of ``L`` lanes, ``tile[position * L + lane]``. With rows in lanes a lane is a row; with
one row at a time a lane is a column modulo ``L`` and lanes are brought together at the end of the row (``…_across``).

Selections are in ``cpp_selections``.
"""

from __future__ import annotations

import re

from .cpp_selections import SELECTIONS, networks

# Name → text. A piece is needed if its name occurs in the kernel or in another needed piece.
_PIECES: dict[str, str] = {}

_PIECES["kv_simd"] = r"""
template <typename T, int L> struct kv_simd { typedef T type __attribute__((vector_size(sizeof(T) * L))); };
template <typename V, typename T> static inline V kv_get(const T* p) { V v; std::memcpy(&v, p, sizeof(V)); return v; }
template <typename V, typename T> static inline void kv_put(T* p, V v) { std::memcpy(p, &v, sizeof(V)); }
"""

# Memory elements as computed with: `get` and `put` convert.
_PIECES["kv_plain"] = r"""
template <typename T> struct kv_plain {
  static inline T get(T x) { return x; }
  static inline T put(T x) { return x; }
};
"""
_PIECES["kv_bf16"] = r"""
struct kv_bf16 {
  static inline float get(uint16_t x) { return kv_from_bf16(x); }
  static inline uint16_t put(float x) { return kv_to_bf16(x); }
};
"""
_PIECES["kv_fp16"] = r"""
struct kv_fp16 {
  static inline float get(uint16_t x) { return kv_from_fp16(x); }
  static inline uint16_t put(float x) { return kv_to_fp16(x); }
};
"""
_PIECES["kv_flag"] = r"""
struct kv_flag {
  static inline bool get(uint8_t x) { return x != 0; }
  static inline uint8_t put(bool x) { return x; }
};
"""

# Transposition by perfect shuffles: log2(N) rounds, each interleaving row i with row i + N/2.
_PIECES["kv_transpose"] = r"""
template <int N, int H, typename V, std::size_t... I>
static inline V kv_interleave(V a, V b, std::index_sequence<I...>) {
  return __builtin_shufflevector(a, b, int((I % 2 ? N : 0) + I / 2 + H * (N / 2))...);
}
template <int N, typename V> static inline void kv_transpose(V (&r)[N]) {
  V t[N];
#pragma GCC unroll 4
  for (int s = 1; s < N; s *= 2) {
#pragma GCC unroll 8
    for (int i = 0; i < N / 2; ++i) {
      t[2 * i] = kv_interleave<N, 0>(r[i], r[i + N / 2], std::make_index_sequence<N>());
      t[2 * i + 1] = kv_interleave<N, 1>(r[i], r[i + N / 2], std::make_index_sequence<N>());
    }
#pragma GCC unroll 16
    for (int i = 0; i < N; ++i) r[i] = t[i];
  }
}
"""

_PIECES["kv_load_tile"] = r"""
template <int L, typename As, typename T, typename S>
static inline void kv_load_tile(T* tile, const S* source, int64_t row_step, int64_t n) {
  constexpr int N = kv_lanes<T, L>();
  int64_t c = 0;
  if constexpr (N > 1 && sizeof(T) >= 4) {
    typedef typename kv_simd<T, N>::type vec;
    for (; c + N <= n; c += N) {
      for (int h = 0; h < L; h += N) {
        vec r[N];
#pragma GCC unroll 16
        for (int i = 0; i < N; ++i) {
          alignas(64) T row[N];
          const S* from = source + (h + i) * row_step + c;
          __builtin_prefetch(from + L * row_step);
          for (int j = 0; j < N; ++j) row[j] = As::get(from[j]);
          r[i] = kv_get<vec>(row);
        }
        kv_transpose<N>(r);
#pragma GCC unroll 16
        for (int i = 0; i < N; ++i) kv_put(tile + (c + i) * L + h, r[i]);
      }
    }
  }
  for (; c < n; ++c)
    for (int l = 0; l < L; ++l) tile[c * L + l] = As::get(source[l * row_step + c]);
}
"""

_PIECES["kv_store_tile"] = r"""
template <int L, typename As, typename T, typename D>
static inline void kv_store_tile(D* target, const T* tile, int64_t row_step, int64_t n) {
  constexpr int N = kv_lanes<T, L>();
  int64_t c = 0;
  if constexpr (N > 1 && sizeof(T) >= 4) {
    typedef typename kv_simd<T, N>::type vec;
    for (; c + N <= n; c += N) {
      for (int h = 0; h < L; h += N) {
        vec r[N];
#pragma GCC unroll 16
        for (int i = 0; i < N; ++i) r[i] = kv_get<vec>(tile + (c + i) * L + h);
        kv_transpose<N>(r);
        if constexpr (std::is_same_v<As, kv_plain<T>> && std::is_same_v<D, T>) {
#pragma GCC unroll 16
          for (int i = 0; i < N; ++i) kv_put(target + (h + i) * row_step + c, r[i]);
        } else {
          // Not unrolled: else the compiler takes the transposition apart into single elements.
          alignas(64) T rows[N * N];
#pragma GCC unroll 16
          for (int i = 0; i < N; ++i) kv_put(rows + i * N, r[i]);
#pragma GCC unroll 1
          for (int i = 0; i < N; ++i) {
            D* to = target + (h + i) * row_step + c;
#pragma GCC unroll 1
            for (int j = 0; j < N; ++j) to[j] = As::put(rows[i * N + j]);
          }
        }
      }
    }
  }
  for (int l = 0; l < L; ++l)
    for (int64_t k = c; k < n; ++k) target[l * row_step + k] = As::put(tile[k * L + l]);
}
"""

# Reductions of a tile into one accumulator per lane. Floats are added up as doubles: where terms nearly cancel, as in the
# gradient of a softmax, the result has no digit to lose.
_PIECES["kv_fold_sum"] = r"""
template <int L, typename A, typename T> static inline void kv_fold_sum(A* total, const T* tile, int64_t n) {
  constexpr int V = L < 32 ? L : 32;
  for (int h = 0; h < L; h += V) {
    A sums[V] = {};
    for (int64_t i = 0; i < n; ++i)
      for (int l = 0; l < V; ++l) sums[l] += tile[i * L + h + l];
    for (int l = 0; l < V; ++l) total[h + l] += sums[l];
  }
}
template <int L, typename A> static inline A kv_across_sum(const A* total) {
  A sum = 0;
  for (int l = 0; l < L; ++l) sum += total[l];
  return sum;
}
"""
_EXTREME = r"""
template <int L, typename T> static inline void kv_fold_NAME(T* best, const T* tile, int64_t n) {
  constexpr int V = kv_lanes<T, L>();
  typedef typename kv_simd<T, V>::type vec;
  for (int h = 0; h < L; h += V) {
    vec a = kv_get<vec>(best + h), b = a;
    int64_t i = 0;
    for (; i + 1 < n; i += 2) {
      vec x = kv_get<vec>(tile + i * L + h), y = kv_get<vec>(tile + i * L + L + h);
      a = (a SIGN x) | (a != a) ? a : x;
      b = (b SIGN y) | (b != b) ? b : y;
    }
    a = (a SIGN b) | (a != a) ? a : b;
    if (i < n) {
      vec x = kv_get<vec>(tile + i * L + h);
      a = (a SIGN x) | (a != a) ? a : x;
    }
    kv_put(best + h, a);
  }
}
template <int L, typename T> static inline T kv_across_NAME(const T* best) {
  T a = best[0];
  for (int l = 1; l < L; ++l) a = (a SIGN best[l]) | (a != a) ? a : best[l];
  return a;
}
"""
_PIECES["kv_fold_amax"] = _EXTREME.replace("NAME", "amax").replace("SIGN", ">")
_PIECES["kv_fold_amin"] = _EXTREME.replace("NAME", "amin").replace("SIGN", "<")

# The same of `n` neighbours along a row, into 16 accumulators. Float32 serves within a block, whose few terms go into 64
# sums of their own.
_PIECES["kv_total"] = r"""
template <typename A, typename T> static inline void kv_total(A* total, const T* x, int64_t n) {
  constexpr int V = kv_lanes<T, 16>(), G = 16 / V;
  typedef typename kv_simd<T, V>::type vec;
  vec a[4][G] = {};
  int64_t i = 0;
  for (; i + 64 <= n; i += 64)
#pragma GCC unroll 4
    for (int k = 0; k < 4; ++k)
#pragma GCC unroll 8
      for (int g = 0; g < G; ++g) a[k][g] += kv_get<vec>(x + i + 16 * k + g * V);
  for (; i + 16 <= n; i += 16)
#pragma GCC unroll 8
    for (int g = 0; g < G; ++g) a[0][g] += kv_get<vec>(x + i + g * V);
  alignas(64) T sums[16];
#pragma GCC unroll 8
  for (int g = 0; g < G; ++g) kv_put(sums + g * V, (a[0][g] + a[1][g]) + (a[2][g] + a[3][g]));
  for (int l = 0; i < n; ++i, ++l) sums[l] += x[i];
  for (int l = 0; l < 16; ++l) total[l] += A(sums[l]);
}
"""
_ALONG = r"""
template <typename T> static inline void kv_along_NAME(T* best, const T* x, int64_t n) {
  kv_fold_NAME<16>(best, x, n / 16);
  int64_t i = n / 16 * 16;
  for (int l = 0; i < n; ++i, ++l) best[l] = FUNCTION(best[l], x[i]);
}
"""
_PIECES["kv_along_amax"] = _ALONG.replace("NAME", "amax").replace("FUNCTION", "kv_max")
_PIECES["kv_along_amin"] = _ALONG.replace("NAME", "amin").replace("FUNCTION", "kv_min")

# Past the caches, in whole lines: what is written is not read first, and nothing else has to make room for it. By the
# compilers' own functions: the header that names the instructions takes half a second to read.
_PIECES["kv_stream"] = r"""
typedef long long kv_words __attribute__((vector_size(__BIGGEST_ALIGNMENT__), may_alias));
static inline void kv_past_caches(kv_words* to, kv_words words) {
#if defined(__clang__)
  __builtin_nontemporal_store(words, to);
#elif defined(__AVX512F__)
  __builtin_ia32_movntdq512(to, words);
#elif defined(__AVX__)
  __builtin_ia32_movntdq256(to, words);
#elif defined(__SSE2__)
  __builtin_ia32_movntdq(to, words);
#else
  *to = words;
#endif
}
template <typename T> static inline void kv_stream(T* __restrict to, const T* __restrict from, int64_t n) {
  const int64_t line = 64 / int64_t(sizeof(T)), part = int64_t(sizeof(kv_words) / sizeof(T));
  int64_t i = std::min<int64_t>(n, int64_t((64 - (uintptr_t(to) & 63)) & 63) / int64_t(sizeof(T)));
  for (int64_t k = 0; k < i; ++k) to[k] = from[k];
  for (; i + line <= n; i += line)
    for (int64_t k = i; k < i + line; k += part) {
      kv_words words;
      std::memcpy(&words, from + k, sizeof words);
      kv_past_caches((kv_words*)(to + k), words);
    }
  for (; i < n; ++i) to[i] = from[i];
}
static inline void kv_streamed() {
#if defined(__SSE2__)
  __builtin_ia32_sfence();
#endif
}
"""

# Exponential of what is not positive: no overflow to care for, results below the normal range are zero. Rounding to an
# integer by a large number that leaves it in the low bits; else as kv_exp. The last choice is one maximum, NaN last.
_PIECES["kv_exp_below"] = r"""
static inline float kv_exp_below(float x) {
  float t = x * 1.44269504088896341f + 12582912.0f;
  float n = t - 12582912.0f;
  float r = x - n * 0.693359375f;
  r = r + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = (p * r + 1.0f) * r + 1.0f;
  float y = std::bit_cast<float>(std::bit_cast<int32_t>(p) + (std::bit_cast<int32_t>(t) << 23));
  return x >= -87.33f ? y : 0.0f > x ? 0.0f : x;
}
static inline double kv_exp_below(double x) { return std::exp(x); }
"""

# A block of a row that is read once for its maximum and the sum of exponentials below it. What was summed below a lower
# maximum is scaled in double, and so is what was kept. A row without any number above -inf has no such sum, as eager has it.
_PIECES["kv_online"] = r"""
template <typename T>
static inline void kv_online(T& top, double* total, const T* __restrict x, T* __restrict below, int64_t n) {
  alignas(64) T best[16];
  for (int l = 0; l < 16; ++l) best[l] = -std::numeric_limits<T>::infinity();
  kv_along_amax(best, x, n);
  const T found = kv_across_amax<16>(best);
  if (top == top && !(found <= top)) {
    const double share = std::exp(double(top) - double(found));
    for (int l = 0; l < 16; ++l) total[l] *= share;
    top = found;
  }
  const T shift = top == -std::numeric_limits<T>::infinity() ? T(0) : top;
  // The next block comes while this one's exponentials are computed.
  for (int64_t i = 0; i < n; i += 256) {
    const int64_t end = std::min<int64_t>(i + 256, n);
    for (int64_t k = i; k < end; k += 64 / sizeof(T)) __builtin_prefetch(x + n + k);
#pragma GCC ivdep
    for (int64_t k = i; k < end; ++k) below[k] = kv_exp_below(x[k] - shift);
  }
  kv_total(total, below, n);
}
template <typename T> static inline T kv_online_share(T shift, T top) {
  return shift == top && top != -std::numeric_limits<T>::infinity() ? T(1) : T(std::exp(double(shift) - double(top)));
}
template <typename T> static inline double kv_online_sum(T top, const double* total) {
  return top == -std::numeric_limits<T>::infinity() ? std::numeric_limits<double>::quiet_NaN() : kv_across_sum<16>(total);
}
"""

# One lane vector is always whole: what is missing at the end of a row is filled with `x`.
_PIECES["kv_pad"] = r"""
template <int L, typename T> static inline int64_t kv_pad(T* tile, int64_t n, T x) {
  int64_t rows = (n + L - 1) / L;
  for (int64_t i = n; i < rows * L; ++i) tile[i] = x;
  return rows;
}
"""

_PIECES |= SELECTIONS


def pieces_for(text: str) -> str:
    """The helpers that ``text`` uses, in order of definition."""
    needed: set[str] = set()
    open_texts = [text]
    while open_texts:
        current = open_texts.pop()
        for name, piece in _PIECES.items():
            if name not in needed and re.search(rf"\b{_word(name)}\w*\b", current):
                needed.add(name)
                open_texts.append(piece)
    return "".join(piece.replace("NETWORKS", networks()) for name, piece in _PIECES.items() if name in needed)


_OTHER_NAMES = {
    "kv_simd": "kv_simd|kv_get|kv_put",
    "kv_key": "kv_key|kv_unkey|kv_negative_zero",
    "kv_fold_sum": "kv_fold_sum|kv_across_sum",
    "kv_fold_amax": "kv_fold_amax|kv_across_amax",
    "kv_fold_amin": "kv_fold_amin|kv_across_amin",
    "kv_first": "kv_first|kv_place|kv_before",
    "kv_code16": "kv_code16|kv_bits",
    "kv_exchange": "kv_exchange|kv_network",
}


def _word(name: str) -> str:
    """A pattern of the names that a piece defines."""
    return f"(?:{_OTHER_NAMES.get(name, name)})"
