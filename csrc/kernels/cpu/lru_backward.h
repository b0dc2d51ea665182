// The LRU backward in time: the adjoint of the states, and the gradient of lambda beside it.
#pragma once
#include "kernels/cpu/lru_rows.h"

namespace rx {
namespace RX_NS {

constexpr int64_t kLruFlush = 64;  // steps summed before the sum joins the total: keeps rounding errors small

template <class T>
int64_t lru_scratch(int64_t rows, int64_t units) {
  return rows * 2 * scratch_stride<T>(units);
}

template <class T>
void lru_backward(const LruBackward<T>& p, const LruPiece& piece, T* scratch) {
  using V = Vec<T>;
  const Rows<T> at(p.s, piece.rows);
  const int64_t n = at.n, width = piece.end - piece.first, ld = scratch_stride<T>(width);
  for (int64_t r = 0; p.sums && r < at.rows; ++r) {
    zero_planes(at.batch(p.sums, r, 2), piece, n);
    zero_row(scratch + 2 * ld * r, 2 * ld);
  }
  const auto flush = [&](int64_t r) {
    T *recent = scratch + 2 * ld * r, *total = at.batch(p.sums, r, 2) + piece.first;
    for (int64_t j = 0; j < width; ++j) {
      total[j] += recent[j];
      total[n + j] += recent[ld + j];
    }
    zero_row(recent, 2 * ld);
  };
  for (int64_t t = p.s.T - 1; t >= 0; --t) {
    for (int64_t r = 0; r < at.rows; ++r) {
      T* out = at.at(p.a, r, t, 2);
      const int64_t left = at.length[r] - t - 1;  // steps after this one
      if (left < 0) {
        zero_planes(out, piece, n);
        continue;
      }
      const bool carries = left > 0 && t + 1 < p.s.T && (p.window == 0 || left % p.window != 0);
      const T *lam = at.unit(p.lam, r, 2), *gs = at.at(p.gs, r, t, 2);
      const T* last = left == 0 ? at.batch(p.gs_n, r, 2) : nullptr;
      const T* later = carries ? at.at(p.a, r, t + 1, 2) : nullptr;
      const T* before = !p.sums ? nullptr : t > 0 ? at.at(p.states, r, t - 1, 2) : at.batch(p.s0, r, 2);
      T* recent = scratch + 2 * ld * r - piece.first;
      units<T>(piece, [&](int64_t j, int count, auto full) __attribute__((always_inline)) {
        constexpr bool F = decltype(full)::value;
        const auto get = [&](const T* x) __attribute__((always_inline)) { return read_planes<F, V>(x, j, n, count); };
        Complex<V> a = gs ? get(gs) : Complex<V>{};
        if (last) {
          const Complex<V> g = get(last);
          a = {a.re + g.re, a.im + g.im};
        }
        if (later) a = lru_adjoint(get(lam), get(later), a);
        write_planes<F, V>(out, j, n, a, count);
        if (before) {
          const Complex<V> sum = read_planes<F, V>(recent, j, ld, count);
          write_planes<F, V>(recent, j, ld, lru_rate(a, get(before), sum), count);
        }
      });
      if (p.sums && t % kLruFlush == 0) flush(r);
    }
  }
  for (int64_t r = 0; r < at.rows; ++r) {
    T* gs0 = at.batch(p.gs0, r, 2);
    const T *lam = at.unit(p.lam, r, 2), *a = at.at(p.a, r, 0, 2);
    units<T>(piece, [&](int64_t j, int count, auto full) __attribute__((always_inline)) {
      constexpr bool F = decltype(full)::value;
      const auto get = [&](const T* x) __attribute__((always_inline)) { return read_planes<F, V>(x, j, n, count); };
      write_planes<F, V>(gs0, j, n, lru_adjoint(get(lam), get(a), Complex<V>{}), count);
    });
  }
}

}  // namespace RX_NS
}  // namespace rx
