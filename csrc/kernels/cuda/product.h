// A block's recurrent product: rows of the carry times the matrix, both in shared memory. Each way of multiplying says which
// columns and rows a thread works on; `Rows` rows and padded_columns(n) columns are a block's. Of each unit, the matrix takes
// `Carries` numbers and makes `Products`: those of all gates on one side, 1 on the other.
#pragma once
#include "kernels/cuda/rows.h"

namespace rx {
namespace cuda {

// Float and double: multiply-adds. A warp's lanes are 8 groups of four columns times kSlices slices of the sum.
template <class T, int Rows, int Carries, int Products>
struct Fma {
  static constexpr int kOwn = Rows / kSlices;  // rows whose elements this thread works on
  // Products of a unit that are summed at once, so that sums take at most 64 registers.
  static constexpr int kAtOnce = 256 / (Rows * kColumns * static_cast<int>(sizeof(T)));
  int64_t n;
  T* matrix;   // (Carries, sums, Products, columns), padded with zeros
  T* carries;  // two of (Carries, sums, Rows)
  int columns, sums, column, first_row;

  __device__ __forceinline__ Fma(unsigned char* shared, int64_t units) : n(units) {
    columns = static_cast<int>(padded_columns(n));
    sums = static_cast<int>(padded_sum(n));
    matrix = reinterpret_cast<T*>(shared);
    carries = matrix + static_cast<int64_t>(columns) * sums * Carries * Products;
    const int lane = threadIdx.x % 32, slice = lane / 8;
    column = (threadIdx.x / 32) * kWarpColumns + (lane % 8) * kColumns;
    first_row = (slice >= 2 ? Rows / 2 : 0) + (slice % 2) * kOwn;
  }
  // The copy of the carry that is read in this step; the other one is being written.
  __device__ __forceinline__ T* carry(int64_t step) const { return carries + (step % 2) * Rows * sums * Carries; }
  // w: (gates n, n)
  template <bool Transposed>
  __device__ __forceinline__ void fill(const T* w) const {
#pragma unroll 1
    for (int gate = 0; gate < Carries * Products; ++gate) {
      for (int64_t i = threadIdx.x; i < static_cast<int64_t>(columns) * sums; i += blockDim.x) {
        // along the rows of w in either case, so that neighbouring threads read neighbouring numbers
        const int64_t width = Transposed ? sums : columns, row = i / width, at = i % width;
        const T value = RX_BOUND(4, row < n && at < n) ? w[(gate * n + row) * n + at] : T(0);
        const int64_t from = Transposed ? at : row, to = Transposed ? row : at;
        matrix[(Products > 1 ? from * Products + gate : gate * sums + from) * columns + to] = value;
      }
    }
  }
  // The carry of this thread's elements, for the others' products of this step.
  template <class K>
  __device__ __forceinline__ void hand_over(int64_t step, const K* kept) const {
    T* to = carry(step);
#pragma unroll
    for (int r = 0; r < kOwn; ++r) {
#pragma unroll
      for (int c = 0; c < Carries; ++c) {
#pragma unroll
        for (int i = 0; i < kColumns; ++i) {
          if (RX_BOUND(5, column + i < sums)) to[(c * sums + column + i) * Rows + first_row + r] = kept[r].carry[c].v[i];
        }
      }
    }
  }
  __device__ __forceinline__ void multiply(int64_t step, Quad<T> (*out)[Products]) const { multiply_from<0>(carry(step), out); }

 private:
  // The products from `First` on.
  template <int First>
  __device__ __forceinline__ void multiply_from(const T* from, Quad<T> (*out)[Products]) const {
    constexpr int kCount = Products - First < kAtOnce ? Products - First : kAtOnce;
    multiply_some<First, kCount>(from, out);
    if constexpr (First + kCount < Products) multiply_from<First + kCount>(from, out);
  }
  // Each thread sums every kSlices-th product for all rows; lanes then exchange sums, always in the same order.
  template <int First, int Count>
  __device__ __forceinline__ void multiply_some(const T* from, Quad<T> (*out)[Products]) const {
    const int slice = threadIdx.x % 32 / 8;
    T acc[Count][Rows][kColumns];
#pragma unroll
    for (int g = 0; g < Count; ++g) {
#pragma unroll
      for (int r = 0; r < Rows; ++r) {
#pragma unroll
        for (int i = 0; i < kColumns; ++i) acc[g][r][i] = T(0);
      }
    }
    for (int k = slice; k < Carries * sums; k += kSlices) {
      Quad<T> w[Count];
#pragma unroll
      for (int g = 0; g < Count; ++g) {
        const int64_t row = static_cast<int64_t>(k) * Products + First + g;
        w[g] = load_quad(matrix + row * columns + column, kColumns, true);
      }
      T h[Rows];
#pragma unroll
      for (int r = 0; r < Rows; r += kColumns) {
        const Quad<T> part = load_quad(from + k * Rows + r, kColumns, true);
#pragma unroll
        for (int i = 0; i < kColumns; ++i) h[r + i] = part.v[i];
      }
#pragma unroll
      for (int g = 0; g < Count; ++g) {
#pragma unroll
        for (int r = 0; r < Rows; ++r) {
#pragma unroll
          for (int i = 0; i < kColumns; ++i) acc[g][r][i] += h[r] * w[g].v[i];
        }
      }
    }
#pragma unroll
    for (int g = 0; g < Count; ++g) exchange<First>(g, acc[g], out);
  }
  // Of the sums of a warp's slices, acc (Rows, kColumns) of each lane, those of this thread's rows.
  template <int First>
  __device__ __forceinline__ void exchange(int g, const T (*acc)[kColumns], Quad<T> (*out)[Products]) const {
    const int slice = threadIdx.x % 32 / 8;
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
        out[r][First + g].v[i] = mine + __shfl_xor_sync(0xffffffffu, other, 8);
      }
    }
  }
};

// Half precision: tensor cores, m16n8k16, with units for rows of A and rows of the batch for columns of B; sums in float. Units
// and sums are permuted so that a thread's four sums of one row are neighbouring columns, and so that it reads its share of A
// and of B in words of 16 bytes.
template <class E, int Carries, int Products>
struct Mma {
  static constexpr int kOwn = 2;
  static constexpr int kTile = 8 * 32;  // numbers of A in one m16n8k16, for all lanes
  int columns, stride, column, first_row;
  int64_t n;
  E* matrix;   // (warps, Carries, pairs of k-tiles, Products, 2 m-tiles, 2 k-tiles, lanes, 8)
  E* carries;  // two of (kRowsMax, stride)

  __device__ __forceinline__ Mma(unsigned char* shared, int64_t units) : n(units) {
    columns = static_cast<int>(padded_columns(n));
    stride = static_cast<int>(carry_stride(n, Carries));
    matrix = reinterpret_cast<E*>(shared);
    carries = matrix + Carries * Products * columns * columns;
    const int lane = threadIdx.x % 32;
    column = (threadIdx.x / 32) * kWarpColumns + lane / 4 * kColumns;
    first_row = lane % 4 * kOwn;
  }
  __device__ __forceinline__ E* carry(int64_t step) const { return carries + (step % 2) * kRowsMax * stride; }
  // Where a gate's weight from unit k to unit u is.
  __device__ __forceinline__ int place(int gate, int u, int k) const {
    const int warp = u / 32, g = u % 32 / 4, m = u % 4 / 2, pair = k / 32, q = k % 32 / 8, half = k % 8 / 4;
    const int pairs = (warp * Carries + (Carries > 1 ? gate : 0)) * (columns / 32) + pair;
    const int tile = ((pairs * Products + (Products > 1 ? gate : 0)) * 2 + m) * 2 + half;
    return tile * kTile + (g * 4 + q) * 8 + (k % 4 / 2 * 2 + u % 2) * 2 + k % 2;
  }
  template <bool Transposed>
  __device__ __forceinline__ void fill(const E* w) const {
#pragma unroll 1
    for (int gate = 0; gate < Carries * Products; ++gate) {
      for (int i = threadIdx.x; i < columns * columns; i += blockDim.x) {
        const int row = i / columns, at = i % columns;
        const E value = RX_BOUND(12, row < n && at < n) ? w[(gate * n + row) * n + at] : E{0};
        matrix[Transposed ? place(gate, row, at) : place(gate, at, row)] = value;
      }
    }
  }
  template <class K>
  __device__ __forceinline__ void hand_over(int64_t step, const K* kept) const {
#pragma unroll
    for (int r = 0; r < kOwn; ++r) {
#pragma unroll
      for (int c = 0; c < Carries; ++c) {
        store_quad(carry(step) + (first_row + r) * stride + c * columns + column, kept[r].carry[c], kColumns, true);
      }
    }
  }
  __device__ __forceinline__ void multiply(int64_t step, Quad<float> (*out)[Products]) const {
    const int lane = threadIdx.x % 32, pairs = Carries * columns / 32;
    const E* from = carry(step) + lane / 4 * stride + lane % 4 * 8;
    const E* a_from = matrix + threadIdx.x / 32 * pairs * Products * 4 * kTile + lane * 8;
    // Four chains of sums for each product, so that one needs not wait for the one before it.
    float acc[Products][2][2][4];
#pragma unroll
    for (int g = 0; g < Products; ++g) {
#pragma unroll
      for (int chain = 0; chain < 4; ++chain) {
#pragma unroll
        for (int i = 0; i < 4; ++i) acc[g][chain / 2][chain % 2][i] = 0;
      }
    }
    for (int pair = 0; pair < pairs; ++pair, from += 32, a_from += Products * 4 * kTile) {
      const Words<uint32_t> b = *reinterpret_cast<const Words<uint32_t>*>(from);
#pragma unroll
      for (int g = 0; g < Products; ++g) {
#pragma unroll
        for (int m = 0; m < 2; ++m) {
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            const int tile = (g * 2 + m) * 2 + half;
            const Words<uint32_t> a = *reinterpret_cast<const Words<uint32_t>*>(a_from + tile * kTile);
            mma<E>(acc[g][m][half], a.v, b.v + 2 * half);
          }
        }
      }
    }
#pragma unroll
    for (int r = 0; r < kOwn; ++r) {
#pragma unroll
      for (int g = 0; g < Products; ++g) {
#pragma unroll
        for (int i = 0; i < kColumns; ++i) {
          const int m = i / 2, d = i % 2 * 2 + r;
          out[r][g].v[i] = acc[g][m][0][d] + acc[g][m][1][d];
        }
      }
    }
  }
};

template <class E, int Rows, int Carries, int Products>
struct ProductOf {
  using Type = Fma<E, Rows, Carries, Products>;
};
template <int Rows, int Carries, int Products>
struct ProductOf<BFloat16, Rows, Carries, Products> {
  using Type = Mma<BFloat16, Carries, Products>;
};
template <int Rows, int Carries, int Products>
struct ProductOf<Float16, Rows, Carries, Products> {
  using Type = Mma<Float16, Carries, Products>;
};

}  // namespace cuda
}  // namespace rx
