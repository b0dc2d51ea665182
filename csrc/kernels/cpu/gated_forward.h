// Forward pass of a gated cell, a tile of rows through all T steps.
#pragma once
#include "kernels/cpu/gated_rows.h"

namespace rx {
namespace RX_NS {

template <class T, class Cell>
void gated_forward_run(const GatedForward<T>& p, RowRange range, const T* packed, T* scratch) {
  using V = Vec<T>;
  constexpr int G = Cell::kGates, A = Cell::kAux;
  const Rows<T> at(p.s, range);
  const int64_t n = at.n;
  const auto rest = [&](int64_t r, int64_t t) {
    zero_row(at.at(p.y, r, t), n);
    zero_row(at.at(p.aux, r, t, A), A * n);
  };
  gated_steps<T, Cell>(p, at, packed, scratch, p.h0, p.c0, p.h_n, p.c_n, rest,
                       [&](int64_t r, int64_t t, const T* product, T* carry, T* state) __attribute__((always_inline)) {
                         T *y = at.at(p.y, r, t), *aux = at.at(p.aux, r, t, A);
                         const T* pre = at.at(p.pre, r, t, p.in_place ? A : G);
                         const T *drive = at.at(p.drive, r, t, G), *bias = at.unit(p.bias, r), *added = p.pre_bias;
                         columns<T>(n, [&](int64_t j, int count, auto full) __attribute__((always_inline)) {
                           constexpr bool F = decltype(full)::value;
                           V u[G], m[G], kept[A];
                           for (int g = 0; g < G; ++g) {
                             u[g] = read<F, V>(pre + g * n + j, count);
                             if (added) u[g] += read<F, V>(added + g * n + j, count);
                             if (drive) u[g] += read<F, V>(drive + g * n + j, count);
                             m[g] = load<V>(product + g * n + j);
                           }
                           V s = load<V>(state + j);
                           const V out = Cell::forward(u, m, read_or_zero<F, V>(bias, j, count), s, kept);
                           for (int k = 0; k < A; ++k) write<F, V>(aux + k * n + j, kept[k], count);
                           write<F, V>(y + j, out, count);
                           write<F, V>(carry + j, out, count);
                           write<F, V>(state + j, s, count);
                         });
                       });
}

template <class T>
void gated_forward(const GatedForward<T>& p, RowRange range, const T* packed, T* scratch) {
  if (p.cell == GatedCell::Gru) return gated_forward_run<T, Gru>(p, range, packed, scratch);
  gated_forward_run<T, Lstm>(p, range, packed, scratch);
}

}  // namespace RX_NS
}  // namespace rx
