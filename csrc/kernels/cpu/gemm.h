// Products with a matrix that is packed once per call, C = A B: the recurrent product of every time step, and the products of
// a layer with its input matrix. The gradient of the matrix, A^T B, is in outer.h.
//   A (rows, K) row stride lda, C (rows, N) row stride ldc.
//   B packed in column panels: panel p holds (K, width) contiguously, width = 2 vectors or, for the last one, 1.
#pragma once
#include "kernels/cpu/simd.h"

namespace rx {
namespace RX_NS {

#if defined(__AVX512F__)
constexpr int kTileRows = 12;  // 12 x 2 vectors of accumulators, 2 of B, broadcasts: 32 registers
#elif defined(__AVX2__)
constexpr int kTileRows = 6;  // 6 x 2 accumulators, 2 of B, 1 broadcast: 16 registers
#else
constexpr int kTileRows = 4;  // without fused multiply-adds a product needs a register, too
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

template <class T>
int64_t panel_count(int64_t n) {
  constexpr int64_t width = 2 * lanes<Vec<T>>();
  return (n + width - 1) / width;
}

// Panels [begin, end) of b (K, N), element (i, j) at b[i * row + j * col]; out packed_size(K, N), 64-byte aligned.
template <class T>
void pack(const T* b, int64_t row, int64_t col, int64_t k, int64_t n, int64_t begin, int64_t end, T* out) {
  constexpr int64_t v = lanes<Vec<T>>();
  const int64_t width_all = padded<T>(n);
  for (int64_t panel = begin; panel < end; ++panel) {
    const int64_t j0 = panel * 2 * v, width = width_all - j0 < 2 * v ? v : 2 * v;
    T* to = out + j0 * k;
    const int64_t inside = n - j0 < width ? n - j0 : width;
    if (col == 1) {
      for (int64_t i = 0; i < k; ++i) {
        for (int64_t j = 0; j < inside; ++j) to[i * width + j] = b[i * row + j0 + j];
      }
    } else {  // transposed: along its rows
      for (int64_t j = 0; j < inside; ++j) {
        for (int64_t i = 0; i < k; ++i) to[i * width + j] = b[i * row + (j0 + j) * col];
      }
    }
    for (int64_t j = inside; j < width; ++j) {
      for (int64_t i = 0; i < k; ++i) to[i * width + j] = T(0);
    }
  }
}

// Each number of C is one sum over k in order, whatever the height of its block: a row's result doesn't depend on the rows it
// shares a tile with, nor on the number of threads. `last` is how many lanes of the last vector lie in C; Full: all of them.
template <class T, int Rows, int Vecs, bool Full>
inline void gemm_tile(const T* a, int64_t lda, const T* panel, int64_t k, T* c, int64_t ldc, int last) {
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
    for (int j = 0; j + 1 < Vecs; ++j) store<V>(c + r * ldc + j * v, acc[r][j]);
    write<Full, V>(c + r * ldc + (Vecs - 1) * v, acc[r][Vecs - 1], last);
  }
}

template <class T, int Rows, int Vecs, bool Full>
void gemm_rest(int64_t rows, const T* a, int64_t lda, const T* panel, int64_t k, T* c, int64_t ldc, int last) {
  if constexpr (Rows > 0) {
    if (rows == Rows) {
      gemm_tile<T, Rows, Vecs, Full>(a, lda, panel, k, c, ldc, last);
    } else {
      gemm_rest<T, Rows - 1, Vecs, Full>(rows, a, lda, panel, k, c, ldc, last);
    }
  }
}

template <class T, int Vecs, bool Full>
void gemm_panel(int64_t rows, const T* a, int64_t lda, const T* panel, int64_t k, T* c, int64_t ldc, int last = 0) {
  // Blocks of nearly equal height: 32 rows as 11 + 11 + 10 rather than 12 + 12 + 8.
  const int64_t blocks = (rows + kTileRows - 1) / kTileRows;
  for (int64_t i = 0, r = 0; i < blocks; ++i) {
    const int64_t height = (rows - r + blocks - i - 1) / (blocks - i);
    gemm_rest<T, kTileRows, Vecs, Full>(height, a + r * lda, lda, panel, k, c + r * ldc, ldc, last);
    r += height;
  }
}

// c (rows, N) = a (rows, K) times packed (K, N). With `room`, rows of c have padded<T>(N) numbers and the rest may be written.
template <class T>
void gemm(int64_t rows, const T* a, int64_t lda, const T* packed, int64_t k, int64_t n, T* c, int64_t ldc, bool room) {
  constexpr int64_t v = lanes<Vec<T>>();
  const int64_t end = room ? padded<T>(n) : n;
  for (int64_t j = 0; j < n; j += 2 * v) {
    if (j + 2 * v <= end) {
      gemm_panel<T, 2, true>(rows, a, lda, packed, k, c + j, ldc);
    } else if (j + v < n) {
      gemm_panel<T, 2, false>(rows, a, lda, packed, k, c + j, ldc, static_cast<int>(n - j - v));
    } else if (j + v <= end) {
      gemm_panel<T, 1, true>(rows, a, lda, packed, k, c + j, ldc);
    } else {
      gemm_panel<T, 1, false>(rows, a, lda, packed, k, c + j, ldc, static_cast<int>(n - j));
    }
    packed += 2 * v * k;
  }
}

}  // namespace RX_NS
}  // namespace rx
