// What trace updates share on the CPU: the factors of a row, columns in tiles, and the trace of a bias.
#pragma once
#include "cells/trace.h"
#include "kernels/cpu/gemm.h"
#include "kernels/cpu/rows.h"
#include "kernels/trace.h"

namespace rx {
namespace RX_NS {

// f(column, vectors, full, last): columns [0, Q) in tiles of at most `Most` vectors, each a compile-time size: 16, 8, 4, 2, 1;
// `last` is how many lanes of the last tile, one vector, lie inside where `full` is false.
template <int N>
struct Count {
  static constexpr int value = N;
};
template <class T, int Most, class F>
inline __attribute__((always_inline)) void tiles(int64_t Q, F&& f, int64_t j = 0) {
  constexpr int64_t v = lanes<Vec<T>>();
  for (; j + Most * v <= Q; j += Most * v) f(j, Count<Most>{}, Flag<true>{}, 0);
  if constexpr (Most > 1) {
    tiles<T, Most / 2>(Q, f, j);
  } else {
    if (j < Q) f(j, Count<1>{}, Flag<false>{}, static_cast<int>(Q - j));
  }
}

// The factors of kTraceRows rows of a matrix in one row of the batch, next to each other: K times decay (S, S) and psi (S),
// then the signals' (S), kTraceRows numbers each. As they come, those of neighbouring steps may all fall into one set of the
// cache.
constexpr int64_t kTraceRows = 16;
template <int S>
constexpr int64_t factors_size(const TraceShape& s) {
  return kTraceRows * (s.K * (S * S + S) + s.signals * S);
}
template <class T, int S>
void pack_factors(const TraceStep<T>& p, int64_t b, int64_t first, int64_t rows, T* to) {
  const int64_t n = p.s.n, unit = first % n;
  const bool whole = rows == kTraceRows && unit + rows <= n;                           // within one gate
  const auto copy = [&](const T* from, int64_t step) __attribute__((always_inline)) {  // from: unit 0
    if (whole && step == 1) {
      std::memcpy(to, from + unit, sizeof(T) * kTraceRows);
    } else {
      for (int64_t i = 0, u = unit; i < rows; ++i, u = u + 1 < n ? u + 1 : 0) to[i] = from[u * step];
    }
    to += kTraceRows;
  };
  for (int64_t k = 0; k < p.s.K; ++k) {
    const T *d = p.decay.p + k * p.decay.k + b * p.decay.b, *f = p.psi.p + k * p.psi.k + b * p.psi.b + first;
    for (int s = 0; s < S; ++s) {
      for (int from = 0; from < S; ++from) copy(d + s * p.decay.s + from * p.decay_from, p.decay_unit);
    }
    for (int s = 0; s < S; ++s, to += kTraceRows) {
      if (rows == kTraceRows) {
        std::memcpy(to, f + s * p.psi.s, sizeof(T) * kTraceRows);
      } else {
        std::memcpy(to, f + s * p.psi.s, sizeof(T) * static_cast<size_t>(rows));
      }
    }
  }
  for (int64_t m = 0; m < p.s.signals; ++m) {
    for (int s = 0; s < S; ++s) copy(p.signal.p + m * p.signal.k + b * p.signal.b + s * p.signal.s, 1);
  }
}
// Numbers `kTraceRows` apart, each in all lanes.
template <int N, class V, class T>
RX_FN void splats(const T* from, V* out) {
  for (int i = 0; i < N; ++i) out[i] = splat<V>(from[i * kTraceRows]);
}

// Rows [first, end) of a bias, a vector of rows of one gate at a time.
template <class T, int S>
void trace_bias(const TraceStep<T>& p, int64_t first, int64_t end, T* scratch) {
  using V = Vec<T>;
  constexpr int64_t v = lanes<V>();
  const TraceShape& s = p.s;
  const int64_t plain = s.K + 1 - s.signals;  // states before the first that is contracted
  for (int64_t r0 = first; r0 < end;) {
    const int64_t gate_end = (r0 / s.n + 1) * s.n, stop = gate_end < end ? gate_end : end, u0 = r0 % s.n;
    columns<T>(stop - r0, [&](int64_t j, int count, auto full) {
      constexpr bool F = decltype(full)::value;
      for (int64_t i = 0; i < s.signals * v; ++i) scratch[i] = 0;
      for (int64_t b = 0; b < s.B; ++b) {
        V e[S];
        T* at = p.bias.p + b * p.bias.b + r0 + j;
        for (int i = 0; i < S; ++i) e[i] = read<F, V>(at + i * p.bias.s, count);
        for (int64_t k = 0;; ++k) {
          if (k == s.commit && k > 0) {
            for (int i = 0; i < S; ++i) write<F, V>(at + i * p.bias.s, e[i], count);
          }
          if (k >= plain && p.grad_bias) {
            V signal[S];
            const T* x = p.signal.p + (k - plain) * p.signal.k + b * p.signal.b + u0 + j;
            for (int i = 0; i < S; ++i) signal[i] = read<F, V>(x + i * p.signal.s, count);
            T* sum = scratch + (k - plain) * v;
            store<V>(sum, trace_contract<S>(signal, e, load<V>(sum)));
          }
          if (k == s.K) break;
          V d[S * S], f[S];
          const T* from = p.decay.p + k * p.decay.k + b * p.decay.b + (u0 + j) * p.decay_unit;
          const T* psi = p.psi.p + k * p.psi.k + b * p.psi.b + r0 + j;
          for (int i = 0; i < S; ++i) {
            f[i] = read<F, V>(psi + i * p.psi.s, count);
            for (int o = 0; o < S; ++o) {
              const T* x = from + i * p.decay.s + o * p.decay_from;
              d[i * S + o] = p.decay_unit ? read<F, V>(x, count) : splat<V>(*x);
            }
          }
          trace_advance<S>(d, f, splat<V>(T(1)), e);
        }
      }
      if (!p.grad_bias) return;
      V total = read<F, V>(p.grad_bias + r0 + j, count);
      for (int64_t m = 0; m < s.signals; ++m) total = total + load<V>(scratch + m * v);
      write<F, V>(p.grad_bias + r0 + j, total, count);
    });
    r0 = stop;
  }
}

}  // namespace RX_NS
}  // namespace rx
