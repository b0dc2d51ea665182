// The gradient of a matrix, C += A^T B summed over rows: no packing, since both factors are read along their rows.
#pragma once
#include <algorithm>

#include "kernels/cpu/gemm.h"
#include "kernels/leaky.h"

namespace rx {
namespace RX_NS {

#if defined(__AVX512F__)
constexpr int kOuterVecs = 4, kOuterSums = 24;  // 24 accumulators, 4 vectors of B, broadcasts: 32 registers
#elif defined(__AVX2__)
constexpr int kOuterVecs = 2, kOuterSums = 12;
#else
constexpr int kOuterVecs = 2, kOuterSums = 8;
#endif
// Rows of C in a tile of so many vectors: narrow ones are tall, to have sums enough in flight.
constexpr int outer_rows(int vecs) {
  return vecs == 1 ? kOuterSums / 2 : kOuterSums / vecs;
}
constexpr int64_t kOuterBlock = 128;  // rows in a block: its strip of B stays in L1

template <class T, int Rows, int Vecs>
inline void outer_tile(const Outer<T>& p, const T* a, const T* b, int64_t ldb, int64_t b_step, T* c) {
  using V = Vec<T>;
  constexpr int v = lanes<V>();
  V acc[Rows][Vecs];
#pragma GCC unroll 16
  for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 4
    for (int j = 0; j < Vecs; ++j) acc[r][j] = load<V>(c + r * p.ldc + j * v);
  }
  for (int64_t s = 0; s < p.steps; ++s, a += p.a_step, b += b_step) {
    const T *x = a, *y = b;
    for (int64_t i = 0; i < p.rows; ++i, x += p.lda, y += ldb) {
      V row[Vecs];
#pragma GCC unroll 4
      for (int j = 0; j < Vecs; ++j) row[j] = load<V>(y + j * v);
#pragma GCC unroll 16
      for (int r = 0; r < Rows; ++r) {
        const V z = splat<V>(x[r]);
#pragma GCC unroll 4
        for (int j = 0; j < Vecs; ++j) acc[r][j] += z * row[j];
      }
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 4
    for (int j = 0; j < Vecs; ++j) store<V>(c + r * p.ldc + j * v, acc[r][j]);
  }
}

template <class T, int Rows, int Vecs>
void outer_rest(int64_t height, const Outer<T>& p, const T* a, const T* b, int64_t ldb, int64_t b_step, T* c) {
  if constexpr (Rows > 0) {
    if (height == Rows) {
      outer_tile<T, Rows, Vecs>(p, a, b, ldb, b_step, c);
    } else {
      outer_rest<T, Rows - 1, Vecs>(height, p, a, b, ldb, b_step, c);
    }
  }
}

// Columns [j, j + Vecs vectors) of C.
template <class T, int Vecs>
void outer_strip(const Outer<T>& p, int64_t j, const T* b, int64_t ldb, int64_t b_step) {
  constexpr int tall = outer_rows(Vecs);
  const int64_t blocks = (p.end - p.begin + tall - 1) / tall;
  for (int64_t i = 0, r = p.begin; i < blocks; ++i) {
    const int64_t height = (p.end - r + blocks - i - 1) / (blocks - i);
    outer_rest<T, tall, Vecs>(height, p, p.a + r, b, ldb, b_step, p.c + r * p.ldc + j);
    r += height;
  }
}

template <class T, int Vecs>
void outer_narrow(int64_t vecs, const Outer<T>& p, int64_t j, const T* b, int64_t ldb, int64_t b_step) {
  if constexpr (Vecs > 0) {
    if (vecs == Vecs) {
      outer_strip<T, Vecs>(p, j, b, ldb, b_step);
    } else {
      outer_narrow<T, Vecs - 1>(vecs, p, j, b, ldb, b_step);
    }
  }
}

template <class T>
void outer_block(const Outer<T>& p, T* tail) {
  constexpr int64_t v = lanes<Vec<T>>();
  int64_t j = 0;
  for (; j + kOuterVecs * v <= p.N; j += kOuterVecs * v) outer_strip<T, kOuterVecs>(p, j, p.b + j, p.ldb, p.b_step);
  if (j == p.N) return;
  const int64_t left = p.N - j, vecs = (left + v - 1) / v, width = vecs * v;
  if (left == width) return outer_narrow<T, kOuterVecs - 1>(vecs, p, j, p.b + j, p.ldb, p.b_step);
  // The last columns in whole vectors padded with zeros, so that no load crosses the end of B.
  for (int64_t s = 0, row = 0; s < p.steps; ++s) {
    for (int64_t i = 0; i < p.rows; ++i, ++row) {
      const T* from = p.b + s * p.b_step + i * p.ldb + j;
      T* to = tail + row * width;
      for (int64_t k = 0; k < left; ++k) to[k] = from[k];
      for (int64_t k = left; k < width; ++k) to[k] = T(0);
    }
  }
  outer_narrow<T, kOuterVecs>(vecs, p, j, tail, width, p.rows * width);
}

template <class T>
void outer(const Outer<T>& whole, T* tail) {
  Outer<T> p = whole;
  if (p.a_step == p.rows * p.lda && p.b_step == p.rows * p.ldb) {  // one run of rows
    p.rows *= p.steps;
    p.steps = 1;
  }
  const int64_t rows = std::min(p.rows, kOuterBlock), steps = std::max<int64_t>(1, kOuterBlock / rows);
  for (int64_t s = 0; s < p.steps; s += steps) {
    for (int64_t i = 0; i < p.rows; i += rows) {
      Outer<T> block = p;
      block.steps = std::min(steps, p.steps - s);
      block.rows = std::min(rows, p.rows - i);
      block.a = p.a + s * p.a_step + i * p.lda;
      block.b = p.b + s * p.b_step + i * p.ldb;
      outer_block(block, tail);
    }
  }
}

template <class T>
int64_t outer_stride(int64_t n) {
  return padded<T>(n);
}
template <class T>
int64_t outer_tail() {
  return kOuterBlock * kOuterVecs * lanes<Vec<T>>();
}

// C (steps, rows, N) = A B, in as long runs of rows as there are.
template <class T>
void product(const Product<T>& p) {
  if (p.a_step == p.rows * p.lda && p.c_step == p.rows * p.ldc) {
    gemm<T>(p.steps * p.rows, p.a, p.lda, p.packed, p.K, p.N, p.c, p.ldc, false);
  } else if (2 * p.rows >= kTileRows || p.rows >= p.steps) {
    for (int64_t s = 0; s < p.steps; ++s) {
      gemm<T>(p.rows, p.a + s * p.a_step, p.lda, p.packed, p.K, p.N, p.c + s * p.c_step, p.ldc, false);
    }
  } else {
    for (int64_t i = 0; i < p.rows; ++i) {
      gemm<T>(p.steps, p.a + i * p.lda, p.a_step, p.packed, p.K, p.N, p.c + i * p.ldc, p.c_step, false);
    }
  }
}

}  // namespace RX_NS
}  // namespace rx
