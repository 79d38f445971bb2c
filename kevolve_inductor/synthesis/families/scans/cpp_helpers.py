"""C++ helpers of scans: a row scanned within vector registers, and the steps of the kinds of scans.

A running sum, product or extreme is one number. A logarithm of a sum of exponentials is carried as the greatest value so
far and the sum of ``exp(value - greatest)`` (Milakov & Gimelshein, 2018), which never overflows.
"""

CPP_SCANS = r"""
struct kv_sum { template <typename V> static inline V join(V a, V b) { return a + b; } };
struct kv_product { template <typename V> static inline V join(V a, V b) { return a * b; } };
struct kv_maximum { template <typename V> static inline V join(V a, V b) { return ((a > b) | (a != a)) ? a : b; } };
struct kv_minimum { template <typename V> static inline V join(V a, V b) { return ((a < b) | (a != a)) ? a : b; } };
// Lanes move up by H; from below comes `none`.
template <int N, int H, typename V, std::size_t... I>
static inline V kv_moved(V x, V none, std::index_sequence<I...>) {
  return __builtin_shufflevector(none, x, int(int(I) < H ? int(I) : N + int(I) - H)...);
}
template <typename Op, int N, int H, typename V> static inline V kv_prefix(V x, V none) {
  if constexpr (H < N) {
    V joined = Op::join(kv_moved<N, H>(x, none, std::make_index_sequence<N>()), x);
    return kv_prefix<Op, N, 2 * H>(joined, none);
  } else {
    return x;
  }
}
// x[i] becomes the join of carry and x[0 … i]; yields the last. Only the carry goes from one vector to the next.
template <typename Op, typename T> static inline T kv_scan(T* x, int64_t n, T carry, T none) {
  constexpr int N = kv_lanes<T, 64>();
  typedef T vec __attribute__((vector_size(N * sizeof(T))));
  vec nones = vec{} + none, running = vec{} + carry;
  int64_t i = 0;
  for (; i + N <= n; i += N) {
    vec v;
    std::memcpy(&v, x + i, sizeof(v));
    v = kv_prefix<Op, N, 1>(v, nones);
    vec last = vec{} + v[N - 1];
    vec out = Op::join(running, v);
    std::memcpy(x + i, &out, sizeof(v));
    running = Op::join(running, last);
  }
  carry = running[0];
  for (; i < n; ++i) x[i] = carry = Op::join(carry, x[i]);
  return carry;
}
template <int N, int H, typename V> static inline void kv_recur_prefix(V& a, V& b, V ones, V zeros) {
  if constexpr (H < N) {
    V before = kv_moved<N, H>(b, zeros, std::make_index_sequence<N>());
    b = before * a + b;
    a = a * kv_moved<N, H>(a, ones, std::make_index_sequence<N>());
    kv_recur_prefix<N, 2 * H>(a, b, ones, zeros);
  }
}
// x[i] becomes carry * scale[0 … i] + what was added since; in pairs, since (a, b) then (c, d) is (a c, b c + d).
template <typename T> static inline T kv_recur(T* x, T* scale, int64_t n, T carry) {
  constexpr int N = kv_lanes<T, 64>();
  typedef T vec __attribute__((vector_size(N * sizeof(T))));
  vec ones = vec{} + T(1), zeros = vec{};
  int64_t i = 0;
  for (; i + N <= n; i += N) {
    vec a, b;
    std::memcpy(&a, scale + i, sizeof(a));
    std::memcpy(&b, x + i, sizeof(b));
    kv_recur_prefix<N, 1>(a, b, ones, zeros);
    vec out = carry * a + b;
    std::memcpy(x + i, &out, sizeof(out));
    carry = carry * a[N - 1] + b[N - 1];
  }
  for (; i < n; ++i) x[i] = carry = carry * scale[i] + x[i];
  return carry;
}
// What exponents are taken relative to: an infinite greatest value would make NaN of itself.
template <typename T> static inline T kv_level(T x) { return kv_abs(x) < std::numeric_limits<T>::infinity() ? x : T(0); }
template <typename T> static inline T kv_decay(T from, T to) {
  T d = kv_level(from) - kv_level(to);
  return kv_exp(d > T(0) ? T(0) : d);
}
"""
