// The gradient of a matrix, C += A^T B summed over rows. Both factors are read along their rows, so that they need no packing
// unless rows lie so far apart that they share cache sets.
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
constexpr int64_t kOuterFar = 2048;   // bytes between rows from which on both factors are copied together

// A or B as a tile reads it: `step` from one time step to the next, `row` within it.
template <class T>
struct Strip {
  const T* p;
  int64_t row, step;
};

template <class T, int Rows, int Vecs>
inline void outer_tile(const Outer<T>& p, const Strip<T>& a, const Strip<T>& b, T* c) {
  using V = Vec<T>;
  constexpr int v = lanes<V>();
  V acc[Rows][Vecs];
#pragma GCC unroll 16
  for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 4
    for (int j = 0; j < Vecs; ++j) acc[r][j] = load<V>(c + r * p.ldc + j * v);
  }
  const int64_t a_row = a.row, b_row = b.row;
  for (int64_t s = 0; s < p.steps; ++s) {
    const T *x = a.p + s * a.step, *y = b.p + s * b.step;
    for (int64_t i = 0; i < p.rows; ++i, x += a_row, y += b_row) {
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
void outer_rest(int64_t height, const Outer<T>& p, const Strip<T>& a, const Strip<T>& b, T* c) {
  if constexpr (Rows > 0) {
    if (height == Rows) {
      outer_tile<T, Rows, Vecs>(p, a, b, c);
    } else {
      outer_rest<T, Rows - 1, Vecs>(height, p, a, b, c);
    }
  }
}

// f(first, height): the rows of C in tiles of nearly equal height.
template <class T, class F>
inline void outer_heights(const Outer<T>& p, int tall, F&& f) {
  const int64_t blocks = (p.end - p.begin + tall - 1) / tall;
  for (int64_t i = 0, r = p.begin; i < blocks; ++i) {
    const int64_t height = (p.end - r + blocks - i - 1) / (blocks - i);
    f(r, height);
    r += height;
  }
}

// Columns [j, j + Vecs vectors) of C. `left`: A copied tile by tile (outer_copy), or null.
template <class T, int Vecs>
void outer_strip(const Outer<T>& p, const T* left, int64_t j, const Strip<T>& b) {
  constexpr int tall = outer_rows(Vecs);
  const int64_t all = p.steps * p.rows;
  outer_heights(p, tall, [&](int64_t r, int64_t height) {
    const Strip<T> a =
        left ? Strip<T>{left + (r - p.begin) * all, height, p.rows * height} : Strip<T>{p.a + r, p.lda, p.a_step};
    outer_rest<T, tall, Vecs>(height, p, a, b, p.c + r * p.ldc + j);
  });
}

template <class T, int Vecs>
void outer_narrow(int64_t vecs, const Outer<T>& p, int64_t j, const Strip<T>& b) {
  if constexpr (Vecs > 0) {
    if (vecs == Vecs) {
      outer_strip<T, Vecs>(p, nullptr, j, b);
    } else {
      outer_narrow<T, Vecs - 1>(vecs, p, j, b);
    }
  }
}

// `count` columns of a factor from column j on, together and padded with zeros to `width`.
template <class T>
Strip<T> outer_copy(const Outer<T>& p, const T* from, int64_t row, int64_t step, int64_t j, int64_t count, int64_t width,
                    T* to) {
  T* out = to;
  for (int64_t s = 0; s < p.steps; ++s) {
    for (int64_t i = 0; i < p.rows; ++i, out += width) {
      const T* x = from + s * step + i * row + j;
      for (int64_t k = 0; k < count; ++k) out[k] = x[k];
      for (int64_t k = count; k < width; ++k) out[k] = T(0);
    }
  }
  return {to, width, p.rows * width};
}

template <class T>
void outer_block(const Outer<T>& p, T* scratch) {
  constexpr int64_t v = lanes<Vec<T>>(), wide = kOuterVecs * v;
  const bool far = p.ldb * static_cast<int64_t>(sizeof(T)) >= kOuterFar;
  T* left = nullptr;
  if (far && p.N >= 2 * wide) {
    left = scratch + kOuterBlock * wide;
    outer_heights(p, outer_rows(kOuterVecs), [&](int64_t r, int64_t height) {
      outer_copy(p, p.a, p.lda, p.a_step, r, height, height, left + (r - p.begin) * p.steps * p.rows);
    });
  }
  int64_t j = 0;
  for (; j + wide <= p.N; j += wide) {
    const Strip<T> b = left ? outer_copy(p, p.b, p.ldb, p.b_step, j, wide, wide, scratch) : Strip<T>{p.b + j, p.ldb, p.b_step};
    outer_strip<T, kOuterVecs>(p, left, j, b);
  }
  if (j == p.N) return;
  // The last columns in whole vectors, so that no load crosses the end of B.
  const int64_t rest = p.N - j, vecs = (rest + v - 1) / v;
  const bool exact = rest == vecs * v;
  outer_narrow<T, kOuterVecs>(
      vecs, p, j, exact ? Strip<T>{p.b + j, p.ldb, p.b_step} : outer_copy(p, p.b, p.ldb, p.b_step, j, rest, vecs * v, scratch));
}

template <class T>
void outer(const Outer<T>& whole, T* scratch) {
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
      outer_block(block, scratch);
    }
  }
}

template <class T>
int64_t outer_stride(int64_t n) {
  return padded<T>(n);
}
template <class T>
int64_t outer_scratch(int64_t m) {
  return kOuterBlock * (kOuterVecs * lanes<Vec<T>>() + m);
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
