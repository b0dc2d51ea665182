// A step of exact RTRL, M <- J M + I, in place: a panel of columns is copied into scratch that stays in the cache, takes all
// pending steps there, and the last of them writes it back. M is read once and written once, however many steps.
#pragma once
#include <utility>

#include "kernels/cpu/influence_product.h"
#include "kernels/influence.h"

namespace rx {
namespace RX_NS {

template <class T>
int64_t rtrl_scratch(const InfluenceShape& s, int64_t columns) {
  const int64_t panels = s.K == 0 ? 0 : s.K == 1 ? 1 : 2;
  return (s.signals + panels * s.S * s.n) * influence_stride<T>(columns);
}

// The immediate term touches one number per state of a parameter's own unit. Panel c (S n, width) from column `first` on.
template <class T>
void rtrl_immediate(const InfluenceShape& s, const T* psi, const T* pre, int64_t first, int64_t width, T* c, int64_t ldc,
                    const T* weights, T* sums) {
  for (int64_t j = 0; j < width;) {
    const int64_t r = (first + j) / s.Q, q = (first + j) % s.Q, count = s.Q - q < width - j ? s.Q - q : width - j;
    for (int64_t state = 0; state < s.S; ++state) {
      const int64_t i = state * s.n + r % s.n;
      const T factor = psi[state * s.R + r];
      T* row = c + i * ldc + j;
      for (int64_t k = 0; k < count; ++k) row[k] += factor * pre[q + k];
      if (weights == nullptr) continue;
      const T share = weights[i] * factor;
      for (int64_t k = 0; k < count; ++k) sums[j + k] += share * pre[q + k];
    }
    j += count;
  }
}

template <class T>
void rtrl_panel(const RtrlStep<T>& p, int64_t first, int64_t end, T* scratch) {
  const InfluenceShape& s = p.s;
  const int64_t N = s.S * s.n, width = end - first, ld = influence_stride<T>(width);
  T* const sums = scratch;  // one row for each step with a signal, over all of the batch
  zero_row(sums, s.signals * ld);
  for (int64_t b = 0; b < s.B; ++b) {
    T* const m = p.influence + b * p.batch + first;
    T *from = scratch + s.signals * ld, *to = from + N * ld;
    if (s.K == 0) {
      weighted_sum(N, p.in.signal + b * N, static_cast<const T*>(m), p.row, width, sums);
      continue;
    }
    influence_copy(static_cast<const T*>(m), p.row, N, width, from, ld);
    for (int64_t k = 0; k < s.K; ++k) {
      const int64_t at = k * s.B + b, with = k - (s.K - s.signals);
      const bool last = k + 1 == s.K;
      const T* weights = with >= 0 ? p.in.signal + (with * s.B + b) * N : nullptr;
      T *c = last ? m : to, *sum = with >= 0 ? sums + with * ld : nullptr;
      const int64_t ldc = last ? p.row : ld;
      // The panel of the next batch row, or the next panel of the first one.
      const Ahead<T> ahead{k > 0 ? nullptr : b + 1 < s.B ? m + p.batch : p.influence + end, p.row};
      influence_product<T>(N, p.in.jacobian + at * N * N, N, from, ld, N, width, c, ldc, !last, weights, sum, ahead);
      rtrl_immediate(s, p.in.psi + at * s.S * s.R, p.in.pre + at * s.Q, first, width, c, ldc, weights, sum);
      std::swap(from, to);
    }
  }
  for (int64_t i = 0; i < s.signals; ++i) {
    for (int64_t j = 0; j < width; ++j) p.in.grad[first + j] += sums[i * ld + j];
  }
}

}  // namespace RX_NS
}  // namespace rx
