// A step of UORO on the CPU. The pass over theta, B times as large as the parameters, is bound by memory: it reads and writes
// each number once, and takes its square and its share of the gradient on the way.
#pragma once
#include <algorithm>

#include "kernels/cpu/rows.h"
#include "kernels/uoro.h"

namespace rx {
namespace RX_NS {

// The lanes' sum, in order.
template <class T>
RX_FN T sum_lanes(Vec<T> x) {
  T sum = x[0];
  for (int i = 1; i < lanes<Vec<T>>(); ++i) sum += x[i];
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
  return sum_lanes<T>((sum[0] + sum[1]) + (sum[2] + sum[3]));
}

template <class T>
void uoro_square(const Uoro<T>& p, const UoroBlock<T>& k, int64_t first, int64_t last) {
  for (int64_t b = 0; b < p.B; ++b) {
    for (int64_t r = first; r < last; ++r) {
      const T* x = k.theta + (b * k.R + r) * k.Q;
      k.sums[b * k.R + r] = inner<T>(x, x, k.Q);
    }
  }
}

template <class T>
void uoro_norms(const Uoro<T>& p) {
  for (int64_t b = 0; b < p.B; ++b) {
    double total = 0;
    for (int64_t i = 0; i < p.count; ++i) {
      const UoroBlock<T>& k = p.blocks[i];
      for (int64_t r = 0; r < k.R; ++r) total += k.sums[b * k.R + r];
    }
    p.norm[b] = static_cast<T>(std::sqrt(total));
  }
}

template <class T>
void uoro_move(const Uoro<T>& p, int64_t first, int64_t last) {
  const int64_t states = p.S * p.n;
  for (int64_t i = first; i < last; ++i) {
    const int64_t b = i / states;
    p.moved[i] = !p.keep || p.keep[b] ? inner<T>(p.jacobian + i * states, p.s + b * states, states) : T(0);
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

// theta = scale theta + a pre of one row, or a pre alone; grad += weight theta. The sum of theta's squares.
template <bool Keep, bool Grad, class T>
RX_FN T uoro_row(T* theta, const T* pre, T* grad, int64_t n, T scale, T a, T weight) {
  using V = Vec<T>;
  V sum[4] = {};
  const V keeps = splat<V>(scale), adds = splat<V>(a), shares = splat<V>(weight);
  columns_in_fours<T>(n, [&](int64_t j, int count, auto full, int slot) __attribute__((always_inline)) {
    constexpr bool F = decltype(full)::value;
    V x = adds * read<F, V>(pre + j, count);
    if constexpr (Keep) x += keeps * read<F, V>(theta + j, count);
    write<F, V>(theta + j, x, count);
    sum[slot] += x * x;
    if constexpr (Grad) write<F, V>(grad + j, read<F, V>(grad + j, count) + shares * x, count);
  });
  return sum_lanes<T>((sum[0] + sum[1]) + (sum[2] + sum[3]));
}

constexpr int64_t kUoroBytes = 8192;  // of the gradient that stay in L1 while the batch rows of theta stream past

template <bool Grad, class T>
void uoro_pass_of(const Uoro<T>& p, const UoroBlock<T>& k, int64_t first, int64_t last) {
  const int64_t tall = std::max<int64_t>(1, kUoroBytes / static_cast<int64_t>(sizeof(T)) / std::max<int64_t>(1, k.Q));
  for (int64_t begin = first; begin < last; begin += tall) {
    const int64_t end = std::min(last, begin + tall);
    for (int64_t b = 0; b < p.B; ++b) {
      const bool kept = !p.keep || p.keep[b];
      const T *pre = k.pre + b * k.Q, scale = p.scale[b], weight = p.weight[b];
      for (int64_t r = begin; r < end; ++r) {
        const int64_t at = b * k.R + r;
        T *theta = k.theta + at * k.Q, *grad = Grad ? k.grad + r * k.Q : nullptr;
        k.sums[at] = kept ? uoro_row<true, Grad>(theta, pre, grad, k.Q, scale, k.a[at], weight)
                          : uoro_row<false, Grad>(theta, pre, grad, k.Q, scale, k.a[at], weight);
      }
    }
  }
}

template <class T>
void uoro_pass(const Uoro<T>& p, const UoroBlock<T>& k, int64_t first, int64_t last) {
  if (k.grad && p.signal) {
    uoro_pass_of<true>(p, k, first, last);
  } else {
    uoro_pass_of<false>(p, k, first, last);
  }
}

}  // namespace RX_NS
}  // namespace rx
