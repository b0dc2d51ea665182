// Forward pass of a gated cell, a tile of rows through all T steps.
#pragma once
#include "kernels/cpu/gated_rows.h"

namespace rx {
namespace RX_NS {

template <class T, class Cell>
void gated_forward_run(const GatedForward<T>& p, RowRange range, const T* packed, T* scratch) {
  using V = Vec<T>;
  constexpr int G = Cell::kGates, A = Cell::kAux;
  const GatedRows<T> at(p.s, range);
  const int64_t n = at.n, ld = gated_stride<T>(n, 1), wide = gated_stride<T>(n, G);
  T* carry = scratch;                 // (rows, ld): h
  T* state = carry + at.rows * ld;    // (rows, ld): GRU h, LSTM c
  T* product = state + at.rows * ld;  // (rows, wide)
  for (int64_t r = 0; r < at.rows; ++r) {
    const T *h = at.batch(p.h0, r), *c = p.c0.p ? at.batch(p.c0, r) : h;
    for (int64_t j = 0; j < ld; ++j) {
      carry[r * ld + j] = j < n ? h[j] : T(0);
      state[r * ld + j] = j < n ? c[j] : T(0);
    }
  }
  for (int64_t t = 0; t < p.s.T; ++t) {
    for (int64_t r = 0; r < at.rows; ++r) at.prefetch(at.at(p.pre, r, t, G), G * n);
    gemm<T>(at.rows, carry, ld, packed, n, G * n, product, wide, true);
    for (int64_t r = 0; r < at.rows; ++r) {
      T *y = at.at(p.y, r, t), *aux = at.at(p.aux, r, t, A);
      if (t >= at.length[r]) {
        zero_row(y, n);
        zero_row(aux, A * n);
        continue;
      }
      const T *pre = at.at(p.pre, r, t, G), *bias = at.unit(p.bias, r), *moved = product + r * wide;
      columns<T>(n, [&](int64_t j, int count, auto full) __attribute__((always_inline)) {
        constexpr bool F = decltype(full)::value;
        V u[G], m[G], kept[A];
        for (int g = 0; g < G; ++g) {
          u[g] = read<F, V>(pre + g * n + j, count);
          m[g] = load<V>(moved + g * n + j);
        }
        V s = load<V>(state + r * ld + j);
        const V out = Cell::forward(u, m, bias ? read<F, V>(bias + j, count) : V{}, s, kept);
        for (int k = 0; k < A; ++k) write<F, V>(aux + k * n + j, kept[k], count);
        write<F, V>(y + j, out, count);
        write<F, V>(carry + r * ld + j, out, count);
        write<F, V>(state + r * ld + j, s, count);
      });
      if (t == at.length[r] - 1) {
        T *h_n = at.batch(p.h_n, r), *c_n = at.batch(p.c_n, r);
        for (int64_t j = 0; j < n; ++j) h_n[j] = carry[r * ld + j];
        for (int64_t j = 0; c_n && j < n; ++j) c_n[j] = state[r * ld + j];
      }
    }
  }
}

template <class T>
void gated_forward(const GatedForward<T>& p, RowRange range, const T* packed, T* scratch) {
  if (p.cell == GatedCell::Gru) return gated_forward_run<T, Gru>(p, range, packed, scratch);
  gated_forward_run<T, Lstm>(p, range, packed, scratch);
}

}  // namespace RX_NS
}  // namespace rx
