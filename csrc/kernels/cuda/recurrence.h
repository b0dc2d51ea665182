// The three kernels of a recurrence (strategy.h), for any Step.
#pragma once
#include "kernels/cuda/rows.h"

namespace rx {
namespace cuda {

// The rows of one recurrent matrix: groups of them lie one after the other.
struct Grid {
  int64_t groups, rows;  // matrices, and rows under each
  int64_t tiles;         // blocks per group
  bool vec;              // rows are whole quads, all arrays 16-byte aligned
};

// The matrix in shared memory, padded with zeros: what is summed over, then columns.
template <class T, bool Transposed>
__device__ __forceinline__ void fill_matrix(const T* w, int64_t n, T* matrix) {
  const int columns = static_cast<int>(padded_columns(n)), sums = static_cast<int>(padded_sum(n));
  for (int64_t i = threadIdx.x; i < static_cast<int64_t>(columns) * sums; i += blockDim.x) {
    // along the rows of w in either case, so that neighbouring threads read neighbouring numbers
    const int64_t width = Transposed ? sums : columns, row = i / width, column = i % width;
    const T value = RX_BOUND(4, row < n && column < n) ? w[row * n + column] : T(0);
    matrix[Transposed ? column * columns + row : i] = value;
  }
}

// This thread's share of carry (rows, n) times the matrix: kColumns columns of Rows / kSlices rows. Each thread sums every
// kSlices-th product for all rows; lanes then exchange sums, always in the same order.
template <class T, int Rows>
__device__ __forceinline__ void multiply(const T* matrix, const T* carry, int64_t n, int column, Quad<T>* out) {
  const int columns = static_cast<int>(padded_columns(n)), sums = static_cast<int>(padded_sum(n));
  const int lane = threadIdx.x % 32, slice = lane / 8;
  T acc[Rows][kColumns];
#pragma unroll
  for (int r = 0; r < Rows; ++r) {
#pragma unroll
    for (int i = 0; i < kColumns; ++i) acc[r][i] = T(0);
  }
  for (int k = slice; k < sums; k += kSlices) {
    const Quad<T> w = load_quad(matrix + static_cast<int64_t>(k) * columns + column, kColumns, true);
    T h[Rows];
#pragma unroll
    for (int r = 0; r < Rows; r += kColumns) {
      const Quad<T> part = load_quad(carry + k * Rows + r, kColumns, true);
#pragma unroll
      for (int i = 0; i < kColumns; ++i) h[r + i] = part.v[i];
    }
#pragma unroll
    for (int r = 0; r < Rows; ++r) {
#pragma unroll
      for (int i = 0; i < kColumns; ++i) acc[r][i] += h[r] * w.v[i];
    }
  }
  const bool upper = slice >= 2, odd = slice % 2;
  constexpr int kHalf = Rows / 2, kQuarter = Rows / 4;
  T half[kHalf][kColumns];
#pragma unroll
  for (int r = 0; r < kHalf; ++r) {
#pragma unroll
    for (int i = 0; i < kColumns; ++i) {
      const T mine = upper ? acc[r + kHalf][i] : acc[r][i], other = upper ? acc[r][i] : acc[r + kHalf][i];
      half[r][i] = mine + __shfl_xor_sync(0xffffffffu, other, 16);
    }
  }
#pragma unroll
  for (int r = 0; r < kQuarter; ++r) {
#pragma unroll
    for (int i = 0; i < kColumns; ++i) {
      const T mine = odd ? half[r + kQuarter][i] : half[r][i], other = odd ? half[r][i] : half[r + kQuarter][i];
      out[r].v[i] = mine + __shfl_xor_sync(0xffffffffu, other, 8);
    }
  }
}

// One block carries `Rows` rows through all T steps. blockDim.x = padded_columns(n); dynamic shared memory persistent_bytes.
template <class Step, int Rows>
__global__ void __launch_bounds__(kThreadsMax, 1) persistent(typename Step::Params p, Grid g) {
  using T = typename Step::Number;
  constexpr int kOwn = Rows / kSlices;  // rows whose elements this thread works on
  RX_DYNAMIC_SHARED(T, shared);
  const int64_t n = p.s.n, group = blockIdx.x / g.tiles, tile = blockIdx.x % g.tiles;
  const int columns = static_cast<int>(padded_columns(n)), sums = static_cast<int>(padded_sum(n));
  T* matrix = shared;
  // Two copies of the carry in turn: the one that is written is not the one being read.
  auto carry = [&](int64_t step) { return shared + (columns + (step % 2) * Rows) * sums; };
  const int lane = threadIdx.x % 32, slice = lane / 8;
  const int column = (threadIdx.x / 32) * kWarpColumns + (lane % 8) * kColumns;
  const int first_row = (slice >= 2 ? Rows / 2 : 0) + (slice % 2) * kOwn;
  fill_matrix<T, Step::kTransposed>(p.w.p + (p.w.lead ? group * n * n : 0), n, matrix);

  Kept<T> kept[kOwn];
  Place<T> place[kOwn];
  bool live[kOwn];
  auto hand_over = [&](T* to) {  // the carry of this thread's elements, for the others' products
#pragma unroll
    for (int r = 0; r < kOwn; ++r) {
#pragma unroll
      for (int i = 0; i < kColumns; ++i) {
        if (RX_BOUND(5, column + i < sums)) to[(column + i) * Rows + first_row + r] = kept[r].carry.v[i];
      }
    }
  };
#pragma unroll
  for (int r = 0; r < kOwn; ++r) {
    kept[r].carry = kept[r].state = kept[r].extra = zero_quad<T>();
    const int64_t row = tile * Rows + first_row + r;
    live[r] = RX_BOUND(6, row < g.rows) && RX_BOUND(7, column < n);
    if (!live[r]) continue;
    place[r] = Place<T>(p.s, group * g.rows + row, column, g.vec);
    Step::begin(p, place[r], kept[r]);
  }
  hand_over(carry(0));
  Quad<T> product[kOwn];
  for (int64_t step = 0; step < p.s.T; ++step) {
    const int64_t t = Step::kBackwards ? p.s.T - 1 - step : step;
    RX_BARRIER(10);  // the carry is there, and nobody reads the other copy any more
    multiply<T, Rows>(matrix, carry(step), n, column, product);
#pragma unroll
    for (int r = 0; r < kOwn; ++r) {
      if (live[r]) Step::run(p, place[r], t, product[r], kept[r]);
    }
    hand_over(carry(step + 1));
  }
  if constexpr (Step::kFinishes) {
    RX_BARRIER(11);
    multiply<T, Rows>(matrix, carry(p.s.T), n, column, product);
#pragma unroll
    for (int r = 0; r < kOwn; ++r) {
      if (live[r]) Step::finish(p, place[r], product[r], kept[r]);
    }
  }
}

// What a step keeps between launches: (rows, n) each, rows of all groups.
template <class T>
struct Scratch3 {
  T *state, *extra, *carry, *product;
};

enum class Part { Begin, Run, Finish };

// One step after its recurrent product; one thread per row and quad.
template <class Step, Part What>
__global__ void __launch_bounds__(256)
    pointwise(typename Step::Params p, Scratch3<typename Step::Number> s, int64_t t, bool vec) {
  using T = typename Step::Number;
  const int64_t quads = (p.s.n + kColumns - 1) / kColumns, i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (RX_BOUND(8, i < p.s.L * p.s.B * quads)) {
    const int64_t row = i / quads;
    const int column = static_cast<int>(i % quads) * kColumns;
    const Place<T> at(p.s, row, column, vec);
    const int64_t offset = row * p.s.n + column;
    Kept<T> kept;
    if constexpr (What == Part::Begin) {
      kept.carry = kept.state = kept.extra = zero_quad<T>();
      Step::begin(p, at, kept);
    } else {
      kept.state = load_quad(s.state + offset, at.count, vec);
      kept.extra = load_quad(s.extra + offset, at.count, vec);
      kept.carry = load_quad(s.carry + offset, at.count, vec);
      const Quad<T> product = load_quad(s.product + offset, at.count, vec);
      if constexpr (What == Part::Run) Step::run(p, at, t, product, kept);
      if constexpr (What == Part::Finish) {
        Step::finish(p, at, product, kept);
        return;
      }
    }
    store_quad(s.state + offset, kept.state, at.count, vec);
    store_quad(s.extra + offset, kept.extra, at.count, vec);
    store_quad(s.carry + offset, kept.carry, at.count, vec);
  }
}

// All steps of rules that carry nothing from unit to unit; one thread per row and quad.
template <class Step>
__global__ void __launch_bounds__(256) columns(typename Step::Params p, bool vec) {
  using T = typename Step::Number;
  const int64_t quads = (p.s.n + kColumns - 1) / kColumns, i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (RX_BOUND(9, i < p.s.L * p.s.B * quads)) {
    const Place<T> at(p.s, i / quads, static_cast<int>(i % quads) * kColumns, vec);
    Kept<T> kept;
    kept.carry = kept.state = kept.extra = zero_quad<T>();
    Step::begin(p, at, kept);
    for (int64_t step = 0; step < p.s.T; ++step) {
      Step::run(p, at, Step::kBackwards ? p.s.T - 1 - step : step, zero_quad<T>(), kept);
    }
    if constexpr (Step::kFinishes) Step::finish(p, at, zero_quad<T>(), kept);
  }
}

}  // namespace cuda
}  // namespace rx
