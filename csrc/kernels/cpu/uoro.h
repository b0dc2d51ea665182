// A step of UORO on the CPU. The pass over theta, B times as large as the parameters, is bound by memory: it reads and writes
// each number once, and takes its square and its share of the gradient on the way. It goes through 16 KiB of a block, whose
// gradient stays in L1, for a few batch rows at a time, which share the gradient's loads and stores.
#pragma once
#include <algorithm>

#include "kernels/cpu/rows.h"
#include "kernels/uoro.h"

namespace rx {
namespace RX_NS {

// The lanes' sum, in order.
template <class V>
RX_FN typename Lane<V>::type sum_lanes(V x) {
  typename Lane<V>::type sum = x[0];
  for (int i = 1; i < lanes<V>(); ++i) sum += x[i];
  return sum;
}

// f(column, count, full, slot): columns in vectors, with a slot of 0 to 3 for sums that don't wait for each other.
template <class T, class F>
inline __attribute__((always_inline)) void columns_in_fours(int64_t n, F&& f) {
  constexpr int64_t v = lanes<Vec<T>>();
  int64_t j = 0;
  for (; j + 4 * v <= n; j += 4 * v) {
    f(j, static_cast<int>(v), Flag<true>{}, 0);
    f(j + v, static_cast<int>(v), Flag<true>{}, 1);
    f(j + 2 * v, static_cast<int>(v), Flag<true>{}, 2);
    f(j + 3 * v, static_cast<int>(v), Flag<true>{}, 3);
  }
  for (; j + v <= n; j += v) f(j, static_cast<int>(v), Flag<true>{}, 0);
  if (j < n) f(j, static_cast<int>(n - j), Flag<false>{}, 1);
}

// Sum of x y over n numbers.
template <class T>
RX_FN T inner(const T* x, const T* y, int64_t n) {
  using V = Vec<T>;
  V sum[4] = {};
  columns_in_fours<T>(n, [&](int64_t j, int count, auto full, int slot) __attribute__((always_inline)) {
    constexpr bool F = decltype(full)::value;
    sum[slot] += read<F, V>(x + j, count) * read<F, V>(y + j, count);
  });
  return sum_lanes((sum[0] + sum[1]) + (sum[2] + sum[3]));
}

// Numbers of a block that go together, whose gradient stays in L1 while batch rows of theta stream past: a part of `sums`. Of
// the shape alone, so that threads don't matter; whole cache lines, wherever rows begin.
template <class T>
constexpr int64_t uoro_part() {
  return 16384 / static_cast<int64_t>(sizeof(T));
}
template <class T>
int64_t uoro_parts(int64_t R, int64_t Q) {
  return (R * Q + uoro_part<T>() - 1) / uoro_part<T>();
}

template <class T>
void uoro_norms(const Uoro<T>& p) {
  for (int64_t b = 0; b < p.B; ++b) {
    double total = 0;
    for (int64_t i = 0; i < p.count; ++i) {
      const UoroBlock<T>& k = p.blocks[i];
      const int64_t parts = uoro_parts<T>(k.R, k.Q);
      for (int64_t j = 0; j < parts; ++j) total += k.sums[b * parts + j];
    }
    p.norm[b] = static_cast<T>(std::sqrt(total));
  }
}

// N rows of a matrix, Q numbers each, times x.
template <int N, class T>
RX_FN void uoro_products(const T* rows, const T* x, int64_t Q, T* out) {
  using V = Vec<T>;
  V sum[N] = {};
  columns<T>(Q, [&](int64_t j, int count, auto full) __attribute__((always_inline)) {
    constexpr bool F = decltype(full)::value;
    const V y = read<F, V>(x + j, count);
#pragma GCC unroll 4
    for (int i = 0; i < N; ++i) {
      __builtin_prefetch(rows + (N + i) * Q + j, 0, 2);
      sum[i] += read<F, V>(rows + i * Q + j, count) * y;
    }
  });
#pragma GCC unroll 4
  for (int i = 0; i < N; ++i) out[i] = sum_lanes(sum[i]);
}

template <class T>
void uoro_move(const Uoro<T>& p, int64_t first, int64_t last) {
  const int64_t states = p.S * p.n;
  for (int64_t i = first; i < last;) {
    const int64_t b = i / states, end = std::min(last, (b + 1) * states);
    const T* s = p.s + b * states;
    if (p.keep && !p.keep[b]) {
      zero_row(p.moved + i, end - i);
      i = end;
    }
    // either way a row is one sum in order, so that it doesn't matter where a thread begins
    for (; i + 4 <= end; i += 4) uoro_products<4>(p.jacobian + i * states, s, states, p.moved + i);
    for (; i < end; ++i) uoro_products<1>(p.jacobian + i * states, s, states, p.moved + i);
  }
}

// sqrt(x / y), 1 where one of them is zero.
RX_FN double root_of_ratio(double x, double y) {
  return x > 0 && y > 0 ? std::sqrt(x / y) : 1;
}

// a = nu^T psi of batch row b.
template <class T>
void uoro_project(const Uoro<T>& p, const UoroBlock<T>& k, int64_t b) {
  using V = Vec<T>;
  const T* nu = p.signs + b * p.S * p.n;
  for (int64_t g = 0; g < k.R; g += p.n) {
    const T* psi = k.psi + b * p.S * k.R + g;
    columns<T>(p.n, [&](int64_t u, int count, auto full) __attribute__((always_inline)) {
      constexpr bool F = decltype(full)::value;
      V sum{};
      for (int64_t s = 0; s < p.S; ++s) sum += read<F, V>(nu + s * p.n + u, count) * read<F, V>(psi + s * k.R + u, count);
      write<F, V>(k.a + b * k.R + g + u, sum, count);
    });
  }
}

template <class T>
void uoro_weigh(const Uoro<T>& p, int64_t first, int64_t last) {
  using V = Vec<T>;
  const int64_t states = p.S * p.n;
  for (int64_t b = first; b < last; ++b) {
    double injected = 0;
    for (int64_t i = 0; i < p.count; ++i) {
      const UoroBlock<T>& k = p.blocks[i];
      uoro_project(p, k, b);
      const T *a = k.a + b * k.R, *pre = k.pre + b * k.Q;
      injected += static_cast<double>(inner<T>(a, a, k.R)) * inner<T>(pre, pre, k.Q);
    }
    const T *nu = p.signs + b * states, *moved = p.moved + b * states;
    const double norm = !p.keep || p.keep[b] ? p.norm[b] : 0;
    const double rho0 = root_of_ratio(norm, std::sqrt(static_cast<double>(inner<T>(moved, moved, states))));
    const double rho1 = root_of_ratio(std::sqrt(injected), std::sqrt(static_cast<double>(inner<T>(nu, nu, states))));
    const V keeps = splat<V>(static_cast<T>(rho0)), adds = splat<V>(static_cast<T>(rho1));
    T* s = p.s + b * states;
    columns<T>(states, [&](int64_t j, int count, auto full) __attribute__((always_inline)) {
      constexpr bool F = decltype(full)::value;
      write<F, V>(s + j, keeps * read<F, V>(moved + j, count) + adds * read<F, V>(nu + j, count), count);
    });
    for (int64_t i = 0; i < p.count; ++i) {
      const UoroBlock<T>& k = p.blocks[i];
      T* padded = k.padded + b * (k.Q + 2 * kUoroPad);
      zero_row(padded, kUoroPad);
      std::memcpy(padded + kUoroPad, k.pre + b * k.Q, sizeof(T) * static_cast<size_t>(k.Q));
      zero_row(padded + kUoroPad + k.Q, kUoroPad);
    }
    p.scale[b] = static_cast<T>(1 / rho0);
    p.weight[b] = p.signal ? inner<T>(p.signal + b * states, s, states) : T(0);
    const V over = splat<V>(static_cast<T>(1 / rho1));
    for (int64_t i = 0; i < p.count; ++i) {
      const UoroBlock<T>& k = p.blocks[i];
      T* a = k.a + b * k.R;
      columns<T>(k.R, [&](int64_t j, int count, auto full) __attribute__((always_inline)) {
        constexpr bool F = decltype(full)::value;
        write<F, V>(a + j, over * read<F, V>(a + j, count), count);
      });
    }
  }
}

#if defined(__AVX512F__)
constexpr int kUoroTogether = 4;  // batch rows; 32 registers
#else
constexpr int kUoroTogether = 2;
#endif

// nu^T I / rho1 of batch row b in `count` lanes from row r, column q on, where they lie in several rows.
template <class T>
RX_FN Vec<T> uoro_across(const UoroBlock<T>& k, int64_t b, int64_t r, int64_t q, int64_t count) {
  using V = Vec<T>;
  const T *a = k.a + b * k.R, *pre = k.padded + b * (k.Q + 2 * kUoroPad) + kUoroPad;
  if (k.Q >= lanes<V>()) {  // in two: pre has zeros on either side
    const T next = r + 1 < k.R ? a[r + 1] : T(0);
    return splat<V>(a[r]) * load<V>(pre + q) + splat<V>(next) * load<V>(pre + q - k.Q);
  }
  V x{};
  for (int64_t i = 0; i < count; ++i) {
    x[i] = a[r] * pre[q];
    if (++q == k.Q) {
      q = 0;
      ++r;
    }
  }
  return x;
}

// What is done with theta: its squares are summed as it is; after theta = scale theta + a pre; and grad += weight theta too.
enum class Pass { Square, Step, Gradient };

// The numbers [first, last) of N batch rows from b on.
template <int N, Pass kPass, class T>
void uoro_tile(const Uoro<T>& p, const UoroBlock<T>& k, int64_t b, int64_t part, int64_t first, int64_t last) {
  using V = Vec<T>;
  constexpr int64_t v = lanes<V>();
  constexpr int slots = 4 / N;  // sums that don't wait for each other
  V sum[N][slots] = {};
  V scale[N], weight[N];
  T* theta[N];
  // the next batch rows, or the first ones of the next part: no stride that the processor finds by itself
  const int64_t ahead = b + 2 * N <= p.B ? N * k.R * k.Q : uoro_part<T>() - b * k.R * k.Q;
#pragma GCC unroll 4
  for (int i = 0; i < N; ++i) {
    scale[i] = splat<V>(p.scale[b + i]);
    weight[i] = splat<V>(p.weight[b + i]);
    theta[i] = k.theta + (b + i) * k.R * k.Q;
  }
  // one vector at number `at`, given what is injected there
  const auto move = [&](int64_t at, int count, auto full, int slot, auto&& injected) __attribute__((always_inline)) {
    constexpr bool F = decltype(full)::value;
    V x[N], total{};
    if constexpr (kPass == Pass::Gradient) total = read<F, V>(k.grad + at, count);
    // loads before stores: batch rows lie whole pages apart, where a load waits for a store to the same place in another page
#pragma GCC unroll 4
    for (int i = 0; i < N; ++i) {
      __builtin_prefetch(theta[i] + at + ahead, 1, 2);
      x[i] = read<F, V>(theta[i] + at, count);
      if constexpr (kPass != Pass::Square) x[i] = injected(i) + scale[i] * x[i];
    }
#pragma GCC unroll 4
    for (int i = 0; i < N; ++i) {
      if constexpr (kPass != Pass::Square) write<F, V>(theta[i] + at, x[i], count);
      sum[i][slot] += x[i] * x[i];
      if constexpr (kPass == Pass::Gradient) total += weight[i] * x[i];
    }
    if constexpr (kPass == Pass::Gradient) write<F, V>(k.grad + at, total, count);
  };
  int64_t at = first, r = first / k.Q, q = first % k.Q;
  while (at < last) {
    // whole vectors inside row r
    const int64_t whole = std::min(k.Q - q, last - at) / v;
    const T* pre[N];
    V a[N];
#pragma GCC unroll 4
    for (int i = 0; i < N; ++i) {
      pre[i] = k.padded + (b + i) * (k.Q + 2 * kUoroPad) + kUoroPad + q;
      a[i] = splat<V>(k.a[(b + i) * k.R + r]);
    }
    int64_t c = 0;
    for (; c + slots <= whole; c += slots) {
#pragma GCC unroll 4
      for (int s = 0; s < slots; ++s) {
        const int64_t on = (c + s) * v;
        move(at + on, static_cast<int>(v), Flag<true>{}, s,
             [&](int i) __attribute__((always_inline)) { return a[i] * load<V>(pre[i] + on); });
      }
    }
    for (; c < whole; ++c) {
      move(at + c * v, static_cast<int>(v), Flag<true>{}, 0,
           [&](int i) __attribute__((always_inline)) { return a[i] * load<V>(pre[i] + c * v); });
    }
    at += whole * v;
    q += whole * v;
    if (q == k.Q) {
      q = 0;
      ++r;
      continue;
    }
    // the vector across the row's end, or the last one
    const int64_t count = std::min(v, last - at);
    const auto across = [&](int i) __attribute__((always_inline)) { return uoro_across(k, b + i, r, q, count); };
    if (count == v) {
      move(at, static_cast<int>(v), Flag<true>{}, 0, across);
    } else if (count > 0) {
      move(at, static_cast<int>(count), Flag<false>{}, 0, across);
    }
    at += count;
    q += count;
    r += q / k.Q;
    q %= k.Q;
  }
  const int64_t parts = uoro_parts<T>(k.R, k.Q);
  for (int i = 0; i < N; ++i) {
    V all = sum[i][0];
    for (int s = 1; s < slots; ++s) all += sum[i][s];
    k.sums[(b + i) * parts + part] = sum_lanes(all);
  }
}

template <int N, Pass kPass, class T>
void uoro_rest(const Uoro<T>& p, const UoroBlock<T>& k, int64_t b, int64_t part, int64_t first, int64_t last) {
  if constexpr (N > 0) {
    if (p.B - b == N) {
      uoro_tile<N, kPass>(p, k, b, part, first, last);
    } else {
      uoro_rest<N - 1, kPass>(p, k, b, part, first, last);
    }
  }
}

template <Pass kPass, class T>
void uoro_parts_of(const Uoro<T>& p, const UoroBlock<T>& k, int64_t first_part, int64_t last_part) {
  for (int64_t part = first_part; part < last_part; ++part) {
    const int64_t first = part * uoro_part<T>(), last = std::min(k.R * k.Q, first + uoro_part<T>());
    for (int64_t b = 0; kPass != Pass::Square && p.keep && b < p.B; ++b) {
      if (!p.keep[b]) zero_row(k.theta + b * k.R * k.Q + first, last - first);
    }
    int64_t b = 0;
    for (; b + kUoroTogether <= p.B; b += kUoroTogether) uoro_tile<kUoroTogether, kPass>(p, k, b, part, first, last);
    uoro_rest<kUoroTogether - 1, kPass>(p, k, b, part, first, last);
  }
}

template <class T>
void uoro_pass(const Uoro<T>& p, const UoroBlock<T>& k, int64_t first, int64_t last) {
  if (k.grad && p.signal) {
    uoro_parts_of<Pass::Gradient>(p, k, first, last);
  } else {
    uoro_parts_of<Pass::Step>(p, k, first, last);
  }
}

// In the order of the pass: the norm of a call that isn't told it has the bits of one that is.
template <class T>
void uoro_square(const Uoro<T>& p, const UoroBlock<T>& k, int64_t first, int64_t last) {
  uoro_parts_of<Pass::Square>(p, k, first, last);
}

}  // namespace RX_NS
}  // namespace rx
