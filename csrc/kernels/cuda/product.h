// A block's recurrent product: rows of the carry times the matrix, both in shared memory. Each way of multiplying says which
// columns and rows a thread works on; `Rows` rows and padded_columns(n) columns are a block's.
#pragma once
#include "kernels/cuda/rows.h"

namespace rx {
namespace cuda {

// Float and double: multiply-adds. A warp's lanes are 8 groups of four columns times kSlices slices of the sum.
template <class T, int Rows>
struct Fma {
  static constexpr int kOwn = Rows / kSlices;  // rows whose elements this thread works on
  int64_t n;
  T* matrix;   // (sums, columns), padded with zeros
  T* carries;  // two of (sums, Rows)
  int columns, sums, column, first_row;

  __device__ __forceinline__ Fma(unsigned char* shared, int64_t units) : n(units) {
    columns = static_cast<int>(padded_columns(n));
    sums = static_cast<int>(padded_sum(n));
    matrix = reinterpret_cast<T*>(shared);
    carries = matrix + static_cast<int64_t>(columns) * sums;
    const int lane = threadIdx.x % 32, slice = lane / 8;
    column = (threadIdx.x / 32) * kWarpColumns + (lane % 8) * kColumns;
    first_row = (slice >= 2 ? Rows / 2 : 0) + (slice % 2) * kOwn;
  }
  // The copy of the carry that is read in this step; the other one is being written.
  __device__ __forceinline__ T* carry(int64_t step) const { return carries + (step % 2) * Rows * sums; }
  template <bool Transposed>
  __device__ __forceinline__ void fill(const T* w) const {
    for (int64_t i = threadIdx.x; i < static_cast<int64_t>(columns) * sums; i += blockDim.x) {
      // along the rows of w in either case, so that neighbouring threads read neighbouring numbers
      const int64_t width = Transposed ? sums : columns, row = i / width, at = i % width;
      const T value = RX_BOUND(4, row < n && at < n) ? w[row * n + at] : T(0);
      matrix[Transposed ? at * columns + row : i] = value;
    }
  }
  // The carry of this thread's elements, for the others' products of this step.
  __device__ __forceinline__ void hand_over(int64_t step, const Kept<T>* kept) const {
    T* to = carry(step);
#pragma unroll
    for (int r = 0; r < kOwn; ++r) {
#pragma unroll
      for (int i = 0; i < kColumns; ++i) {
        if (RX_BOUND(5, column + i < sums)) to[(column + i) * Rows + first_row + r] = kept[r].carry.v[i];
      }
    }
  }
  // Each thread sums every kSlices-th product for all rows; lanes then exchange sums, always in the same order.
  __device__ __forceinline__ void multiply(int64_t step, Quad<T>* out) const {
    const T* from = carry(step);
    const int slice = threadIdx.x % 32 / 8;
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
        const Quad<T> part = load_quad(from + k * Rows + r, kColumns, true);
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
};

// Half precision: tensor cores, m16n8k16, with units for rows of A and rows of the batch for columns of B; sums in float. Units
// and sums are permuted so that a thread's four sums of one row are neighbouring columns, and so that it reads its share of A
// and of B in words of 16 bytes.
template <class E>
struct Mma {
  static constexpr int kOwn = 2;
  static constexpr int kTile = 8 * 32;  // numbers of A in one m16n8k16, for all lanes
  int columns, stride, column, first_row;
  int64_t n;
  E* matrix;   // (warps, pairs of k-tiles, 2 m-tiles, 2 k-tiles, lanes, 8)
  E* carries;  // two of (kRowsMax, stride)

  __device__ __forceinline__ Mma(unsigned char* shared, int64_t units) : n(units) {
    columns = static_cast<int>(padded_columns(n));
    stride = static_cast<int>(carry_stride(n));
    matrix = reinterpret_cast<E*>(shared);
    carries = matrix + columns * columns;
    const int lane = threadIdx.x % 32;
    column = (threadIdx.x / 32) * kWarpColumns + lane / 4 * kColumns;
    first_row = lane % 4 * kOwn;
  }
  __device__ __forceinline__ E* carry(int64_t step) const { return carries + (step % 2) * kRowsMax * stride; }
  // Where the weight from unit k to unit u is.
  __device__ __forceinline__ int place(int u, int k) const {
    const int warp = u / 32, g = u % 32 / 4, m = u % 4 / 2, pair = k / 32, q = k % 32 / 8, half = k % 8 / 4;
    const int tile = ((warp * (columns / 32) + pair) * 2 + m) * 2 + half;
    return tile * kTile + (g * 4 + q) * 8 + (k % 4 / 2 * 2 + u % 2) * 2 + k % 2;
  }
  template <bool Transposed>
  __device__ __forceinline__ void fill(const E* w) const {
    for (int i = threadIdx.x; i < columns * columns; i += blockDim.x) {
      const int row = i / columns, at = i % columns;
      const E value = RX_BOUND(12, row < n && at < n) ? w[row * n + at] : E{0};
      matrix[Transposed ? place(row, at) : place(at, row)] = value;
    }
  }
  __device__ __forceinline__ void hand_over(int64_t step, const Kept<float>* kept) const {
#pragma unroll
    for (int r = 0; r < kOwn; ++r) {
      store_quad(carry(step) + (first_row + r) * stride + column, kept[r].carry, kColumns, true);
    }
  }
  __device__ __forceinline__ void multiply(int64_t step, Quad<float>* out) const {
    const int lane = threadIdx.x % 32, pairs = columns / 32;
    const E* from = carry(step) + lane / 4 * stride + lane % 4 * 8;
    const E* a_from = matrix + threadIdx.x / 32 * pairs * 4 * kTile + lane * 8;
    // Four chains of sums, so that a product needs not wait for the one before it.
    float acc[2][2][4];
#pragma unroll
    for (int m = 0; m < 2; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
#pragma unroll
        for (int i = 0; i < 4; ++i) acc[m][half][i] = 0;
      }
    }
    for (int pair = 0; pair < pairs; ++pair) {
      const Words<uint32_t> b = *reinterpret_cast<const Words<uint32_t>*>(from + pair * 32);
#pragma unroll
      for (int m = 0; m < 2; ++m) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const Words<uint32_t> a = *reinterpret_cast<const Words<uint32_t>*>(a_from + ((pair * 2 + m) * 2 + half) * kTile);
          mma<E>(acc[m][half], a.v, b.v + 2 * half);
        }
      }
    }
#pragma unroll
    for (int r = 0; r < kOwn; ++r) {
#pragma unroll
      for (int i = 0; i < kColumns; ++i) {
        const int m = i / 2, d = i % 2 * 2 + r;
        out[r].v[i] = acc[m][0][d] + acc[m][1][d];
      }
    }
  }
};

template <class E, int Rows>
struct ProductOf {
  using Type = Fma<E, Rows>;
};
template <int Rows>
struct ProductOf<BFloat16, Rows> {
  using Type = Mma<BFloat16>;
};
template <int Rows>
struct ProductOf<Float16, Rows> {
  using Type = Mma<Float16>;
};

}  // namespace cuda
}  // namespace rx
