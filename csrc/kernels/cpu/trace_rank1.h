// Traces that are one for all rows, on the CPU: a filter over (B, Q), and a product of the rows' factors with it.
#pragma once
#include "kernels/cpu/trace_rows.h"

namespace rx {
namespace RX_NS {

#if defined(__AVX512F__)
constexpr int kRankOneRows = 6, kRankOneVecs = 4;  // 24 sums, 4 vectors of the trace
#else
constexpr int kRankOneRows = 4, kRankOneVecs = 2;
#endif

template <class T>
void rank_one_filter(const RankOneStep<T>& p, int64_t first, int64_t end) {
  using V = Vec<T>;
  const TraceShape& s = p.s;
  const int64_t plain = s.K + 1 - s.signals;
  for (int64_t b = first; b < end; ++b) {
    const T* decay = p.decay.p + b * p.decay.b;
    T* z = p.trace.p + b * p.trace.b;
    columns<T>(s.Q, [&](int64_t j, int count, auto full) __attribute__((always_inline)) {
      constexpr bool F = decltype(full)::value;
      V x = read<F, V>(z + j, count);
      for (int64_t k = 0;; ++k) {
        if (k == s.commit && k > 0) write<F, V>(z + j, x, count);
        if (k >= plain) write<F, V>(p.states + ((k - plain) * s.B + b) * s.Q + j, x, count);
        if (k == s.K) break;
        const T* pre = p.pre.p + k * p.pre.k + b * p.pre.b + j;
        x = trace_filter(splat<V>(decay[k * p.decay.k]), x, read<F, V>(pre, count));
      }
    });
    if (!p.bias.p) continue;
    T* bias = p.bias.p + b * p.bias.b;
    V x = splat<V>(*bias);
    for (int64_t k = 0;; ++k) {
      if (k == s.commit && k > 0) *bias = x[0];
      if (k >= plain) p.ones[(k - plain) * s.B + b] = x[0];
      if (k == s.K) break;
      x = trace_filter(splat<V>(decay[k * p.decay.k]), x, splat<V>(T(1)));
    }
  }
}

// Rows of grad and a tile of columns. left (count, width): the rows' factors, this tile's first row in front.
template <class T, int Rows, int Vecs, bool Full>
void rank_one_tile(const T* left, int64_t width, const T* z, int64_t Q, int64_t count, T* grad, int64_t ld, int last) {
  using V = Vec<T>;
  constexpr int v = lanes<V>();
  V sum[Rows][Vecs];
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 4
    for (int i = 0; i < Vecs; ++i) sum[r][i] = read<Full, V>(grad + r * ld + i * v, last);
  }
  for (int64_t c = 0; c < count; ++c, left += width, z += Q) {
    V x[Vecs];
#pragma GCC unroll 4
    for (int i = 0; i < Vecs; ++i) x[i] = read<Full, V>(z + i * v, last);
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) {
      const V a = splat<V>(left[r]);
#pragma GCC unroll 4
      for (int i = 0; i < Vecs; ++i) sum[r][i] = fused(a, x[i], sum[r][i]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 4
    for (int i = 0; i < Vecs; ++i) write<Full, V>(grad + r * ld + i * v, sum[r][i], last);
  }
}

// Whole vectors of rows.
template <class T>
int64_t rank_one_scratch(const TraceShape& s, int64_t rows) {
  return s.signals * s.B * padded<T>(rows) + 1;
}

template <class T>
void rank_one_contract(const RankOneStep<T>& p, int64_t first, int64_t end, T* scratch) {
  const TraceShape& s = p.s;
  const int64_t rows = end - first, width = padded<T>(rows), count = s.signals * s.B;
  for (int64_t m = 0; m < s.signals; ++m) {
    for (int64_t b = 0; b < s.B; ++b) {
      T* to = scratch + (m * s.B + b) * width;
      const T *psi = p.psi.p + m * p.psi.k + b * p.psi.b + first, *signal = p.signal.p + m * p.signal.k + b * p.signal.b;
      for (int64_t r = 0, unit = first % s.n; r < rows;) {
        const int64_t left = s.n - unit, some = left < rows - r ? left : rows - r;
        for (int64_t i = 0; i < some; ++i) to[r + i] = signal[unit + i] * psi[r + i];
        r += some;
        unit = 0;
      }
    }
  }
  if (p.grad_bias) {
    for (int64_t c = 0; c < count; ++c) {
      const Vec<T> one = splat<Vec<T>>(p.ones[c]);
      columns<T>(rows, [&](int64_t r, int many, auto full) __attribute__((always_inline)) {
        constexpr bool F = decltype(full)::value;
        using V = Vec<T>;
        const V sum = read<F, V>(p.grad_bias + first + r, many);
        write<F, V>(p.grad_bias + first + r, fused(read<F, V>(scratch + c * width + r, many), one, sum), many);
      });
    }
  }
  tiles<T, kRankOneVecs>(s.Q, [&](int64_t j, auto vecs, auto full, int last) {
    constexpr int kVecs = decltype(vecs)::value;
    constexpr bool F = decltype(full)::value;
    int64_t r = 0;
    T* grad = p.grad + first * p.grad_row + j;
    for (; r + kRankOneRows <= rows; r += kRankOneRows) {
      rank_one_tile<T, kRankOneRows, kVecs, F>(scratch + r, width, p.states + j, s.Q, count, grad + r * p.grad_row, p.grad_row,
                                               last);
    }
    for (; r < rows; ++r) {
      rank_one_tile<T, 1, kVecs, F>(scratch + r, width, p.states + j, s.Q, count, grad + r * p.grad_row, p.grad_row, last);
    }
  });
}

}  // namespace RX_NS
}  // namespace rx
