// Trace updates on CUDA, one launch. A thread has four columns of a few rows of the matrix, in some rows of the batch; the
// threads that share columns belong to one block, which adds their sums in order. The trace is read and written once.
#include "kernels/cuda/trace.h"

#include "cells/trace.h"
#include "kernels/cuda/run.h"

#include <initializer_list>

namespace rx {
namespace cuda {
namespace {

using namespace RX_NS;

constexpr int kThreads = 256, kAcross = 8;
constexpr int kMostSlices = kThreads / kAcross;

// Rows of the matrix that a thread has: what it reads of the inputs serves all of them. As many as registers hold.
template <class T, int S, int Signals>
constexpr int kRowsOf = S * sizeof(T) * (Signals > 1 ? 2 : 1) <= 4 ? 4
                        : S * sizeof(T) <= 8                       ? 2
                                                                   : 1;

// How a launch shares its work. A block has eight quads of columns; its groups of threads have a few rows each, next to each
// other, so that what they read of the inputs is in the same lines; the `slices` of a group share the rows of the batch.
// octets: of quads in a row of the matrix. whole: rows of the trace are whole words. level: so are a thread's factors.
struct Split {
  int slices;
  int64_t octets, blocks;
  bool whole, level;
};

// What one step brings to a thread's rows and columns.
template <class T, int S, int Rows>
struct Inputs {
  Quad<T> pre;
  T d[S * S][Rows], f[S][Rows];
};

// A thread's rows and columns in row b of the batch, in state k. Of the next step and of the next row of the batch is read
// what can be before something is stored, behind which the compiler can't move a load.
template <class T, int S, int Rows>
struct Tile {
  const TraceStep<T>& p;
  const Split& split;
  int64_t r, j;
  int count;
  int64_t row[Rows], unit[Rows];  // rows beyond the last one are that one again, and not stored
  int64_t b = 0, k = 0;
  Quad<T> e[Rows][S];

  __device__ __forceinline__ Tile(const TraceStep<T>& p, const Split& split, int64_t r, int64_t j)
      : p(p), split(split), r(r), j(j), count(static_cast<int>(p.s.Q - j < kColumns ? p.s.Q - j : kColumns)) {
#pragma unroll
    for (int t = 0; t < Rows; ++t) {
      row[t] = r + t < p.s.R ? r + t : p.s.R - 1;
      unit[t] = row[t] % p.s.n;
    }
  }
  __device__ __forceinline__ bool inside(int t) const { return t == 0 || r + t < p.s.R; }
  __device__ __forceinline__ T* at(int64_t in, int t, int s) const {
    return p.trace.p + in * p.trace.b + s * p.trace.s + row[t] * p.trace_row + j;
  }
  // A number for each of the rows: `from` at their places.
  __device__ __forceinline__ void for_rows(const T* from, const int64_t* places, int64_t stride, T* x) const {
    if constexpr (Rows == kColumns) {
      if (split.level) {
        const Quad<T> q = load_quad(from + places[0], kColumns, true);
#pragma unroll
        for (int t = 0; t < Rows; ++t) x[t] = q.v[t];
        return;
      }
    }
#pragma unroll
    for (int t = 0; t < Rows; ++t) x[t] = from[places[t] * stride];
  }
  // The traces in a row of the batch.
  __device__ __forceinline__ void read(int64_t in, Quad<T> (&to)[Rows][S]) const {
#pragma unroll
    for (int t = 0; t < Rows; ++t) {
#pragma unroll
      for (int s = 0; s < S; ++s) to[t][s] = load_quad<T>(at(in, t, s), count, split.whole);
    }
  }
  __device__ __forceinline__ Inputs<T, S, Rows> inputs(int64_t of) const {
    Inputs<T, S, Rows> x;
    if (p.pre.p) {
      x.pre = load_quad<T>(p.pre.p + of * p.pre.k + b * p.pre.b + j, count, split.whole);
    } else {
#pragma unroll
      for (int i = 0; i < kColumns; ++i) x.pre.v[i] = T(1);
    }
    const T* decay = p.decay.p + of * p.decay.k + b * p.decay.b;
    const T* psi = p.psi.p + of * p.psi.k + b * p.psi.b;
#pragma unroll
    for (int s = 0; s < S; ++s) {
      for_rows(psi + s * p.psi.s, row, 1, x.f[s]);
#pragma unroll
      for (int o = 0; o < S; ++o) for_rows(decay + s * p.decay.s + o * p.decay_from, unit, p.decay_unit, x.d[s * S + o]);
    }
    return x;
  }
  __device__ __forceinline__ void step(const Inputs<T, S, Rows>& x) {
#pragma unroll
    for (int t = 0; t < Rows; ++t) {
      T own[S * S], by[S];
#pragma unroll
      for (int s = 0; s < S; ++s) by[s] = x.f[s][t];
#pragma unroll
      for (int s = 0; s < S * S; ++s) own[s] = x.d[s][t];
#pragma unroll
      for (int i = 0; i < kColumns; ++i) {
        T column[S];
#pragma unroll
        for (int s = 0; s < S; ++s) column[s] = e[t][s].v[i];
        trace_advance<S>(own, by, x.pre.v[i], column);
#pragma unroll
        for (int s = 0; s < S; ++s) e[t][s].v[i] = column[s];
      }
    }
    if (++k != p.s.commit) return;
#pragma unroll
    for (int t = 0; t < Rows; ++t) {
      if (!inside(t)) break;
#pragma unroll
      for (int s = 0; s < S; ++s) store_quad(at(b, t, s), e[t][s], count, split.whole);
    }
  }
  __device__ __forceinline__ void contract(int64_t m, Quad<T>* sum) const {
    T signal[S][Rows];
#pragma unroll
    for (int s = 0; s < S; ++s) for_rows(p.signal.p + m * p.signal.k + b * p.signal.b + s * p.signal.s, unit, 1, signal[s]);
#pragma unroll
    for (int t = 0; t < Rows; ++t) {
      T of[S];
#pragma unroll
      for (int s = 0; s < S; ++s) of[s] = signal[s][t];
#pragma unroll
      for (int i = 0; i < kColumns; ++i) {
        T x[S];
#pragma unroll
        for (int s = 0; s < S; ++s) x[s] = e[t][s].v[i];
        sum[t].v[i] = trace_contract<S>(of, x, sum[t].v[i]);
      }
    }
  }
};

template <class T, int S, int Signals>
__device__ __forceinline__ void update(const TraceStep<T>& p, const Split& split, int64_t block) {
  constexpr int kRows = kRowsOf<T, S, Signals>;
  const int slices = split.slices, across = static_cast<int>(threadIdx.x) % kAcross;
  const int slice = threadIdx.x / kAcross % slices, group = threadIdx.x / (kAcross * slices);
  const int64_t r = (block / split.octets * (kMostSlices / slices) + group) * kRows;
  const int64_t j = (block % split.octets * kAcross + across) * kColumns;
  const bool there = r < p.s.R && j < p.s.Q;
  Tile<T, S, kRows> tile(p, split, there ? r : 0, there ? j : 0);
  Quad<T> sum[Signals > 0 ? Signals : 1][kRows];
#pragma unroll
  for (auto& rows : sum) {
#pragma unroll
    for (Quad<T>& x : rows) x = zero_quad<T>();
  }
  if (there) {
    const int64_t plain = Signals > 0 ? p.s.K + 1 - p.s.signals : p.s.K;  // steps before the first signal
    Quad<T> next[kRows][S];
    if (slice < p.s.B) tile.read(slice, next);
    for (int64_t b = slice; b < p.s.B; b += slices) {
      tile.b = b;
      tile.k = 0;
#pragma unroll
      for (int t = 0; t < kRows; ++t) {
#pragma unroll
        for (int s = 0; s < S; ++s) tile.e[t][s] = next[t][s];
      }
      if (b + slices < p.s.B) tile.read(b + slices, next);
      Inputs<T, S, kRows> now{};
      if (p.s.K > 0) now = tile.inputs(0);
      while (tile.k < plain) {
        const Inputs<T, S, kRows> then = now;
        if (tile.k + 1 < p.s.K) now = tile.inputs(tile.k + 1);
        tile.step(then);
      }
#pragma unroll
      for (int m = 0; m < Signals; ++m) {  // the sums are registers: their index must be known
        if (m >= p.s.signals) break;
        if (m > 0) {
          tile.step(now);
          if (tile.k < p.s.K) now = tile.inputs(tile.k);
        }
        tile.contract(m, sum[m]);
      }
    }
  }
  if constexpr (Signals > 0) {
    // Each step's sums over the slices in order, then on to the gradient: whatever the number of steps, the same bits.
    constexpr int kStride = kThreads + kAcross;  // against bank conflicts
    RX_SHARED(parts, T[kRows * kColumns * kStride]);
    const int first = threadIdx.x - slice * kAcross;
#pragma unroll
    for (int m = 0; m < Signals; ++m) {
      if (m >= p.s.signals) break;
      if (m > 0) __syncthreads();  // the sums before have been read
#pragma unroll
      for (int t = 0; t < kRows; ++t) {
#pragma unroll
        for (int c = 0; c < kColumns; ++c) parts[(t * kColumns + c) * kStride + threadIdx.x] = sum[m][t].v[c];
      }
      __syncthreads();
      for (int i = slice; there && i < kRows * kColumns; i += slices) {
        const int t = i / kColumns, c = i % kColumns;
        if (r + t >= p.s.R || c >= tile.count) continue;
        const T* from = parts + i * kStride + first;
        T x = from[0];
#pragma unroll 4
        for (int other = 1; other < slices; ++other) x += from[other * kAcross];
        p.grad[(r + t) * p.grad_row + j + c] += x;
      }
    }
  }
}

// Blocks that a multiprocessor should hold: as many as there are without spilling registers.
template <class T, int S, int Signals>
constexpr int resident() {
  return Signals > 1 || S * sizeof(T) > 16 || (Signals == 0 && S * sizeof(T) == 4) ? 1 : 2;
}

// A matrix and, in the blocks after its own, its bias.
template <class T>
struct Pair {
  TraceStep<T> of[2];
  Split split[2];
};
template <class T, int S, int Signals>
__global__ void __launch_bounds__(kThreads, resident<T, S, Signals>()) trace_update(const __grid_constant__ Pair<T> pair) {
  const int64_t blocks = pair.split[0].blocks;
  if (blockIdx.x < blocks) {
    update<T, S, Signals>(pair.of[0], pair.split[0], blockIdx.x);
  } else {
    update<T, S, Signals>(pair.of[1], pair.split[1], blockIdx.x - blocks);
  }
}

// The trace of the bias as a matrix of one column.
template <class T>
TraceStep<T> column(const TraceStep<T>& p) {
  TraceStep<T> c = p;
  c.s.Q = 1;
  c.trace = p.bias;
  c.trace_row = 1;
  c.pre = {};
  c.grad = p.grad_bias;
  c.grad_row = 1;
  return c;
}

// So many slices of the batch that a card is full, up to one for each row. Not by the number of steps, on which the order of
// sums must not depend.
int slices_of(const TraceShape& s, const Limits& card) {
  const int64_t full = static_cast<int64_t>(card.sm_count) * 2 * kThreads, tiles = (s.R + 3) / 4 * ((s.Q + 3) / 4);
  int slices = 1;
  while (slices < kMostSlices && 2 * slices <= s.B && slices * tiles < full) slices *= 2;
  return slices;
}

template <class T, int S, int Signals>
Split split_of(const TraceStep<T>& p, const Limits& card) {
  constexpr int kRows = kRowsOf<T, S, Signals>;
  Split split{};
  split.slices = slices_of(p.s, card);
  const int64_t quads = (p.s.Q + kColumns - 1) / kColumns, rows = kMostSlices / split.slices * kRows;
  split.octets = (quads + kAcross - 1) / kAcross;
  split.blocks = (p.s.R + rows - 1) / rows * split.octets;
  const auto even = [](std::initializer_list<int64_t> strides) {
    bool all = true;
    for (const int64_t stride : strides) all = all && stride % kColumns == 0;
    return all;
  };
  split.whole = p.pre.p && whole_words(p.s.Q, p.trace.p, p.pre.p, p.grad) &&
                even({p.trace.b, p.trace.s, p.trace_row, p.pre.k, p.pre.b, p.grad_row});
  split.level =
      p.decay_unit == 1 && whole_words(p.s.n, p.decay.p, p.psi.p, p.signal.p) &&
      even({p.decay.k, p.decay.b, p.decay.s, p.decay_from, p.psi.k, p.psi.b, p.psi.s, p.signal.k, p.signal.b, p.signal.s});
  return split;
}

template <class T, int S, int Signals>
const char* launch(const TraceStep<T>& p, void* stream) {
  const char* name = "trace_step";
  const Limits card = limits();
  Pair<T> pair{{p, column(p)}, {split_of<T, S, Signals>(p, card), {}}};
  if (p.bias.p) pair.split[1] = split_of<T, S, Signals>(pair.of[1], card);
  const int64_t all = pair.split[0].blocks + pair.split[1].blocks;
  if (all == 0) return nullptr;
  if (all > 0x7fffffff) return error_of(name, "more blocks than a grid can have");
  RX_LAUNCH((trace_update<T, S, Signals>), dim3(static_cast<unsigned>(all)), dim3(kThreads), 0, stream, pair);
  return error_of(name, last_error());
}

template <class T, int S>
const char* launch(const TraceStep<T>& p, void* stream) {
  if (p.s.signals == 0) return launch<T, S, 0>(p, stream);
  return p.s.signals == 1 ? launch<T, S, 1>(p, stream) : launch<T, S, kTraceSignals>(p, stream);
}

}  // namespace

template <class T>
const char* trace_step(const TraceStep<T>& p, void* stream) {
  if (const char* error = last_error()) return error_of("a CUDA call before this one", error);
  const int64_t signals = p.s.signals, plain = p.s.K + 1 - signals;
  // Of more signals than registers hold sums: a launch for each few, of the steps up to their last; the last one stores.
  for (int64_t m = 0; m == 0 || m < signals; m += kTraceSignals) {
    TraceStep<T> part = p;
    part.signal.p += m * p.signal.k;
    part.s.signals = signals - m < kTraceSignals ? signals - m : kTraceSignals;
    if (m + kTraceSignals < signals) {
      part.s.K = plain + m + part.s.signals - 1;
      part.s.commit = 0;
    }
    const char* error = p.s.S == 1   ? launch<T, 1>(part, stream)
                        : p.s.S == 2 ? launch<T, 2>(part, stream)
                                     : launch<T, 3>(part, stream);
    if (error) return error;
  }
  return nullptr;
}

template const char* trace_step(const TraceStep<float>&, void*);
template const char* trace_step(const TraceStep<double>&, void*);

}  // namespace cuda
}  // namespace rx
