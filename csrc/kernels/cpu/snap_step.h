// A step of SnAp, M_p <- J[K_p, K_p] M_p + I for each owner p, in place. A row of the product is a sum over the units that its
// unit hears of; where K_p is connected throughout, it is a matrix product. As in
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
  // Two copies of the block, weights, `pre` of the columns, and the Jacobian of the block where it is whole.
  int64_t scratch() const { return 2 * rows * ld + (whole ? rows + 1 : 1) * padded<T>(rows) + padded<T>(columns); }
};

template <class T>
int64_t snap_scratch(const SnapStep<T>& p) {
  int64_t most = 0, sums = 0;
  for (int64_t owner = 0; owner < p.s.n; ++owner) {
    const SnapOwner<T> o(p, owner);
    most = o.scratch() > most ? o.scratch() : most;
    sums += p.s.signals * o.ld;
  }
  return sums + most;
}

// A unit's connections lie far apart in the Jacobian, and every owner reads those of every batch row.
template <class T>
void snap_values(const SnapStep<T>& p, int64_t first, int64_t end) {
  const InfluenceShape& s = p.s;
  const int64_t N = s.S * s.n, count = p.pattern.pairs_all;
  const int32_t *to = p.pattern.pairs, *from = to + count;
  for (int64_t i = first * s.S * s.S; i < end * s.S * s.S; ++i) {
    const int64_t state = i / s.S % s.S, before = i % s.S;
    const T* jacobian = p.in.jacobian + i / (s.S * s.S) * N * N + state * s.n * N + before * s.n;
    T* values = p.values + i * count;
    for (int64_t e = 0; e < count; ++e) values[e] = jacobian[to[e] * N + from[e]];
  }
}

// A row of the product, in `Vecs` vectors of columns: `to` = the sum over states and links of the Jacobian's value times the
// other unit's row of `from`. Values that are zero cost nothing: half of an LSTM's are, and those of silent units.
template <class T, int Vecs, bool Full>
inline void snap_row(const SnapStep<T>& p, const SnapOwner<T>& o, int64_t i, const T* values, const T* from, T* to, int last) {
  using V = Vec<T>;
  constexpr int v = lanes<V>();
  const int32_t *links = p.pattern.links, *pairs = p.pattern.link_pairs;
  V acc[Vecs];
#pragma GCC unroll 8
  for (int j = 0; j < Vecs; ++j) acc[j] = V{};
  for (int64_t before = 0; before < p.s.S; ++before, values += p.pattern.pairs_all, from += o.units * o.ld) {
    for (int64_t l = o.link_at[i]; l < o.link_at[i + 1]; ++l) {
      const T value = values[pairs[l]];
      if (value == T(0)) continue;
      const V x = splat<V>(value);
      const T* row = from + links[l] * o.ld;
#pragma GCC unroll 8
      for (int j = 0; j < Vecs; ++j) acc[j] += x * load<V>(row + j * v);
    }
  }
#pragma GCC unroll 8
  for (int j = 0; j + 1 < Vecs; ++j) store<V>(to + j * v, acc[j]);
  write<Full, V>(to + (Vecs - 1) * v, acc[Vecs - 1], last);
}

// The product along links.
template <class T>
void snap_linked(const SnapStep<T>& p, const SnapOwner<T>& o, const T* values, const T* from, T* to, int64_t ldc,
                 const Ahead<T>& ahead) {
  for (int64_t state = 0; state < p.s.S; ++state, values += p.s.S * p.pattern.pairs_all) {
    for (int64_t i = 0; i < o.units; ++i) {
      const int64_t row = state * o.units + i;
      if (ahead.p) ahead.prefetch(row, o.width * static_cast<int64_t>(sizeof(T)));
      wide_columns<T>(o.width, [&](auto vecs, auto full, int64_t j, int last) {
        snap_row<T, decltype(vecs)::value, decltype(full)::value>(p, o, i, values, from + j, to + row * ldc + j, last);
      });
    }
  }
}

// The product where every unit of K_p hears of every other.
template <class T>
void snap_whole(const SnapStep<T>& p, const SnapOwner<T>& o, const T* jacobian, const T* from, T* to, int64_t ldc, bool room,
                const Ahead<T>& ahead, T* matrix) {
  const InfluenceShape& s = p.s;
  const int64_t lda = padded<T>(o.rows);
  for (int64_t i = 0; i < o.rows; ++i) {
    const T* row = jacobian + (i / o.units * s.n + o.unit[i % o.units]) * s.S * s.n;
    for (int64_t before = 0; before < s.S; ++before) {
      for (int64_t j = 0; j < o.units; ++j) matrix[i * lda + before * o.units + j] = row[before * s.n + o.unit[j]];
    }
  }
  influence_product<T>(o.rows, matrix, lda, from, o.ld, o.rows, o.width, to, ldc, room, nullptr, nullptr, ahead);
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

// All pending steps of one owner and batch row; sums (signals, ld): of the signals, added to.
template <class T>
void snap_owner(const SnapStep<T>& p, const SnapOwner<T>& o, int64_t b, T* sums, T* scratch) {
  const InfluenceShape& s = p.s;
  const int64_t N = s.S * s.n;
  T *const m = p.influence + b * p.batch + p.pattern.at[o.p], *from = scratch, *to = from + o.rows * o.ld;
  T *const weights = to + o.rows * o.ld, *const own = weights + padded<T>(o.rows);
  T* const matrix = own + padded<T>(o.columns);
  if (s.K == 0) return snap_signal(p, o, p.in.signal + b * N, static_cast<const T*>(m), o.width, weights, sums);
  influence_copy(static_cast<const T*>(m), o.width, o.rows, o.width, from, o.ld);
  for (int64_t k = 0; k < s.K; ++k) {
    const int64_t at = k * s.B + b, with = k - (s.K - s.signals);
    const bool last = k + 1 == s.K;
    T* const c = last ? m : to;
    const int64_t ldc = last ? o.width : o.ld;
    const Ahead<T> ahead{k > 0 ? nullptr : m + o.rows * o.width, o.width};  // about the next owner's block
    if (o.whole) {
      snap_whole<T>(p, o, p.in.jacobian + at * N * N, from, c, ldc, !last, ahead, matrix);
    } else {
      snap_linked<T>(p, o, p.values + at * s.S * s.S * p.pattern.pairs_all, from, c, ldc, ahead);
    }
    snap_immediate(p, o, p.in.psi + at * s.S * s.R, p.in.pre + at * s.Q, c, ldc, own);
    if (with >= 0) {
      snap_signal(p, o, p.in.signal + (with * s.B + b) * N, static_cast<const T*>(c), ldc, weights, sums + with * o.ld);
    }
    std::swap(from, to);
  }
}

// Batch rows outside, so that one Jacobian at a time is in the cache and the influence is read from end to end.
template <class T>
void snap_owners(const SnapStep<T>& p, int64_t first, int64_t end, T* scratch) {
  const InfluenceShape& s = p.s;
  T* sums = scratch;
  for (int64_t owner = first; owner < end; ++owner) scratch += s.signals * SnapOwner<T>(p, owner).ld;
  zero_row(sums, scratch - sums);
  for (int64_t b = 0; b < s.B; ++b) {
    T* own = sums;
    for (int64_t owner = first; owner < end; ++owner) {
      const SnapOwner<T> o(p, owner);
      if (o.width > 0) snap_owner(p, o, b, own, scratch);
      own += s.signals * o.ld;
    }
  }
  for (int64_t owner = first; owner < end; ++owner) {
    const SnapOwner<T> o(p, owner);
    for (int64_t i = 0; i < s.signals; ++i, sums += o.ld) {
      for (int64_t r = owner, j = 0; r < s.R; r += s.n, j += o.columns) {
        for (int64_t c = 0; c < o.columns; ++c) p.in.grad[r * s.Q + o.column[c]] += sums[j + c];
      }
    }
  }
}

}  // namespace RX_NS
}  // namespace rx
