// Trace updates on CUDA, one launch. A thread has four columns of one row of the matrix and every fourth row of the batch; the
// four threads that share them are lanes of one warp, which add their sums in order. The trace is read and written once.
#include "kernels/cuda/trace.h"

#include "cells/trace.h"
#include "kernels/cuda/run.h"

namespace rx {
namespace cuda {
namespace {

using namespace RX_NS;

constexpr int kThreads = 256, kSlices = 4, kAcross = 32 / kSlices, kBlock = kThreads / kSlices;

// The factors of one row of the matrix in one row of the batch.
template <class T, int S>
struct Factors {
  T d[S * S], f[S];
  __device__ __forceinline__ Factors(const TraceStep<T>& p, int64_t k, int64_t b, int64_t r, int64_t unit) {
    const T* from = p.decay.p + k * p.decay.k + b * p.decay.b + unit * p.decay_unit;
    const T* psi = p.psi.p + k * p.psi.k + b * p.psi.b + r;
#pragma unroll
    for (int s = 0; s < S; ++s) {
      f[s] = psi[s * p.psi.s];
#pragma unroll
      for (int o = 0; o < S; ++o) d[s * S + o] = from[s * p.decay.s + o * p.decay_from];
    }
  }
};

// The thread's four columns in row b of the batch, in state k.
template <class T, int S>
struct Columns {
  const TraceStep<T>& p;
  int64_t b, r, j, unit, k = 0;
  int count;
  bool vec;
  T* at;
  Quad<T> e[S];

  __device__ __forceinline__ Columns(const TraceStep<T>& p, int64_t b, int64_t r, int64_t j, int count, bool vec)
      : p(p), b(b), r(r), j(j), unit(r % p.s.n), count(count), vec(vec), at(p.trace.p + b * p.trace.b + r * p.trace_row + j) {
#pragma unroll
    for (int s = 0; s < S; ++s) e[s] = load_quad<T>(at + s * p.trace.s, count, vec);
  }
  __device__ __forceinline__ void step() {
    const Factors<T, S> x(p, k, b, r, unit);
    Quad<T> pre;
    if (p.pre.p) {
      pre = load_quad<T>(p.pre.p + k * p.pre.k + b * p.pre.b + j, count, vec);
    } else {
#pragma unroll
      for (int i = 0; i < kColumns; ++i) pre.v[i] = T(1);
    }
#pragma unroll
    for (int i = 0; i < kColumns; ++i) {
      T column[S];
#pragma unroll
      for (int s = 0; s < S; ++s) column[s] = e[s].v[i];
      trace_advance<S>(x.d, x.f, pre.v[i], column);
#pragma unroll
      for (int s = 0; s < S; ++s) e[s].v[i] = column[s];
    }
    if (++k != p.s.commit) return;
#pragma unroll
    for (int s = 0; s < S; ++s) store_quad(at + s * p.trace.s, e[s], count, vec);
  }
  __device__ __forceinline__ void contract(int64_t m, Quad<T>& sum) const {
    T signal[S];
#pragma unroll
    for (int s = 0; s < S; ++s) signal[s] = p.signal.p[m * p.signal.k + b * p.signal.b + s * p.signal.s + unit];
#pragma unroll
    for (int i = 0; i < kColumns; ++i) {
      T x[S];
#pragma unroll
      for (int s = 0; s < S; ++s) x[s] = e[s].v[i];
      sum.v[i] = trace_contract<S>(signal, x, sum.v[i]);
    }
  }
};

// The sums of the four lanes that share columns, in order, and those of the steps in order.
template <class T, int Signals>
__device__ __forceinline__ void add(int64_t signals, const Quad<T>* sum, int across, Quad<T>& total) {
#pragma unroll
  for (int m = 0; m < Signals; ++m) {
    if (m >= signals) break;
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
      T x = __shfl_sync(0xffffffffu, sum[m].v[c], across);
#pragma unroll
      for (int slice = 1; slice < kSlices; ++slice) x += __shfl_sync(0xffffffffu, sum[m].v[c], slice * kAcross + across);
      total.v[c] += x;
    }
  }
}

template <class T, int S, int Signals>
__device__ __forceinline__ void update(const TraceStep<T>& p, int64_t block, bool vec) {
  const int lane = threadIdx.x % 32, across = lane % kAcross;
  const int64_t quads = (p.s.Q + kColumns - 1) / kColumns;
  const int64_t i = block * kBlock + static_cast<int64_t>(threadIdx.x / 32) * kAcross + across;
  const bool inside = i < p.s.R * quads;
  const int64_t r = inside ? i / quads : 0, j = inside ? i % quads * kColumns : 0;
  const int count = static_cast<int>(p.s.Q - j < kColumns ? p.s.Q - j : kColumns);
  Quad<T> sum[Signals > 0 ? Signals : 1];
#pragma unroll
  for (Quad<T>& x : sum) x = zero_quad<T>();
  if (inside) {
    for (int64_t b = lane / kAcross; b < p.s.B; b += kSlices) {
      Columns<T, S> columns(p, b, r, j, count, vec);
      for (const int64_t first = Signals > 0 ? p.s.K + 1 - p.s.signals : p.s.K; columns.k < first;) columns.step();
#pragma unroll
      for (int m = 0; m < Signals; ++m) {  // the sums are registers: their index must be known
        if (m >= p.s.signals) break;
        if (m > 0) columns.step();
        columns.contract(m, sum[m]);
      }
    }
  }
  if constexpr (Signals > 0) {
    T* grad = p.grad + r * p.grad_row + j;
    Quad<T> total = zero_quad<T>();
    const bool writes = inside && lane < kAcross;
    if (writes) total = load_quad<T>(grad, count, vec);
    add<T, Signals>(p.s.signals, sum, across, total);
    if (writes) store_quad(grad, total, count, vec);
  }
}

// Blocks that a multiprocessor should hold: as many as there are without spilling registers.
template <class T, int S, int Signals>
constexpr int resident() {
  return Signals > 1 || S * sizeof(T) > 16 ? 1 : S * sizeof(T) == 4 ? 4 : 2;
}

// A matrix and, in the blocks from `blocks` on, its bias.
template <class T>
struct Pair {
  TraceStep<T> of[2];
  int64_t blocks;
  bool vec;
};
template <class T, int S, int Signals>
__global__ void __launch_bounds__(kThreads, resident<T, S, Signals>()) trace_update(const __grid_constant__ Pair<T> pair) {
  const int bias = blockIdx.x >= pair.blocks;
  update<T, S, Signals>(pair.of[bias], bias ? blockIdx.x - pair.blocks : blockIdx.x, pair.vec && !bias);
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

int64_t blocks_of(const TraceShape& s) {
  return (s.R * ((s.Q + kColumns - 1) / kColumns) + kBlock - 1) / kBlock;
}

template <class T, int S>
const char* launch(const TraceStep<T>& p, void* stream) {
  const char* name = "trace_step";
  Pair<T> pair{{p, column(p)}, blocks_of(p.s), whole_words(p.s.Q, p.trace.p, p.pre.p, p.grad)};
  const int64_t all = pair.blocks + (p.bias.p ? blocks_of(pair.of[1].s) : 0);
  if (all == 0) return nullptr;
  if (all > 0x7fffffff) return error_of(name, "more blocks than a grid can have");
  const int64_t strides[] = {p.trace.b, p.trace.s, p.trace_row, p.pre.k, p.pre.b, p.grad_row};
  for (const int64_t stride : strides) pair.vec = pair.vec && stride % kColumns == 0;
  const dim3 grid(static_cast<unsigned>(all)), block(kThreads);
  if (p.s.signals == 0) {
    RX_LAUNCH((trace_update<T, S, 0>), grid, block, 0, stream, pair);
  } else if (p.s.signals == 1) {
    RX_LAUNCH((trace_update<T, S, 1>), grid, block, 0, stream, pair);
  } else {
    RX_LAUNCH((trace_update<T, S, kTraceSignals>), grid, block, 0, stream, pair);
  }
  return error_of(name, last_error());
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
