// Where a tile's rows lie in arrays of all rows and steps, and what loops over columns share on the CPU.
#pragma once
#include "kernels/cpu/simd.h"
#include "kernels/leaky.h"

namespace rx {
namespace RX_NS {

constexpr int64_t kMaxRows = 64;  // rows of a tile; their carry, product and state stay in L2

// Scratch row stride: whole vectors, and an odd number of cache lines so that rows don't alias in L1.
template <class T>
int64_t scratch_stride(int64_t n) {
  constexpr int64_t line = 64 / sizeof(T);
  int64_t lines = (n + line - 1) / line;
  lines += 1 - lines % 2;
  return lines * line;
}

template <class T>
struct Rows {
  int64_t rows, n;
  int64_t steps;  // numbers from one time step to the next in a sequence
  int64_t l[kMaxRows], length[kMaxRows];
  // First number of the row in arrays (L, T, B, n), (1, T, B, n) and (L, B, n); (1, B, n) is as the second.
  int64_t full[kMaxRows], shared[kMaxRows], flat[kMaxRows];
  int64_t part[kMaxRows];  // of arrays of the steps [begin, end) alone, (L, end - begin, B, n)
  int64_t part_steps, begin;

  // S: the shape of any cell.
  template <class S>
  Rows(const S& s, RowRange range)
      : rows(range.end - range.begin), n(s.n), steps(s.B * s.n), part_steps(steps), begin(s.begin) {
    for (int64_t r = 0; r < rows; ++r) {
      l[r] = (range.begin + r) / s.B;
      const int64_t b = (range.begin + r) % s.B;
      length[r] = s.lengths ? s.lengths[b] : s.T;
      full[r] = (l[r] * s.T * s.B + b) * n;
      shared[r] = b * n;
      flat[r] = (l[r] * s.B + b) * n;
      part[r] = (l[r] * (s.end - s.begin) * s.B + b) * n;
    }
  }
  // Row r at time t of a sequence with k numbers per unit, of one (L|1, B, k n), of one (L|1, k n); null stays null.
  const T* at(const In<T>& x, int64_t r, int64_t t, int64_t k = 1) const {
    return x.p ? x.p + ((x.lead ? full[r] : shared[r]) + t * steps) * k : nullptr;
  }
  T* at(T* x, int64_t r, int64_t t, int64_t k = 1) const { return x ? x + (full[r] + t * steps) * k : nullptr; }
  // Arrays of a piece of time hold this tile's rows alone, `width` numbers apart: (end - begin, rows, width).
  void own_part(int64_t width) {
    part_steps = rows * width;
    for (int64_t r = 0; r < rows; ++r) part[r] = r * width;
  }
  // Row r at time t in an array of one piece of time; `whole`: it is one of all steps after all.
  T* at_part(T* x, int64_t r, int64_t t, bool whole, int64_t k = 1) const {
    return whole ? at(x, r, t, k) : x ? x + (part[r] + (t - begin) * part_steps) * k : nullptr;
  }
  const T* at_part(const In<T>& x, int64_t r, int64_t t, bool whole, int64_t k = 1) const {
    return whole ? at(x, r, t, k) : x.p ? x.p + (part[r] + (t - begin) * part_steps) * k : nullptr;
  }
  const T* batch(const In<T>& x, int64_t r, int64_t k = 1) const {
    return x.p ? x.p + (x.lead ? flat[r] : shared[r]) * k : nullptr;
  }
  T* batch(T* x, int64_t r, int64_t k = 1) const { return x ? x + flat[r] * k : nullptr; }
  const T* unit(const In<T>& x, int64_t r, int64_t k = 1) const { return x.p ? x.p + (x.lead ? l[r] * n * k : 0) : nullptr; }

  template <int Write = 0>
  static void prefetch_row(const T* p, int64_t count) {
    for (int64_t j = 0; j < count; j += 64 / static_cast<int64_t>(sizeof(T))) __builtin_prefetch(p + j, Write, 3);
  }
};

// f(column, count, full) over a row of n in vectors; `full` is a compile-time flag of the last, partial one.
template <bool F>
struct Flag {
  static constexpr bool value = F;
};
template <class T, class F>
inline __attribute__((always_inline)) void columns(int64_t n, F&& f) {
  constexpr int64_t v = lanes<Vec<T>>();
  int64_t j = 0;
  for (; j + v <= n; j += v) f(j, static_cast<int>(v), Flag<true>{});
  if (j < n) f(j, static_cast<int>(n - j), Flag<false>{});
}

template <class T>
void zero_row(T* p, int64_t n) {
  for (int64_t i = 0; p && i < n; ++i) p[i] = 0;
}

}  // namespace RX_NS
}  // namespace rx
