// What the four LeakyRNN kernels share on the CPU: where a tile's rows lie, its scratch, and dispatch over compile-time
// choices.
#pragma once
#include "cells/leaky.h"
#include "kernels/activation.h"
#include "kernels/cpu/gemm.h"
#include "kernels/cpu/rows.h"
#include "kernels/leaky.h"

namespace rx {
namespace RX_NS {

// Scratch of a tile: the carry that enters the recurrent product, the product, and two states.
template <class T>
struct Tile : Rows<T> {
  using Rows<T>::rows;
  using Rows<T>::n;
  using Rows<T>::steps;
  using Rows<T>::l;
  using Rows<T>::full;
  using Rows<T>::at;
  using Rows<T>::batch;
  int64_t ld;
  T *carry, *product, *state, *extra;  // each (rows, ld)
  int64_t part[kMaxRows];              // in arrays (L, end - begin, B, n) of a piece of time
  int64_t part_steps;
  int64_t begin;

  Tile(const LeakyShape& s, RowRange range, T* scratch)
      : Rows<T>(s, range), ld(scratch_stride<T>(s.n)), part_steps(steps), begin(s.begin) {
    carry = scratch;
    product = carry + rows * ld;
    state = product + rows * ld;
    extra = state + rows * ld;
    for (int64_t i = 0; !s.resume && i < 4 * rows * ld; ++i) scratch[i] = 0;
    for (int64_t r = 0; r < rows; ++r) part[r] = (l[r] * (s.end - s.begin) * s.B + (range.begin + r) % s.B) * n;
  }
  // Arrays of a piece of time hold this tile's rows alone: (end - begin, rows, n).
  void own_part() {
    part_steps = rows * n;
    for (int64_t r = 0; r < rows; ++r) part[r] = r * n;
  }
  // Row r at time t in an array of one piece of time; `whole`: it is one of all steps after all.
  T* at_part(T* x, int64_t r, int64_t t, bool whole) const {
    return whole ? at(x, r, t) : x ? x + part[r] + (t - begin) * part_steps : nullptr;
  }
  const T* at_part(const In<T>& x, int64_t r, int64_t t, bool whole) const {
    return whole ? at(x, r, t) : x.p ? x.p + part[r] + (t - begin) * part_steps : nullptr;
  }
  // Asks for the rows of step t ahead of their use, so that they arrive during the recurrent product.
  void prefetch(const In<T>& x, int64_t t) const {
    if (!x.p || t < 0) return;
    for (int64_t r = 0; r < rows; ++r) this->prefetch_row(at(x, r, t), n);
  }
  void prefetch(T* x, int64_t t, bool whole = true) const {
    if (!x || t < 0) return;
    for (int64_t r = 0; r < rows; ++r) this->template prefetch_row<1>(at_part(x, r, t, whole), n);
  }
  void copy_in(T* to, const In<T>& from) {
    for (int64_t r = 0; r < rows; ++r) {
      const T* source = batch(from, r);
      for (int64_t i = 0; source && i < n; ++i) to[r * ld + i] = source[i];
    }
  }
  void multiply(const T* packed) { gemm<T>(rows, carry, ld, packed, n, n, product, ld, true); }
};

}  // namespace RX_NS
}  // namespace rx
