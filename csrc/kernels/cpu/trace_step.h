// Trace updates on the CPU, one pass over trace memory however many steps are pending. Two orders of loops, the same bits:
//   along: one row of the matrix, all of the batch, the gradient's row in registers: for one step of a trace whose rows of the
//          batch lie next to each other, (R, B, S, Q), which is then one stretch of memory;
//   across: some rows of the matrix, one row of the batch after the other, the trace in registers for all steps, sums in L1.
#pragma once
#include "kernels/cpu/trace_rows.h"

namespace rx {
namespace RX_NS {

#if defined(__AVX512F__)
constexpr int kTraceSums = 16, kTraceVecs = 8;
#else
constexpr int kTraceSums = 8, kTraceVecs = 4;
#endif
constexpr int64_t kTraceRows = 16;         // rows together in `across`: their factors share cache lines
constexpr int64_t kTraceBytes = 16 << 10;  // and their sums take about half of L1

// One row and a tile of columns, at most one step and one signal. `Step`: 1 advances and stores, 0 only contracts.
template <class T, int S, int Vecs, bool Full, int Step, bool Signal>
void trace_along(const TraceStep<T>& p, int64_t r, int64_t j, int last) {
  using V = Vec<T>;
  constexpr int v = lanes<V>();
  const int64_t unit = r % p.s.n, B = p.s.B, trace_b = p.trace.b, trace_s = p.trace.s;
  V sum[Vecs];
#pragma GCC unroll 16
  for (int i = 0; i < Vecs; ++i) sum[i] = V{};
  T* row = p.trace.p + r * p.trace_row + j;
  const T* pre = p.pre.p + j;
  for (int64_t b = 0; b < B; ++b, row += trace_b, pre += p.pre.b) {
    Factors<S, V> x;
    V signal[S];
    if constexpr (Step == 1) x = factors<S, V>(p, 0, b, r, unit);
    if constexpr (Signal) signals_of<S, V>(p, 0, b, unit, signal);
#pragma GCC unroll 16
    for (int i = 0; i < Vecs; ++i) {
      V e[S];
      for (int s = 0; s < S; ++s) e[s] = read<Full, V>(row + s * trace_s + i * v, last);
      if constexpr (Step == 1) {
        trace_advance<S>(x.d, x.f, read<Full, V>(pre + i * v, last), e);
        for (int s = 0; s < S; ++s) write<Full, V>(row + s * trace_s + i * v, e[s], last);
      }
      if constexpr (Signal) sum[i] = trace_contract<S>(signal, e, sum[i]);
    }
  }
  if constexpr (Signal) {
    T* grad = p.grad + r * p.grad_row + j;
#pragma GCC unroll 16
    for (int i = 0; i < Vecs; ++i) write<Full, V>(grad + i * v, read<Full, V>(grad + i * v, last) + sum[i], last);
  }
}

// One row of the matrix in one row of the batch and a tile of columns: all steps. sums (signals, ld): this tile's columns.
template <class T, int S, int Vecs, bool Full>
void trace_across(const TraceStep<T>& p, int64_t b, int64_t r, int64_t j, int last, T* sums, int64_t ld) {
  using V = Vec<T>;
  constexpr int v = lanes<V>();
  const int64_t unit = r % p.s.n, trace_s = p.trace.s, K = p.s.K, plain = K + 1 - p.s.signals;
  T* row = p.trace.p + b * p.trace.b + r * p.trace_row + j;
  const T* pre = p.pre.p + b * p.pre.b + j;
  V e[Vecs][S];
#pragma GCC unroll 16
  for (int i = 0; i < Vecs; ++i) {
    for (int s = 0; s < S; ++s) e[i][s] = read<Full, V>(row + s * trace_s + i * v, last);
  }
  for (int64_t k = 0;; ++k, pre += p.pre.k) {
    if (k == p.s.commit && k > 0) {
#pragma GCC unroll 16
      for (int i = 0; i < Vecs; ++i) {
        for (int s = 0; s < S; ++s) write<Full, V>(row + s * trace_s + i * v, e[i][s], last);
      }
    }
    if (k >= plain) {
      V signal[S];
      signals_of<S, V>(p, k - plain, b, unit, signal);
      T* sum = sums + (k - plain) * ld;
#pragma GCC unroll 16
      for (int i = 0; i < Vecs; ++i) store<V>(sum + i * v, trace_contract<S>(signal, e[i], load<V>(sum + i * v)));
    }
    if (k == K) break;
    const Factors<S, V> x = factors<S, V>(p, k, b, r, unit);
#pragma GCC unroll 16
    for (int i = 0; i < Vecs; ++i) trace_advance<S>(x.d, x.f, read<Full, V>(pre + i * v, last), e[i]);
  }
}

template <class T>
int64_t trace_block(const TraceShape& s) {
  int64_t rows = kTraceRows;
  const int64_t bytes = s.signals * padded<T>(s.Q) * static_cast<int64_t>(sizeof(T));
  while (rows > 1 && rows * bytes > kTraceBytes) rows /= 2;
  return rows;
}
template <class T>
int64_t trace_scratch(const TraceShape& s) {
  const int64_t bias = s.signals * lanes<Vec<T>>(), block = trace_block<T>(s) * s.signals * padded<T>(s.Q);
  return (bias > block ? bias : block) + 1;
}

template <class T, int S>
void trace_blocks(const TraceStep<T>& p, int64_t first, int64_t end, T* scratch) {
  const int64_t rows = trace_block<T>(p.s), ld = padded<T>(p.s.Q), Q = p.s.Q, signals = p.s.signals;
  for (int64_t r0 = first; r0 < end; r0 += rows) {
    const int64_t stop = r0 + rows < end ? r0 + rows : end;
    zero_row(scratch, (stop - r0) * signals * ld);
    for (int64_t b = 0; b < p.s.B; ++b) {
      for (int64_t r = r0; r < stop; ++r) {
        T* sums = scratch + (r - r0) * signals * ld;
        tiles<T, kTraceVecs>(Q, [&](int64_t j, auto vecs, auto full, int last) {
          trace_across<T, S, decltype(vecs)::value, decltype(full)::value>(p, b, r, j, last, sums + j, ld);
        });
      }
    }
    for (int64_t r = r0; r < stop; ++r) {
      for (int64_t m = 0; m < signals; ++m) {
        const T* sum = scratch + ((r - r0) * signals + m) * ld;
        T* grad = p.grad + r * p.grad_row;
        for (int64_t j = 0; j < Q; ++j) grad[j] += sum[j];
      }
    }
  }
}

template <class T, int S, int Step, bool Signal>
void trace_rows(const TraceStep<T>& p, int64_t first, int64_t end) {
  for (int64_t r = first; r < end; ++r) {
    tiles<T, kTraceSums / S>(p.s.Q, [&](int64_t j, auto vecs, auto full, int last) {
      trace_along<T, S, decltype(vecs)::value, decltype(full)::value, Step, Signal>(p, r, j, last);
    });
  }
}

template <class T, int S>
void trace_states(const TraceStep<T>& p, int64_t first, int64_t end, T* scratch) {
  const TraceShape& s = p.s;
  if (p.bias.p) trace_bias<T, S>(p, first, end, scratch);
  const bool along = p.trace.b < p.trace_row && s.commit == s.K && s.signals <= 1;
  if (along && s.K == 1) {
    return s.signals ? trace_rows<T, S, 1, true>(p, first, end) : trace_rows<T, S, 1, false>(p, first, end);
  }
  if (along && s.K == 0) return trace_rows<T, S, 0, true>(p, first, end);
  trace_blocks<T, S>(p, first, end, scratch);
}

template <class T>
void trace_step(const TraceStep<T>& p, int64_t first, int64_t end, T* scratch) {
  if (p.s.S == 1) {
    trace_states<T, 1>(p, first, end, scratch);
  } else {
    trace_states<T, 2>(p, first, end, scratch);
  }
}

}  // namespace RX_NS
}  // namespace rx
