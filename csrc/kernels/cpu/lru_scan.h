// The LRU forward in time. A step of all the piece's rows is one stretch of memory (all rows and units of a sequence are), and
// the state of the step before is read where it was written, from the cache.
#pragma once
#include "kernels/cpu/lru_rows.h"

namespace rx {
namespace RX_NS {

template <class T>
void lru_scan(const LruScan<T>& p, const LruPiece& piece, T*) {
  using V = Vec<T>;
  const Rows<T> at(p.s, piece.rows);
  const int64_t n = at.n;
  for (int64_t t = 0; t < p.s.T; ++t) {
    for (int64_t r = 0; r < at.rows; ++r) {
      T* out = at.at(p.states, r, t, 2);
      if (t >= at.length[r]) {
        zero_planes(out, piece, n);
        continue;
      }
      const T *lam = at.unit(p.lam, r, 2), *u = at.at(p.u, r, t, 2);
      const T* before = t > 0 ? at.at(p.states, r, t - 1, 2) : at.batch(p.s0, r, 2);
      units<T>(piece, [&](int64_t j, int count, auto full) __attribute__((always_inline)) {
        constexpr bool F = decltype(full)::value;
        const auto get = [&](const T* x) __attribute__((always_inline)) { return read_planes<F, V>(x, j, n, count); };
        write_planes<F, V>(out, j, n, lru_state(get(lam), get(before), get(u)), count);
      });
    }
  }
  for (int64_t r = 0; r < at.rows; ++r) {
    const int64_t length = at.length[r];
    if (length < 1 || length > p.s.T) continue;
    copy_planes(at.batch(p.s_n, r, 2), static_cast<const T*>(at.at(p.states, r, length - 1, 2)), piece, n);
  }
}

}  // namespace RX_NS
}  // namespace rx
