// Traces that are one for all rows, on CUDA: a launch for the filter, which keeps the states to contract, and one for the
// product, where a thread has four columns of two rows and all of the batch in order.
#include "cells/trace.h"
#include "kernels/cuda/run.h"
#include "kernels/cuda/trace.h"

namespace rx {
namespace cuda {
namespace {

using namespace RX_NS;

constexpr int kThreads = 256, kRows = 2;

__device__ __forceinline__ int64_t thread() {
  return static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
}
// Quads of a row, and one more for the bias.
template <class T>
RX_FN int64_t quads_of(const RankOneStep<T>& p) {
  return (p.s.Q + kColumns - 1) / kColumns + (p.bias.p ? 1 : 0);
}
template <class T>
RX_FN bool is_bias(const RankOneStep<T>& p, int64_t j) {
  return j >= p.s.Q;
}

template <class T>
__global__ void __launch_bounds__(kThreads) rank_one_filter(RankOneStep<T> p, int64_t threads, bool vec) {
  const int64_t i = thread();
  if (i >= threads) return;
  const int64_t quads = quads_of(p), b = i / quads, j = i % quads * kColumns, plain = p.s.K + 1 - p.s.signals;
  const bool one = is_bias(p, j);
  const int count = one ? 1 : static_cast<int>(p.s.Q - j < kColumns ? p.s.Q - j : kColumns);
  vec = vec && !one;
  T* at = one ? p.bias.p + b * p.bias.b : p.trace.p + b * p.trace.b + j;
  Quad<T> z = load_quad<T>(at, count, vec);
  for (int64_t k = 0;; ++k) {
    if (k > 0 && k == p.s.commit) store_quad(at, z, count, vec);
    if (k >= plain) {
      const int64_t row = (k - plain) * p.s.B + b;
      store_quad(one ? p.ones + row : p.states + row * p.s.Q + j, z, count, vec);
    }
    if (k == p.s.K) return;
    const T decay = p.decay.p[k * p.decay.k + b * p.decay.b];
    Quad<T> pre;
    if (one) {
      pre = zero_quad<T>();
      pre.v[0] = T(1);
    } else {
      pre = load_quad<T>(p.pre.p + k * p.pre.k + b * p.pre.b + j, count, vec);
    }
#pragma unroll
    for (int c = 0; c < kColumns; ++c) z.v[c] = trace_filter(decay, z.v[c], pre.v[c]);
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads) rank_one_contract(RankOneStep<T> p, int64_t threads, bool vec) {
  const int64_t i = thread();
  if (i >= threads) return;
  const int64_t quads = quads_of(p), r0 = i / quads * kRows, j = i % quads * kColumns;
  const bool one = is_bias(p, j);
  const int count = one ? 1 : static_cast<int>(p.s.Q - j < kColumns ? p.s.Q - j : kColumns);
  vec = vec && !one;
  const T* z = one ? p.ones : p.states + j;
  const int64_t width = one ? 1 : p.s.Q;
  int64_t row[kRows], unit[kRows];
  T* grad[kRows];
  Quad<T> sum[kRows];
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    row[r] = r0 + r < p.s.R ? r0 + r : r0;  // the last row twice, written once
    unit[r] = row[r] % p.s.n;
    grad[r] = one ? p.grad_bias + row[r] : p.grad + row[r] * p.grad_row + j;
    sum[r] = load_quad<T>(grad[r], count, vec);
  }
  for (int64_t m = 0; m < p.s.signals; ++m) {
    const T *psi = p.psi.p + m * p.psi.k, *signal = p.signal.p + m * p.signal.k;
    for (int64_t b = 0; b < p.s.B; ++b, z += width, psi += p.psi.b, signal += p.signal.b) {
      const Quad<T> x = load_quad<T>(z, count, vec);
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        const T a = signal[unit[r]] * psi[row[r]];
#pragma unroll
        for (int c = 0; c < kColumns; ++c) sum[r].v[c] = fused(a, x.v[c], sum[r].v[c]);
      }
    }
  }
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    if (r0 + r < p.s.R) store_quad(grad[r], sum[r], count, vec);
  }
}

}  // namespace

template <class T>
const char* rank1_trace_step(const RankOneStep<T>& p, void* stream) {
  const char* name = "rank1_trace_step";
  if (const char* error = last_error()) return error_of("a CUDA call before this one", error);
  const int64_t quads = quads_of(p), filter = p.s.B * quads, contract = (p.s.R + kRows - 1) / kRows * quads;
  const int64_t blocks = (filter + kThreads - 1) / kThreads, more = (contract + kThreads - 1) / kThreads;
  if (blocks > 0x7fffffff || more > 0x7fffffff) return error_of(name, "more blocks than a grid can have");
  bool vec = whole_words(p.s.Q, p.trace.p, p.pre.p, p.states, p.grad);
  const int64_t strides[] = {p.trace.b, p.pre.k, p.pre.b, p.grad_row};
  for (const int64_t stride : strides) vec = vec && stride % kColumns == 0;
  if (filter > 0) {
    RX_LAUNCH((rank_one_filter<T>), dim3(static_cast<unsigned>(blocks)), dim3(kThreads), 0, stream, p, filter, vec);
  }
  if (p.s.signals > 0 && contract > 0) {
    RX_LAUNCH((rank_one_contract<T>), dim3(static_cast<unsigned>(more)), dim3(kThreads), 0, stream, p, contract, vec);
  }
  return error_of(name, last_error());
}

template const char* rank1_trace_step(const RankOneStep<float>&, void*);
template const char* rank1_trace_step(const RankOneStep<double>&, void*);

}  // namespace cuda
}  // namespace rx
