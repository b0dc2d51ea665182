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
  using Rows<T>::at_part;
  using Rows<T>::batch;
  int64_t ld;
  T *carry, *product, *state, *extra;  // each (rows, ld)

  Tile(const LeakyShape& s, RowRange range, T* scratch) : Rows<T>(s, range), ld(scratch_stride<T>(s.n)) {
    carry = scratch;
    product = carry + rows * ld;
    state = product + rows * ld;
    extra = state + rows * ld;
    for (int64_t i = 0; !s.resume && i < 4 * rows * ld; ++i) scratch[i] = 0;
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
