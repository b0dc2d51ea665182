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

template <class T, int S>
__device__ __forceinline__ void put(const TraceStep<T>& p, T* at, const Quad<T>* e, int count, bool vec) {
#pragma unroll
  for (int s = 0; s < S; ++s) store_quad(at + s * p.trace.s, e[s], count, vec);
}

// All steps of the thread's four columns in row b of the batch.
template <class T, int S, int Signals>
__device__ __forceinline__ void advance(const TraceStep<T>& p, int64_t b, int64_t r, int64_t j, int count, bool vec,
                                        Quad<T>* sum) {
  const int64_t unit = r % p.s.n, plain = p.s.K + 1 - p.s.signals;
  T* at = p.trace.p + b * p.trace.b + r * p.trace_row + j;
  Quad<T> e[S];
#pragma unroll
  for (int s = 0; s < S; ++s) e[s] = load_quad<T>(at + s * p.trace.s, count, vec);
  for (int64_t k = 0;; ++k) {
    if (k > 0 && k == p.s.commit) put<T, S>(p, at, e, count, vec);
    if (Signals > 0 && k >= plain) {
      T signal[S];
#pragma unroll
      for (int s = 0; s < S; ++s) {
        signal[s] = p.signal.p[(k - plain) * p.signal.k + b * p.signal.b + s * p.signal.s + unit];
      }
#pragma unroll
      for (int m = 0; m < Signals; ++m) {  // sums are registers: their index must be known
        if (m != k - plain) continue;
#pragma unroll
        for (int i = 0; i < kColumns; ++i) {
          T x[S];
#pragma unroll
          for (int s = 0; s < S; ++s) x[s] = e[s].v[i];
          sum[m].v[i] = trace_contract<S>(signal, x, sum[m].v[i]);
        }
      }
    }
    if (k == p.s.K) return;
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
  for (int m = 0; m < Signals; ++m) sum[m] = zero_quad<T>();
  if (inside) {
    for (int64_t b = lane / kAcross; b < p.s.B; b += kSlices) advance<T, S, Signals>(p, b, r, j, count, vec, sum);
  }
  if (Signals == 0 || p.grad == nullptr) return;
  T* grad = p.grad + r * p.grad_row + j;
  Quad<T> total = zero_quad<T>();
  const bool writes = inside && lane < kAcross;
  if (writes) total = load_quad<T>(grad, count, vec);
#pragma unroll
  for (int m = 0; m < Signals; ++m) {
    if (m >= p.s.signals) break;
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
      T x = __shfl_sync(0xffffffffu, sum[m].v[c], across);
#pragma unroll
      for (int slice = 1; slice < kSlices; ++slice) x += __shfl_sync(0xffffffffu, sum[m].v[c], slice * kAcross + across);
      total.v[c] += x;
    }
  }
  if (writes) store_quad(grad, total, count, vec);
}

// Blocks from `blocks` on have the trace of the bias.
template <class T, int S, int Signals>
__global__ void __launch_bounds__(kThreads) trace_update(TraceStep<T> p, TraceStep<T> bias, int64_t blocks, bool vec) {
  if (blockIdx.x < blocks) {
    update<T, S, Signals>(p, blockIdx.x, vec);
  } else {
    update<T, S, Signals>(bias, blockIdx.x - blocks, false);
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

int64_t blocks_of(const TraceShape& s) {
  return (s.R * ((s.Q + kColumns - 1) / kColumns) + kBlock - 1) / kBlock;
}

template <class T, int S>
const char* launch(const TraceStep<T>& p, void* stream) {
  const char* name = "trace_step";
  const TraceStep<T> bias = column(p);
  const int64_t blocks = blocks_of(p.s), all = blocks + (p.bias.p ? blocks_of(bias.s) : 0);
  if (all == 0) return nullptr;
  if (all > 0x7fffffff) return error_of(name, "more blocks than a grid can have");
  bool vec = whole_words(p.s.Q, p.trace.p, p.pre.p, p.grad);
  for (int64_t stride : {p.trace.b, p.trace.s, p.trace_row, p.pre.k, p.pre.b, p.grad_row}) vec = vec && stride % kColumns == 0;
  const dim3 grid(static_cast<unsigned>(all)), block(kThreads);
  if (p.s.signals == 0) {
    RX_LAUNCH((trace_update<T, S, 0>), grid, block, 0, stream, p, bias, blocks, vec);
  } else if (p.s.signals == 1) {
    RX_LAUNCH((trace_update<T, S, 1>), grid, block, 0, stream, p, bias, blocks, vec);
  } else {
    RX_LAUNCH((trace_update<T, S, kTraceSignals>), grid, block, 0, stream, p, bias, blocks, vec);
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
