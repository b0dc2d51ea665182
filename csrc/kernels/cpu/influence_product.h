// Products of a Jacobian with a panel of the influence, C = A B, and on the way the sum of C's rows under a signal.
//   A (rows, k) row stride lda; B (k, width) row stride ldb, C (rows, width) row stride ldc.
// Each number of C is one sum over k in order, each number of the signal's sum one over C's rows in order: neither depends on
// how the columns are cut into panels.
#pragma once
#include "kernels/cpu/gemm.h"
#include "kernels/cpu/rows.h"

namespace rx {
namespace RX_NS {

template <class T>
constexpr int64_t influence_tile_columns() {
  return 2 * lanes<Vec<T>>();
}

// Row stride of scratch: whole tiles and cache lines, an odd number of them so that rows don't share cache sets.
template <class T>
int64_t influence_stride(int64_t width) {
  constexpr int64_t line = 64 / sizeof(T), tile = influence_tile_columns<T>(), unit = tile > line ? tile : line;
  const int64_t units = (width + unit - 1) / unit;
  return (units + 1 - units % 2) * unit;
}

// Copies rows (rows, width) into scratch, with zeros up to its stride.
template <class T>
void influence_copy(const T* from, int64_t row, int64_t rows, int64_t width, T* to, int64_t ld) {
  using V = Vec<T>;
  constexpr int64_t v = lanes<V>();
  for (int64_t i = 0; i < rows; ++i, from += row, to += ld) {
    int64_t j = 0;
    for (; j + v <= width; j += v) store<V>(to + j, load<V>(from + j));
    if (j < width) {
      store<V>(to + j, load_part(from + j, static_cast<int>(width - j)));
      j += v;
    }
    for (; j < ld; j += v) store<V>(to + j, V{});
  }
}

// Two vectors of columns; `count` of them are written (Full: all). weights (Rows), sum (a tile) or null.
template <class T, int Rows, bool Full>
inline void influence_tile(const T* a, int64_t lda, const T* b, int64_t ldb, int64_t k, T* c, int64_t ldc, int count,
                           const T* weights, T* sum) {
  using V = Vec<T>;
  constexpr int v = lanes<V>();
  V acc[Rows][2];
#pragma GCC unroll 16
  for (int r = 0; r < Rows; ++r) acc[r][0] = acc[r][1] = V{};
  for (int64_t i = 0; i < k; ++i) {
    const V b0 = load<V>(b + i * ldb), b1 = load<V>(b + i * ldb + v);
#pragma GCC unroll 16
    for (int r = 0; r < Rows; ++r) {
      const V x = splat<V>(a[r * lda + i]);
      acc[r][0] += x * b0;
      acc[r][1] += x * b1;
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < Rows; ++r) {
    if (Full || count >= v) {
      store<V>(c + r * ldc, acc[r][0]);
      if (Full || count == 2 * v) {
        store<V>(c + r * ldc + v, acc[r][1]);
      } else if (count > v) {
        store_part(c + r * ldc + v, acc[r][1], count - v);
      }
    } else {
      store_part(c + r * ldc, acc[r][0], count);
    }
  }
  if (weights == nullptr) return;
  V s0 = load<V>(sum), s1 = load<V>(sum + v);
#pragma GCC unroll 16
  for (int r = 0; r < Rows; ++r) {
    const V w = splat<V>(weights[r]);
    s0 += w * acc[r][0];
    s1 += w * acc[r][1];
  }
  store<V>(sum, s0);
  store<V>(sum + v, s1);
}

template <class T, int Rows, bool Full>
void influence_rest(int64_t rows, const T* a, int64_t lda, const T* b, int64_t ldb, int64_t k, T* c, int64_t ldc, int count,
                    const T* weights, T* sum) {
  if constexpr (Rows > 0) {
    if (rows == Rows) {
      influence_tile<T, Rows, Full>(a, lda, b, ldb, k, c, ldc, count, weights, sum);
    } else {
      influence_rest<T, Rows - 1, Full>(rows, a, lda, b, ldb, k, c, ldc, count, weights, sum);
    }
  }
}

// What is needed next, to be brought into the cache meanwhile: rows `row` numbers apart, or p null.
template <class T>
struct Ahead {
  const T* p;
  int64_t row;
  void prefetch(int64_t i, int64_t bytes) const {
    const char* at = reinterpret_cast<const char*>(p + i * row);
    for (int64_t j = 0; j < bytes; j += 64) __builtin_prefetch(at + j, 1, 2);
  }
};

template <class T, bool Full>
void influence_strip(int64_t rows, const T* a, int64_t lda, const T* b, int64_t ldb, int64_t k, T* c, int64_t ldc, int count,
                     const T* weights, T* sum, const Ahead<T>& ahead) {
  const int64_t blocks = (rows + kTileRows - 1) / kTileRows;  // of nearly equal height, as in gemm.h
  for (int64_t i = 0, r = 0; i < blocks; ++i) {
    const int64_t height = (rows - r + blocks - i - 1) / (blocks - i);
    for (int64_t j = r; ahead.p && j < r + height; ++j) ahead.prefetch(j, influence_tile_columns<T>() * sizeof(T));
    influence_rest<T, kTileRows, Full>(height, a + r * lda, lda, b, ldb, k, c + r * ldc, ldc, count,
                                       weights ? weights + r : nullptr, sum);
    r += height;
  }
}

// c (rows, width) = a (rows, k) b (k, width); b and sums, and with `room` c, have whole tiles in their rows.
// sums (width) += weights (rows) c, or weights null. ahead (rows, width).
template <class T>
void influence_product(int64_t rows, const T* a, int64_t lda, const T* b, int64_t ldb, int64_t k, int64_t width, T* c,
                       int64_t ldc, bool room, const T* weights, T* sums, Ahead<T> ahead) {
  constexpr int64_t tile = influence_tile_columns<T>();
  for (int64_t j = 0; j < width; j += tile) {
    T* sum = weights ? sums + j : nullptr;
    if (room || j + tile <= width) {
      influence_strip<T, true>(rows, a, lda, b + j, ldb, k, c + j, ldc, static_cast<int>(tile), weights, sum, ahead);
    } else {
      influence_strip<T, false>(rows, a, lda, b + j, ldb, k, c + j, ldc, static_cast<int>(width - j), weights, sum, ahead);
    }
    if (ahead.p) ahead.p += tile;
  }
}

// sums (width) += weights (rows) c (rows, width), for `Vecs` vectors of columns; Full: the last one lies in c as a whole.
template <class T, int Vecs, bool Full>
inline void weighted_sum_tile(int64_t rows, const T* weights, const T* c, int64_t ldc, int last, T* sums) {
  using V = Vec<T>;
  constexpr int v = lanes<V>();
  V acc[Vecs];
#pragma GCC unroll 8
  for (int j = 0; j < Vecs; ++j) acc[j] = load<V>(sums + j * v);
  for (int64_t i = 0; i < rows; ++i) {
    const V w = splat<V>(weights[i]);
#pragma GCC unroll 8
    for (int j = 0; j + 1 < Vecs; ++j) acc[j] += w * load<V>(c + i * ldc + j * v);
    acc[Vecs - 1] += w * read<Full, V>(c + i * ldc + (Vecs - 1) * v, last);
  }
#pragma GCC unroll 8
  for (int j = 0; j < Vecs; ++j) store<V>(sums + j * v, acc[j]);
}

constexpr int kWideVecs = 8;  // vectors of columns that loops over rows take at once

// f(vectors as a constant, whole, first column, lanes of the last vector) for columns [0, width) in pieces of up to kWideVecs.
template <class T, int Vecs, class F>
inline void wide_rest(int64_t vecs, int64_t j, int last, F&& f) {
  if constexpr (Vecs > 0) {
    if (vecs != Vecs) return wide_rest<T, Vecs - 1>(vecs, j, last, f);
    if (last == lanes<Vec<T>>()) {
      f(std::integral_constant<int, Vecs>{}, Flag<true>{}, j, last);
    } else {
      f(std::integral_constant<int, Vecs>{}, Flag<false>{}, j, last);
    }
  }
}
template <class T, class F>
inline void wide_columns(int64_t width, F&& f) {
  constexpr int64_t v = lanes<Vec<T>>();
  for (int64_t j = 0; j < width; j += kWideVecs * v) {
    const int64_t rest = width - j < kWideVecs * v ? width - j : kWideVecs * v, vecs = (rest + v - 1) / v;
    wide_rest<T, kWideVecs>(vecs, j, static_cast<int>(rest - (vecs - 1) * v), f);
  }
}

// sums, padded to whole vectors, += weights (rows) c (rows, width).
template <class T>
void weighted_sum(int64_t rows, const T* weights, const T* c, int64_t ldc, int64_t width, T* sums) {
  wide_columns<T>(width, [&](auto vecs, auto full, int64_t j, int last) {
    weighted_sum_tile<T, decltype(vecs)::value, decltype(full)::value>(rows, weights, c + j, ldc, last, sums + j);
  });
}

}  // namespace RX_NS
}  // namespace rx
