// What the four LeakyRNN kernels share on the CPU: where a tile's rows lie, its scratch, and dispatch over compile-time
// choices.
#pragma once
#include "cells/leaky.h"
#include "kernels/activation.h"
#include "kernels/cpu/gemm.h"
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

// Scratch of a tile: the carry that enters the recurrent product, the product, and two states.
template <class T>
struct Tile {
  int64_t rows, n, ld;
  T *carry, *product, *state, *extra;  // each (rows, ld)
  int64_t steps;                       // numbers from one time step to the next in a sequence
  int64_t l[kMaxRows], length[kMaxRows];
  // First number of the row in arrays (L, T, B, n), (1, T, B, n) and (L, B, n); (1, B, n) is as the second.
  int64_t full[kMaxRows], shared[kMaxRows], flat[kMaxRows];
  int64_t part[kMaxRows];  // in arrays (L, end - begin, B, n) of a piece of time
  int64_t part_steps;
  int64_t begin;

  Tile(const LeakyShape& s, RowRange range, T* scratch)
      : rows(range.end - range.begin), n(s.n), ld(scratch_stride<T>(s.n)), steps(s.B * s.n), part_steps(steps), begin(s.begin) {
    carry = scratch;
    product = carry + rows * ld;
    state = product + rows * ld;
    extra = state + rows * ld;
    for (int64_t i = 0; !s.resume && i < 4 * rows * ld; ++i) scratch[i] = 0;
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
  // Arrays of a piece of time hold this tile's rows alone: (end - begin, rows, n).
  void own_part() {
    part_steps = rows * n;
    for (int64_t r = 0; r < rows; ++r) part[r] = r * n;
  }
  // Row r at time t of a sequence, of one (L|1, B, n), of one (L|1, n); null stays null.
  const T* at(const In<T>& x, int64_t r, int64_t t) const {
    return x.p ? x.p + (x.lead ? full[r] : shared[r]) + t * steps : nullptr;
  }
  const T* batch(const In<T>& x, int64_t r) const { return x.p ? x.p + (x.lead ? flat[r] : shared[r]) : nullptr; }
  const T* unit(const In<T>& x, int64_t r) const { return x.p ? x.p + (x.lead ? l[r] * n : 0) : nullptr; }
  T* at(T* x, int64_t r, int64_t t) const { return x ? x + full[r] + t * steps : nullptr; }
  // The same in an array of one piece of time; `whole`: it is one of all steps after all.
  T* at_part(T* x, int64_t r, int64_t t, bool whole) const {
    return whole ? at(x, r, t) : x ? x + part[r] + (t - begin) * part_steps : nullptr;
  }
  const T* at_part(const In<T>& x, int64_t r, int64_t t, bool whole) const {
    return whole ? at(x, r, t) : x.p ? x.p + part[r] + (t - begin) * part_steps : nullptr;
  }
  T* batch(T* x, int64_t r) const { return x ? x + flat[r] : nullptr; }

  // Asks for the rows of step t ahead of their use, so that they arrive during the recurrent product.
  void prefetch(const In<T>& x, int64_t t) const {
    if (!x.p || t < 0) return;
    for (int64_t r = 0; r < rows; ++r) prefetch_row<0>(at(x, r, t));
  }
  void prefetch(T* x, int64_t t, bool whole = true) const {
    if (!x || t < 0) return;
    for (int64_t r = 0; r < rows; ++r) prefetch_row<1>(at_part(x, r, t, whole));
  }
  template <int Write>
  void prefetch_row(const T* p) const {
    for (int64_t j = 0; j < n; j += 64 / static_cast<int64_t>(sizeof(T))) __builtin_prefetch(p + j, Write, 3);
  }

  void copy_in(T* to, const In<T>& from) {
    for (int64_t r = 0; r < rows; ++r) {
      const T* source = batch(from, r);
      for (int64_t i = 0; source && i < n; ++i) to[r * ld + i] = source[i];
    }
  }
  void multiply(const T* packed) { gemm<T>(rows, carry, ld, packed, n, n, product, ld, true); }
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
