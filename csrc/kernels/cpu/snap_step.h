// A step of SnAp, M_p <- J[K_p, K_p] M_p + I for each owner p, in place. A row of the product is a sum over the units that its
// unit hears of, numbers of J that are zero left out; where K_p is connected throughout, it is a matrix product. As in
// rtrl_step.h all pending steps are applied to a block in scratch.
#pragma once
#include <utility>

#include "kernels/cpu/influence_product.h"
#include "kernels/influence.h"

namespace rx {
namespace RX_NS {

// One owner's sizes and lists.
template <class T>
struct SnapOwner {
  int64_t p, units, columns, rows, width, ld;
  const int32_t *unit, *column;
  const int64_t* link_at;
  bool whole;  // connected throughout

  SnapOwner(const SnapStep<T>& step, int64_t owner) : p(owner) {
    const SnapPattern& at = step.pattern;
    const InfluenceShape& s = step.s;
    units = at.unit_at[p + 1] - at.unit_at[p];
    columns = at.column_at[p + 1] - at.column_at[p];
    rows = s.S * units;
    width = s.R / s.n * columns;
    ld = influence_stride<T>(width);
    unit = at.units + at.unit_at[p];
    column = at.columns + at.column_at[p];
    link_at = at.link_at + at.unit_at[p];
    whole = link_at[units] == link_at[0];
  }
  // sums, two copies of the block, weights, coefficients with their places, and `pre` of the columns
  int64_t scratch(const InfluenceShape& s) const {
    return (s.signals + 2 * rows) * ld + (whole ? rows + 1 : 3) * padded<T>(rows) + padded<T>(columns);
  }
};

template <class T>
int64_t snap_scratch(const SnapStep<T>& p) {
  int64_t most = 0;
  for (int64_t owner = 0; owner < p.s.n; ++owner) {
    const int64_t size = SnapOwner<T>(p, owner).scratch(p.s);
    most = size > most ? size : most;
  }
  return most;
}

// to (width) = the sum of the `count` rows at `at` of `from`, each times its coefficient.
template <class T, int Vecs, bool Full>
inline void snap_row(const T* coefficients, const int32_t* at, int64_t count, const T* from, int64_t ld, T* to, int last) {
  using V = Vec<T>;
  constexpr int v = lanes<V>();
  V acc[Vecs];
#pragma GCC unroll 8
  for (int j = 0; j < Vecs; ++j) acc[j] = V{};
  for (int64_t i = 0; i < count; ++i) {
    const V x = splat<V>(coefficients[i]);
    const T* row = from + at[i] * ld;
#pragma GCC unroll 8
    for (int j = 0; j < Vecs; ++j) acc[j] += x * load<V>(row + j * v);
  }
#pragma GCC unroll 8
  for (int j = 0; j + 1 < Vecs; ++j) store<V>(to + j * v, acc[j]);
  write<Full, V>(to + (Vecs - 1) * v, acc[Vecs - 1], last);
}

// The product along links. Coefficients that are zero cost nothing: half of an LSTM's are, and those of silent units.
template <class T>
void snap_linked(const SnapStep<T>& p, const SnapOwner<T>& o, const T* jacobian, const T* from, T* to, int64_t ldc,
                 T* coefficients, int32_t* places) {
  const InfluenceShape& s = p.s;
  for (int64_t state = 0; state < s.S; ++state) {
    for (int64_t i = 0; i < o.units; ++i) {
      const T* row = jacobian + (state * s.n + o.unit[i]) * s.S * s.n;
      int64_t count = 0;
      for (int64_t before = 0; before < s.S; ++before) {
        for (int64_t l = o.link_at[i]; l < o.link_at[i + 1]; ++l) {
          const int32_t j = p.pattern.links[l];
          const T x = row[before * s.n + o.unit[j]];
          coefficients[count] = x;
          places[count] = static_cast<int32_t>(before * o.units) + j;
          count += x != T(0);
        }
      }
      T* out = to + (state * o.units + i) * ldc;
      wide_columns<T>(o.width, [&](auto vecs, auto full, int64_t j, int last) {
        snap_row<T, decltype(vecs)::value, decltype(full)::value>(coefficients, places, count, from + j, o.ld, out + j, last);
      });
    }
  }
}

// The product where every unit of K_p hears of every other.
template <class T>
void snap_whole(const SnapStep<T>& p, const SnapOwner<T>& o, const T* jacobian, const T* from, T* to, int64_t ldc, bool room,
                T* matrix) {
  const InfluenceShape& s = p.s;
  const int64_t lda = padded<T>(o.rows);
  for (int64_t i = 0; i < o.rows; ++i) {
    const T* row = jacobian + (i / o.units * s.n + o.unit[i % o.units]) * s.S * s.n;
    for (int64_t before = 0; before < s.S; ++before) {
      for (int64_t j = 0; j < o.units; ++j) matrix[i * lda + before * o.units + j] = row[before * s.n + o.unit[j]];
    }
  }
  influence_product<T>(o.rows, matrix, lda, from, o.ld, o.rows, o.width, to, ldc, room, nullptr, nullptr);
}

// The owner's own rows get the immediate term.
template <class T>
void snap_immediate(const SnapStep<T>& p, const SnapOwner<T>& o, const T* psi, const T* pre, T* to, int64_t ldc, T* own) {
  const InfluenceShape& s = p.s;
  for (int64_t c = 0; c < o.columns; ++c) own[c] = pre[o.column[c]];
  for (int64_t state = 0; state < s.S; ++state) {
    for (int64_t r = o.p, j = 0; r < s.R; r += s.n, j += o.columns) {
      const T factor = psi[state * s.R + r];
      T* row = to + state * o.units * ldc + j;
      for (int64_t c = 0; c < o.columns; ++c) row[c] += factor * own[c];
    }
  }
}

template <class T>
void snap_signal(const SnapStep<T>& p, const SnapOwner<T>& o, const T* signal, const T* c, int64_t ldc, T* weights, T* sums) {
  for (int64_t state = 0; state < p.s.S; ++state) {
    for (int64_t i = 0; i < o.units; ++i) weights[state * o.units + i] = signal[state * p.s.n + o.unit[i]];
  }
  weighted_sum(o.rows, static_cast<const T*>(weights), c, ldc, o.width, sums);
}

template <class T>
void snap_owner(const SnapStep<T>& p, int64_t owner, T* scratch) {
  const InfluenceShape& s = p.s;
  const SnapOwner<T> o(p, owner);
  const int64_t N = s.S * s.n;
  if (o.width == 0) return;
  T *const sums = scratch, *const block = sums + s.signals * o.ld, *const weights = block + 2 * o.rows * o.ld;
  T *const own = weights + padded<T>(o.rows), *const coefficients = own + padded<T>(o.columns);
  int32_t* const places = reinterpret_cast<int32_t*>(coefficients + padded<T>(o.rows));
  zero_row(sums, s.signals * o.ld);
  for (int64_t b = 0; b < s.B; ++b) {
    T *const m = p.influence + b * p.batch + p.pattern.at[owner], *from = block, *to = block + o.rows * o.ld;
    if (s.K == 0) {
      snap_signal(p, o, p.in.signal + b * N, static_cast<const T*>(m), o.width, weights, sums);
      continue;
    }
    influence_copy(static_cast<const T*>(m), o.width, o.rows, o.width, from, o.ld);
    for (int64_t k = 0; k < s.K; ++k) {
      const int64_t at = k * s.B + b, with = k - (s.K - s.signals);
      const bool last = k + 1 == s.K;
      T* const c = last ? m : to;
      const int64_t ldc = last ? o.width : o.ld;
      const T* jacobian = p.in.jacobian + at * N * N;
      if (o.whole) {
        snap_whole(p, o, jacobian, static_cast<const T*>(from), c, ldc, !last, coefficients);
      } else {
        snap_linked(p, o, jacobian, static_cast<const T*>(from), c, ldc, coefficients, places);
      }
      snap_immediate(p, o, p.in.psi + at * s.S * s.R, p.in.pre + at * s.Q, c, ldc, own);
      if (with >= 0) {
        snap_signal(p, o, p.in.signal + (with * s.B + b) * N, static_cast<const T*>(c), ldc, weights, sums + with * o.ld);
      }
      std::swap(from, to);
    }
  }
  for (int64_t i = 0; i < s.signals; ++i) {
    for (int64_t r = owner, j = 0; r < s.R; r += s.n, j += o.columns) {
      for (int64_t c = 0; c < o.columns; ++c) p.in.grad[r * s.Q + o.column[c]] += sums[i * o.ld + j + c];
    }
  }
}

template <class T>
void snap_owners(const SnapStep<T>& p, int64_t first, int64_t end, T* scratch) {
  for (int64_t owner = first; owner < end; ++owner) snap_owner(p, owner, scratch);
}

}  // namespace RX_NS
}  // namespace rx
