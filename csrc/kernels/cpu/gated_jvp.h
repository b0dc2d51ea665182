// Tangents of a gated cell, forward and backward (exact rule), a tile of rows through all T steps.
#pragma once
#include "cells/dual.h"
#include "kernels/cpu/gated_rows.h"

namespace rx {
namespace RX_NS {

template <class T, class Cell>
void gated_forward_jvp_run(const GatedForwardJvp<T>& p, RowRange range, const T* packed, T* scratch) {
  using V = Vec<T>;
  constexpr int G = Cell::kGates, A = Cell::kAux;
  const Rows<T> at(p.s, range);
  const int64_t n = at.n;
  const auto rest = [&](int64_t r, int64_t t) {
    zero_row(at.at(p.dy, r, t), n);
    zero_row(at.at(p.daux, r, t, A), A * n);
  };
  gated_steps<T, Cell>(p, at, packed, scratch, p.dh0, p.dc0, p.dh_n, p.dc_n, rest,
                       [&](int64_t r, int64_t t, const T* product, T* carry, T* state) __attribute__((always_inline)) {
                         T *dy = at.at(p.dy, r, t), *daux = at.at(p.daux, r, t, A);
                         const T *du = at.at(p.du, r, t, p.in_place ? A : 4), *aux = at.at(p.aux, r, t, A);
                         const T* dbias = at.unit(p.dbias, r, 4);
                         const T* before = state_before<Cell>(at, p.before, p.aux, p.y, r, t);
                         columns<T>(n, [&](int64_t j, int count, auto full) __attribute__((always_inline)) {
                           constexpr bool F = decltype(full)::value;
                           V u[4], m[G], a[A], d[A];
                           for (int k = 0; k < 4; ++k)
                             u[k] = read<F, V>(du + k * n + j, count) + read_or_zero<F, V>(dbias, k * n + j, count);
                           for (int g = 0; g < G; ++g) m[g] = load<V>(product + g * n + j);
                           for (int k = 0; k < A; ++k) a[k] = read<F, V>(aux + k * n + j, count);
                           V s = load<V>(state + j);
                           const V out = Cell::tangent(a, read_or_zero<F, V>(before, j, count), u, m, s, d);
                           for (int k = 0; k < A; ++k) write<F, V>(daux + k * n + j, d[k], count);
                           write<F, V>(dy + j, out, count);
                           write<F, V>(carry + j, out, count);
                           write<F, V>(state + j, s, count);
                         });
                       });
}

template <class T>
void gated_forward_jvp(const GatedForwardJvp<T>& p, RowRange range, const T* packed, T* scratch) {
  if (p.cell == GatedCell::Gru) return gated_forward_jvp_run<T, Gru>(p, range, packed, scratch);
  gated_forward_jvp_run<T, Lstm>(p, range, packed, scratch);
}

template <class T, class Cell>
void gated_backward_jvp_run(const GatedBackwardJvp<T>& p, RowRange range, const T* packed, T* scratch) {
  using V = Vec<T>;
  using D = Dual<V>;
  constexpr int G = Cell::kGates, A = Cell::kAux;
  constexpr bool kState = Cell::kOwnState;
  const Rows<T> at(p.s, range);
  const int64_t n = at.n, ld = gated_stride<T>(n, 1), wide = gated_stride<T>(n, G);
  T* kept = scratch;                  // (rows, ld): tangent of what the state's own path hands back
  T* product = kept + at.rows * ld;   // (rows, ld)
  T* carry = product + at.rows * ld;  // (rows, wide)
  for (int64_t i = 0; !p.s.resume && i < at.rows * (2 * ld + wide); ++i) scratch[i] = 0;
  for (int64_t t = p.s.end - 1; t >= p.s.begin; --t) {
    for (int64_t r = 0; r < at.rows; ++r) at.prefetch_row(at.at(p.aux, r, t, A), A * n);
    gemm<T>(at.rows, carry, wide, packed, G * n, n, product, ld, true);
    for (int64_t r = 0; r < at.rows; ++r) {
      T* ddelta = at.at_part(p.ddelta, r, t, !p.part, 4);
      if (t >= at.length[r]) {
        zero_row(ddelta, 4 * n);
        continue;
      }
      const bool first = t == at.length[r] - 1;
      const T *dgy = at.at_part(p.dgy, r, t, !p.part), *aux = at.at(p.aux, r, t, A), *daux = at.at(p.daux, r, t, A);
      const T *dgh_n = first ? at.batch(p.dgh_n, r) : nullptr, *dgc_n = first ? at.batch(p.dgc_n, r) : nullptr;
      const T* before = state_before<Cell>(at, p.before, p.aux, p.y, r, t);
      const T* dbefore = state_before<Cell>(at, p.dbefore, p.daux, p.dy, r, t);
      const T *lam = at.at(p.lam, r, t), *to_c = at.at(p.to_c, r, t);
      columns<T>(n, [&](int64_t j, int count, auto full) __attribute__((always_inline)) {
        constexpr bool F = decltype(full)::value;
        // Values are the first pass's own; `kept` of GRU is in lam already, so its value is zero here.
        D l{read<F, V>(lam + j, count), load<V>(product + r * ld + j) + read<F, V>(dgy + j, count)};
        if (dgh_n) l.b += read<F, V>(dgh_n + j, count);
        D last{V{}, dgc_n ? read<F, V>(dgc_n + j, count) : V{}};
        if constexpr (kState) last.a = read<F, V>(to_c + j, count);
        D own{V{}, load<V>(kept + r * ld + j)}, a[A], d[4], c[G];
        for (int k = 0; k < A; ++k) a[k] = {read<F, V>(aux + k * n + j, count), read<F, V>(daux + k * n + j, count)};
        const D b{read_or_zero<F, V>(before, j, count), read_or_zero<F, V>(dbefore, j, count)};
        Cell::backward(l, last, a, b, own, d, c);
        write<F, V>(kept + r * ld + j, own.b, count);
        for (int k = 0; k < 4; ++k) write<F, V>(ddelta + k * n + j, d[k].b, count);
        for (int g = 0; g < G; ++g) write<F, V>(carry + r * wide + g * n + j, c[g].b, count);
      });
    }
  }
  if (p.s.begin > 0 || !p.dgh0) return;
  gemm<T>(at.rows, carry, wide, packed, G * n, n, product, ld, true);
  for (int64_t r = 0; r < at.rows; ++r) {
    T *dgh0 = at.batch(p.dgh0, r), *dgc0 = at.batch(p.dgc0, r);
    for (int64_t j = 0; j < n; ++j) {
      dgh0[j] = product[r * ld + j] + (kState ? T(0) : kept[r * ld + j]);
      if (kState) dgc0[j] = kept[r * ld + j];
    }
  }
}

template <class T>
void gated_backward_jvp(const GatedBackwardJvp<T>& p, RowRange range, const T* packed, T* scratch) {
  if (p.cell == GatedCell::Gru) return gated_backward_jvp_run<T, Gru>(p, range, packed, scratch);
  gated_backward_jvp_run<T, Lstm>(p, range, packed, scratch);
}

}  // namespace RX_NS
}  // namespace rx
