// Trace updates on the CPU, one pass over trace memory however many steps are pending. Two orders of loops, the same bits:
//   along: a row or two of the matrix, all of the batch, their sums in registers: for one step of a trace whose rows of the
//          batch lie next to each other, (R, B, S, Q), so that it is read as one stretch of memory;
//   across: some rows of the matrix, one row of the batch after the other, the trace in registers for all steps, sums in L1.
#pragma once
#include "kernels/cpu/trace_rows.h"

namespace rx {
namespace RX_NS {

#if defined(__AVX512F__)
constexpr int kTraceVecs = 8;
#else
constexpr int kTraceVecs = 4;
#endif
// Vectors of columns in a tile; three states take the registers of half of them.
template <int S>
constexpr int tile_vecs() {
  return S < 3 ? kTraceVecs : kTraceVecs / 2;
}
// Two rows share what is read of `pre`; the factors of more states take the registers of a second row.
template <int S>
constexpr int rows_together() {
  return S == 1 ? 2 : 1;
}
constexpr int64_t kTraceAhead = 256 << 10;  // bytes of the trace asked for ahead of time, at most
constexpr int64_t kTraceSums = 8 << 10;     // bytes of sums in `across`: with as much of the trace and of `pre` they stay in L1

// Rows r to r + Rows and a tile of columns, at most one step and one signal. `Step`: 1 advances and stores, 0 only contracts.
// factors (B, size): of this row in its block; what lies `ahead` numbers further on is asked for.
template <class T, int S, int Rows, int Vecs, bool Full, int Step, bool Signal>
void trace_along(const TraceStep<T>& p, int64_t r, int64_t j, int last, const T* factors, int64_t size, int64_t ahead) {
  using V = Vec<T>;
  constexpr int v = lanes<V>(), kSignal = Step * (S * S + S) * kTraceRows;
  const int64_t B = p.s.B, trace_b = p.trace.b, trace_s = p.trace.s, trace_row = p.trace_row, pre_b = p.pre.b;
  V sum[Rows][Vecs];
#pragma GCC unroll 2
  for (int a = 0; a < Rows; ++a) {
#pragma GCC unroll 8
    for (int i = 0; i < Vecs; ++i) sum[a][i] = V{};
  }
  T* row = p.trace.p + r * trace_row + j;
  const T* pre = p.pre.p + j;
  for (int64_t b = 0; b < B; ++b, row += trace_b, pre += pre_b, factors += size) {
    V y[Vecs];
    if constexpr (Step == 1) {
#pragma GCC unroll 8
      for (int i = 0; i < Vecs; ++i) y[i] = read<Full, V>(pre + i * v, last);
    }
#pragma GCC unroll 2
    for (int a = 0; a < Rows; ++a) {
      V d[S * S], f[S], signal[S];
      if constexpr (Step == 1) {
        splats<S * S>(factors + a, d);
        splats<S>(factors + a + S * S * kTraceRows, f);
      }
      if constexpr (Signal) splats<S>(factors + a + kSignal, signal);
#pragma GCC unroll 8
      for (int i = 0; i < Vecs; ++i) {
        V e[S];
        for (int s = 0; s < S; ++s) {
          __builtin_prefetch(row + ahead + a * trace_row + s * trace_s + i * v, 0, 2);
          e[s] = read<Full, V>(row + a * trace_row + s * trace_s + i * v, last);
        }
        if constexpr (Step == 1) {
          trace_advance<S>(d, f, y[i], e);
          for (int s = 0; s < S; ++s) write<Full, V>(row + a * trace_row + s * trace_s + i * v, e[s], last);
        }
        if constexpr (Signal) sum[a][i] = trace_contract<S>(signal, e, sum[a][i]);
      }
    }
  }
  if constexpr (Signal) {
#pragma GCC unroll 2
    for (int a = 0; a < Rows; ++a) {
      T* grad = p.grad + (r + a) * p.grad_row + j;
#pragma GCC unroll 8
      for (int i = 0; i < Vecs; ++i) write<Full, V>(grad + i * v, read<Full, V>(grad + i * v, last) + sum[a][i], last);
    }
  }
}

template <class T, int S, int Step, bool Signal>
void trace_rows(const TraceStep<T>& p, int64_t first, int64_t end, T* scratch) {
  constexpr int kRows = rows_together<S>();
  const int64_t size = factors_size<S>(p.s), bytes = static_cast<int64_t>(sizeof(T)), next = kRows * p.trace_row;
  // The same columns of the next rows, or, where those are too far for L2, of rows of the batch to come.
  const int64_t ahead = next * bytes <= kTraceAhead ? next : (kTraceAhead / (4 * S * p.s.Q * bytes + 1) + 1) * p.trace.b;
  for (int64_t r0 = first; r0 < end; r0 += kTraceRows) {
    const int64_t rows = end - r0 < kTraceRows ? end - r0 : kTraceRows;
    for (int64_t b = 0; b < p.s.B; ++b) pack_factors<T, S>(p, b, r0, rows, scratch + b * size);
    for (int64_t r = 0; r < rows; r += kRows) {
      tiles<T, tile_vecs<S>()>(p.s.Q, [&](int64_t j, auto vecs, auto full, int last) {
        constexpr int kVecs = decltype(vecs)::value;
        constexpr bool F = decltype(full)::value;
        if (r + kRows <= rows) {
          trace_along<T, S, kRows, kVecs, F, Step, Signal>(p, r0 + r, j, last, scratch + r, size, ahead);
        } else {
          trace_along<T, S, 1, kVecs, F, Step, Signal>(p, r0 + r, j, last, scratch + r, size, ahead);
        }
      });
    }
  }
}

// Rows of the matrix, trace_row apart, in one row of the batch and a tile of columns: all steps. factors: as packed, of the
// first row; pre (K, Vecs vectors) and sums (Rows, signals, Vecs vectors): this tile's columns alone.
template <class T, int S, int Rows, int Vecs, bool Full>
void trace_across(const TraceStep<T>& p, T* row, int last, const T* factors, const T* pre, T* sums) {
  using V = Vec<T>;
  constexpr int v = lanes<V>(), ld = Vecs * v;
  const int64_t trace_s = p.trace.s, trace_row = p.trace_row, K = p.s.K, signals = p.s.signals, plain = K + 1 - signals;
  const int64_t commit = p.s.commit > 0 ? p.s.commit : -1;
  const T* ahead = row + p.trace.b;
  V e[Rows][Vecs][S];
#pragma GCC unroll 2
  for (int a = 0; a < Rows; ++a) {
#pragma GCC unroll 8
    for (int i = 0; i < Vecs; ++i) {
      for (int s = 0; s < S; ++s) {
        __builtin_prefetch(ahead + a * trace_row + s * trace_s + i * v, 0, 2);
        e[a][i][s] = read<Full, V>(row + a * trace_row + s * trace_s + i * v, last);
      }
    }
  }
  for (int64_t k = 0;; ++k) {
    if (k == commit) {
#pragma GCC unroll 2
      for (int a = 0; a < Rows; ++a) {
#pragma GCC unroll 8
        for (int i = 0; i < Vecs; ++i) {
          for (int s = 0; s < S; ++s) write<Full, V>(row + a * trace_row + s * trace_s + i * v, e[a][i][s], last);
        }
      }
    }
    if (k >= plain) {
      const T* from = factors + (K - k) * (S * S + S) * kTraceRows + (k - plain) * S * kTraceRows;
#pragma GCC unroll 2
      for (int a = 0; a < Rows; ++a) {
        V signal[S];
        splats<S>(from + a, signal);
        T* sum = sums + (a * signals + k - plain) * ld;
#pragma GCC unroll 8
        for (int i = 0; i < Vecs; ++i) store<V>(sum + i * v, trace_contract<S>(signal, e[a][i], load<V>(sum + i * v)));
      }
    }
    if (k == K) break;
    V d[Rows][S * S], f[Rows][S];
#pragma GCC unroll 2
    for (int a = 0; a < Rows; ++a) {
      splats<S * S>(factors + a, d[a]);
      splats<S>(factors + a + S * S * kTraceRows, f[a]);
    }
#pragma GCC unroll 8
    for (int i = 0; i < Vecs; ++i) {
      const V y = load<V>(pre + i * v);
#pragma GCC unroll 2
      for (int a = 0; a < Rows; ++a) trace_advance<S>(d[a], f[a], y, e[a][i]);
    }
    factors += (S * S + S) * kTraceRows;
    pre += ld;
  }
}

// Rows of a block in `across`.
template <class T>
int64_t trace_block(const TraceShape& s) {
  int64_t rows = kTraceRows;
  while (rows > 1 && rows * s.signals * kTraceVecs * static_cast<int64_t>(sizeof(Vec<T>)) > kTraceSums) rows /= 2;
  return rows;
}
// Numbers of scratch for one range of rows.
template <class T>
int64_t trace_scratch(const TraceShape& s) {
  const int64_t factors = s.S == 1 ? factors_size<1>(s) : s.S == 2 ? factors_size<2>(s) : factors_size<3>(s);
  const int64_t v = lanes<Vec<T>>();
  return s.B * (factors + s.K * padded<T>(s.Q)) + kTraceRows * s.signals * kTraceVecs * v + v;
}

// pre (tiles, B, K, columns of the tile), zeros past Q: what a tile reads is one stretch of memory.
template <class T, int S>
void pack_pre(const TraceStep<T>& p, T* to) {
  tiles<T, tile_vecs<S>()>(p.s.Q, [&](int64_t j, auto vecs, auto full, int last) {
    constexpr int64_t width = decltype(vecs)::value * lanes<Vec<T>>();
    const int64_t count = decltype(full)::value ? width : last;
    for (int64_t b = 0; b < p.s.B; ++b) {
      for (int64_t k = 0; k < p.s.K; ++k, to += width) {
        const T* from = p.pre.p + k * p.pre.k + b * p.pre.b + j;
        for (int64_t i = 0; i < count; ++i) to[i] = from[i];
        for (int64_t i = count; i < width; ++i) to[i] = 0;
      }
    }
  });
}

template <class T, int S, int Vecs, bool Full>
void trace_tile(const TraceStep<T>& p, int64_t first, int64_t rows, int64_t j, int last, const T* factors, const T* pre,
                T* sums) {
  using V = Vec<T>;
  constexpr int kRows = rows_together<S>(), v = lanes<V>(), width = Vecs * v;
  const int64_t signals = p.s.signals, size = factors_size<S>(p.s);
  zero_row(sums, rows * signals * width);
  T* block = p.trace.p + first * p.trace_row + j;
  for (int64_t b = 0; b < p.s.B; ++b, block += p.trace.b, factors += size, pre += p.s.K * width) {
    int64_t r = 0;
    for (; r + kRows <= rows; r += kRows) {
      trace_across<T, S, kRows, Vecs, Full>(p, block + r * p.trace_row, last, factors + r, pre, sums + r * signals * width);
    }
    if (r < rows) {
      trace_across<T, S, 1, Vecs, Full>(p, block + r * p.trace_row, last, factors + r, pre, sums + r * signals * width);
    }
  }
  for (int64_t r = 0; r < rows; ++r) {
    T* grad = p.grad + (first + r) * p.grad_row + j;
    for (int64_t m = 0; m < signals; ++m, sums += width) {
      for (int i = 0; i < Vecs; ++i) {
        write<Full, V>(grad + i * v, read<Full, V>(grad + i * v, last) + load<V>(sums + i * v), last);
      }
    }
  }
}

template <class T, int S>
void trace_blocks(const TraceStep<T>& p, int64_t first, int64_t end, T* scratch) {
  const int64_t block = trace_block<T>(p.s), B = p.s.B, Q = p.s.Q, size = factors_size<S>(p.s);
  T *factors = scratch, *pre = factors + B * size, *sums = pre + B * p.s.K * padded<T>(Q);
  pack_pre<T, S>(p, pre);
  for (int64_t r0 = first; r0 < end; r0 += block) {
    const int64_t rows = end - r0 < block ? end - r0 : block;
    for (int64_t b = 0; b < B; ++b) pack_factors<T, S>(p, b, r0, rows, factors + b * size);
    tiles<T, tile_vecs<S>()>(Q, [&](int64_t j, auto vecs, auto full, int last) {
      trace_tile<T, S, decltype(vecs)::value, decltype(full)::value>(p, r0, rows, j, last, factors, pre + j * B * p.s.K, sums);
    });
  }
}

template <class T, int S>
void trace_states(const TraceStep<T>& p, int64_t first, int64_t end, T* scratch) {
  const TraceShape& s = p.s;
  if (p.bias.p) trace_bias<T, S>(p, first, end, scratch);
  const bool along = p.trace.b < p.trace_row && s.commit == s.K && s.signals <= 1;
  if (along && s.K == 1) {
    return s.signals ? trace_rows<T, S, 1, true>(p, first, end, scratch) : trace_rows<T, S, 1, false>(p, first, end, scratch);
  }
  if (along && s.K == 0) return trace_rows<T, S, 0, true>(p, first, end, scratch);
  trace_blocks<T, S>(p, first, end, scratch);
}

template <class T>
void trace_step(const TraceStep<T>& p, int64_t first, int64_t end, T* scratch) {
  if (p.s.S == 1) {
    trace_states<T, 1>(p, first, end, scratch);
  } else if (p.s.S == 2) {
    trace_states<T, 2>(p, first, end, scratch);
  } else {
    trace_states<T, 3>(p, first, end, scratch);
  }
}

}  // namespace RX_NS
}  // namespace rx
