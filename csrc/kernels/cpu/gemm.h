// The recurrent product, C = A B with B packed once per call and reused at every time step.
//   A (rows, K) row stride lda, C (rows, N) row stride ldc, both in scratch of this thread.
//   B packed in column panels of kPanel lanes: panel p holds (K, width) contiguously, width = 2 vectors or, for the last
//   one, 1.
#pragma once
#include "kernels/cpu/simd.h"

namespace rx {
namespace RX_NS {

#if defined(__AVX512F__)
constexpr int kTileRows = 12;  // 12 x 2 vectors of accumulators, 2 of B, broadcasts: 32 registers
#else
constexpr int kTileRows = 4;  // 4 x 2 accumulators: 16 registers
#endif

// Number of lanes of T that N columns occupy when padded to whole vectors.
template <class T>
constexpr int64_t padded(int64_t n) {
  constexpr int64_t v = lanes<Vec<T>>();
  return (n + v - 1) / v * v;
}

template <class T>
int64_t packed_size(int64_t k, int64_t n) {
  return k * padded<T>(n);
}

// b (K, N): element (k, j) at b[k * row + j * col]; out packed_size(K, N), 64-byte aligned.
template <class T>
void pack(const T* b, int64_t row, int64_t col, int64_t k, int64_t n, T* out) {
  constexpr int64_t v = lanes<Vec<T>>();
  const int64_t width_all = padded<T>(n);
  for (int64_t j0 = 0; j0 < width_all; j0 += 2 * v) {
    const int64_t width = width_all - j0 < 2 * v ? v : 2 * v;
    for (int64_t i = 0; i < k; ++i) {
      for (int64_t j = 0; j < width; ++j) {
        *out++ = j0 + j < n ? b[i * row + (j0 + j) * col] : T(0);
      }
    }
  }
}

// Each number of C is one sum over k in order, whatever the height of its block: a row's result doesn't depend on the rows it
// shares a tile with, nor on the number of threads.
template <class T, int Rows, int Vecs>
inline void gemm_tile(const T* a, int64_t lda, const T* panel, int64_t k, T* c, int64_t ldc) {
  using V = Vec<T>;
  constexpr int v = lanes<V>();
  V acc[Rows][Vecs];
#pragma GCC unroll 16
  for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 2
    for (int j = 0; j < Vecs; ++j) acc[r][j] = V{};
  }
  for (int64_t i = 0; i < k; ++i) {
    V b[Vecs];
#pragma GCC unroll 2
    for (int j = 0; j < Vecs; ++j) b[j] = load<V>(panel + (i * Vecs + j) * v);
#pragma GCC unroll 16
    for (int r = 0; r < Rows; ++r) {
      const V x = splat<V>(a[r * lda + i]);
#pragma GCC unroll 2
      for (int j = 0; j < Vecs; ++j) acc[r][j] += x * b[j];
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 2
    for (int j = 0; j < Vecs; ++j) store<V>(c + r * ldc + j * v, acc[r][j]);
  }
}

template <class T, int Rows, int Vecs>
void gemm_rest(int64_t rows, const T* a, int64_t lda, const T* panel, int64_t k, T* c, int64_t ldc) {
  if constexpr (Rows > 0) {
    if (rows == Rows) {
      gemm_tile<T, Rows, Vecs>(a, lda, panel, k, c, ldc);
    } else {
      gemm_rest<T, Rows - 1, Vecs>(rows, a, lda, panel, k, c, ldc);
    }
  }
}

template <class T, int Vecs>
void gemm_panel(int64_t rows, const T* a, int64_t lda, const T* panel, int64_t k, T* c, int64_t ldc) {
  // Blocks of nearly equal height: 32 rows as 11 + 11 + 10 rather than 12 + 12 + 8.
  const int64_t blocks = (rows + kTileRows - 1) / kTileRows;
  for (int64_t i = 0, r = 0; i < blocks; ++i) {
    const int64_t height = (rows - r + blocks - i - 1) / (blocks - i);
    gemm_rest<T, kTileRows, Vecs>(height, a + r * lda, lda, panel, k, c + r * ldc, ldc);
    r += height;
  }
}

// c (rows, padded N) = a (rows, K) times packed (K, N).
template <class T>
void gemm(int64_t rows, const T* a, int64_t lda, const T* packed, int64_t k, int64_t n, T* c, int64_t ldc) {
  constexpr int64_t v = lanes<Vec<T>>();
  const int64_t width_all = padded<T>(n);
  for (int64_t j0 = 0; j0 < width_all; j0 += 2 * v) {
    if (width_all - j0 < 2 * v) {
      gemm_panel<T, 1>(rows, a, lda, packed, k, c + j0, ldc);
    } else {
      gemm_panel<T, 2>(rows, a, lda, packed, k, c + j0, ldc);
      packed += 2 * v * k;
    }
  }
}

}  // namespace RX_NS
}  // namespace rx
