"""Binary and linear searches over a block of values, as C++ that vectorises. All give eager's positions, NaN last."""

from __future__ import annotations

# Values are searched in groups of this many, so buffers are padded to it.
LANES = 64
# Levels of a search that stays in vector registers; 2 ** 7 - 1 borders at most.
TABLE_LEVELS = 7

_BELOW = r"""
template <bool right, typename T> static inline bool kv_below(T border, T value) {
  return right ? !(border > value) : !(border >= value);
}
template <typename T> struct kv_lane { typedef int32_t type; };
template <> struct kv_lane<double> { typedef int64_t type; };
template <> struct kv_lane<int64_t> { typedef int64_t type; };
"""

_COUNT = r"""
// Every border is compared with every value.
template <bool right, typename T>
static inline void kv_search_count(const T* borders, int64_t count, const T* values, int32_t* found, int64_t n) {
  typedef typename kv_lane<T>::type lane;
  for (int64_t i = 0; i < n; i += 64) {
    lane below[64] = {};
    for (int64_t k = 0; k < count; k++) {
      const T border = borders[k];
      for (int j = 0; j < 64; j++) below[j] += lane(kv_below<right>(border, values[i + j]));
    }
    for (int j = 0; j < 64; j++) found[i + j] = int32_t(below[j]);
  }
}
"""

# Steps are masked rather than selected: compilers turn a selected step into a branch that is mispredicted half the time.
_LANES = r"""
// Binary search of 64 values in step: the lengths of what is left to search are the same for all of them.
template <bool right, typename T>
static inline void kv_search_lanes(const T* borders, int64_t count, const T* values, int32_t* found, int64_t n) {
  typedef typename kv_lane<T>::type lane;
  for (int64_t i = 0; i < n; i += 64) {
    lane low[64] = {};
    for (lane length = lane(count); length > 1;) {
      const lane half = length >> 1;
      const T* probe = borders + (half - 1);
      for (int j = 0; j < 64; j++) low[j] += -lane(kv_below<right>(probe[low[j]], values[i + j])) & half;
      length -= half;
    }
    for (int j = 0; j < 64; j++) found[i + j] = int32_t(low[j] + lane(kv_below<right>(borders[low[j]], values[i + j])));
  }
}
"""

_SPLIT = r"""
// Evenly spaced borders, 16 to 32 of them, are compared with every value; binary search finds the place between two.
template <bool right, typename T>
static inline void kv_search_split(const T* borders, int64_t count, const T* values, int32_t* found, int64_t n) {
  typedef typename kv_lane<T>::type lane;
  const lane last = lane(count) - 1;
  lane stride = 1;
  while (stride * 32 <= lane(count)) stride *= 2;
  for (int64_t i = 0; i < n; i += 64) {
    lane low[64] = {};
    for (int64_t k = stride - 1; k < count; k += stride) {
      const T border = borders[k];
      for (int j = 0; j < 64; j++) low[j] += -lane(kv_below<right>(border, values[i + j])) & stride;
    }
    for (lane half = stride >> 1; half > 0; half >>= 1) {
      for (int j = 0; j < 64; j++) {
        lane at = low[j] + (half - 1);
        at = at > last ? last : at;
        low[j] += -lane(kv_below<right>(borders[at], values[i + j])) & half;
      }
    }
    // A value beyond all borders also passes the steps that were held at the last one.
    for (int j = 0; j < 64; j++) found[i + j] = int32_t(low[j] > last ? last + 1 : low[j]);
  }
}
"""

# Borders 4 apart sit in two registers for the first five levels, all 128 in eight for the last two.
_TABLE = r"""
#if defined(__clang__)
template <bool right, typename T>
static inline void kv_search_table(const T* borders, int64_t count, const T* values, int32_t* found, int64_t n) {
  kv_search_lanes<right>(borders, count, values, found, n);
}
#else
typedef int32_t kv_slots __attribute__((vector_size(64)));
template <bool right, typename T>
static inline void kv_search_table(const T* borders, int64_t count, const T* values, int32_t* found, int64_t n) {
  typedef T lanes __attribute__((vector_size(64)));
  alignas(64) T all[128];
  alignas(64) T coarse[32];
  for (int k = 0; k < 128; k++) all[k] = borders[k < count ? k : count - 1];
  for (int k = 0; k < 32; k++) coarse[k] = all[4 * k + 3];
  lanes table[8], top[2];
  for (int r = 0; r < 8; r++) std::memcpy(&table[r], all + 16 * r, 64);
  for (int r = 0; r < 2; r++) std::memcpy(&top[r], coarse + 16 * r, 64);
  const kv_slots most = kv_slots{} + int32_t(count);
  for (int64_t i = 0; i < n; i += 16) {
    lanes value;
    std::memcpy(&value, values + i, 64);
    kv_slots low = {};
#pragma GCC unroll 5
    for (int32_t half = 16; half > 0; half >>= 1) {
      const lanes border = __builtin_shuffle(top[0], top[1], low + (half - 1));
      low += (right ? border > value : border >= value) ? kv_slots{} : kv_slots{} + half;
    }
    low *= 4;
#pragma GCC unroll 2
    for (int32_t half = 2; half > 0; half >>= 1) {
      const kv_slots at = low + (half - 1);
      const lanes b0 = __builtin_shuffle(table[0], table[1], at), b1 = __builtin_shuffle(table[2], table[3], at);
      const lanes b2 = __builtin_shuffle(table[4], table[5], at), b3 = __builtin_shuffle(table[6], table[7], at);
      const lanes left = (at & 32) != 0 ? b1 : b0, upper = (at & 32) != 0 ? b3 : b2;
      const lanes border = (at & 64) != 0 ? upper : left;
      low += (right ? border > value : border >= value) ? kv_slots{} : kv_slots{} + half;
    }
    // What follows the last border repeats it.
    low = low > most ? most : low;
    std::memcpy(found + i, &low, 64);
  }
}
#endif
"""

_NEEDS = {
    "count": (_BELOW, _COUNT),
    "lanes": (_BELOW, _LANES),
    "split": (_BELOW, _SPLIT),
    "table": (_BELOW, _LANES, _TABLE),
}


def search_helpers(methods: set[str]) -> str:
    """The helpers that ``methods`` need, each once."""
    texts: dict[str, None] = {}
    for method in sorted(methods):
        texts |= dict.fromkeys(_NEEDS[method])
    return "".join(texts)


def possible(method: str, dtype: str, count: int) -> bool:
    return method != "table" or (dtype in ("float32", "int32") and count < 2**TABLE_LEVELS)
