// What the kernels of gated cells share on the CPU: where a tile's rows lie, and steps through time.
#pragma once
#include "kernels/cpu/leaky_rows.h"
#include "kernels/gated.h"
#include "kernels/gated_cells.h"

namespace rx {
namespace RX_NS {

// Numbers between rows of `wide` values of a unit; room for the vector that begins with the last ones.
template <class T>
int64_t gated_stride(int64_t n, int64_t wide) {
  return scratch_stride<T>(wide * n + lanes<Vec<T>>());
}

// The state of row r before step t, or its tangent: the first one, else what `aux` (LSTM) or `y` (GRU) keeps of the last step.
template <class Cell, class T>
const T* state_before(const Rows<T>& at, const In<T>& first, const In<T>& aux, const In<T>& y, int64_t r, int64_t t) {
  if (t == 0) return at.batch(first, r);
  if (Cell::kOwnState) return at.at(aux, r, t - 1, Cell::kAux) + (Cell::kAux - 1) * at.n;
  return at.at(y, r, t - 1);
}

// A row of `p` in the columns from j, zeros where it is null.
template <bool F, class V>
RX_FN V read_or_zero(const typename Lane<V>::type* p, int64_t j, int count) {
  return p ? read<F, V>(p + j, count) : V{};
}

// Steps through time of a tile, from the first to the last: a product of the carry (n) with W for all gates, then `step(r, t,
// product, carry, state)` for each row in time, which leaves the row's carry and state. Their first values are h0 and, of
// LSTM, c0; the last ones go to h_n and c_n.
template <class T, class Cell, class P, class Rest, class Step>
inline __attribute__((always_inline)) void gated_steps(const P& p, const Rows<T>& at, const T* packed, T* scratch, In<T> h0,
                                                       In<T> c0, T* h_n, T* c_n, Rest&& rest, Step&& step) {
  const int64_t n = at.n, ld = gated_stride<T>(n, 1), wide = gated_stride<T>(n, Cell::kGates);
  T* carry = scratch;                 // (rows, ld): h
  T* state = carry + at.rows * ld;    // (rows, ld): GRU h, LSTM c
  T* product = state + at.rows * ld;  // (rows, wide)
  for (int64_t r = 0; !p.s.resume && r < at.rows; ++r) {
    const T *h = at.batch(h0, r), *c = Cell::kOwnState ? at.batch(c0, r) : h;
    for (int64_t j = 0; j < ld; ++j) {
      carry[r * ld + j] = h && j < n ? h[j] : T(0);
      state[r * ld + j] = c && j < n ? c[j] : T(0);
    }
  }
  for (int64_t t = p.s.begin; t < p.s.end; ++t) {
    for (int64_t r = 0; r < at.rows; ++r) at.prefetch_row(at.at(p.aux, r, t, Cell::kAux), Cell::kAux * n);
    gemm<T>(at.rows, carry, ld, packed, n, Cell::kGates * n, product, wide, true);
    for (int64_t r = 0; r < at.rows; ++r) {
      if (t >= at.length[r]) {
        rest(r, t);
        continue;
      }
      step(r, t, product + r * wide, carry + r * ld, state + r * ld);
      if (t < at.length[r] - 1) continue;
      T *h = at.batch(h_n, r), *c = at.batch(c_n, r);
      for (int64_t j = 0; j < n; ++j) h[j] = carry[r * ld + j];
      for (int64_t j = 0; c && j < n; ++j) c[j] = state[r * ld + j];
    }
  }
}

}  // namespace RX_NS
}  // namespace rx
