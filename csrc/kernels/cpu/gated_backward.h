// Backward pass of a gated cell under a transport policy, a tile of rows through all T steps.
#pragma once
#include "kernels/cpu/gated_rows.h"

namespace rx {
namespace RX_NS {

template <class T, class Cell, Transport P>
class GatedBackwardRun {
  using V = Vec<T>;
  static constexpr int G = Cell::kGates, A = Cell::kAux;
  static constexpr bool kState = Cell::kOwnState;  // `kept` belongs to it and not to h
  const GatedBackward<T>& p_;
  const Rows<T> at_;
  const int64_t n_, ld_, wide_;
  T *kept_, *product_, *carry_, *own_;  // (rows, ld) twice, (rows, wide) twice; Local: the signal in `own_`

 public:
  GatedBackwardRun(const GatedBackward<T>& p, RowRange range, T* scratch)
      : p_(p), at_(p.s, range), n_(p.s.n), ld_(gated_stride<T>(n_, 1)), wide_(gated_stride<T>(n_, G)) {
    kept_ = scratch;
    product_ = kept_ + at_.rows * ld_;
    carry_ = product_ + at_.rows * ld_;
    own_ = carry_ + at_.rows * wide_;
    for (int64_t i = 0; i < at_.rows * (2 * ld_ + wide_); ++i) scratch[i] = 0;
    if constexpr (P == Transport::Diagonal) {  // each unit's weights onto itself
      for (int64_t r = 0; r < at_.rows; ++r) {
        const T* w = p.w.p + (p.w.lead ? at_.l[r] : 0) * G * n_ * n_;
        for (int64_t g = 0; g < G; ++g) {
          for (int64_t j = 0; j < n_; ++j) own_[r * wide_ + g * n_ + j] = w[(g * n_ + j) * n_ + j];
        }
      }
    }
  }

  void run(const T* packed) {
    for (int64_t t = p_.s.T - 1; t >= 0; --t) {
      for (int64_t r = 0; r < at_.rows; ++r) at_.prefetch_row(at_.at(p_.aux, r, t, A), A * n_);
      move(packed);
      for (int64_t r = 0; r < at_.rows; ++r) {
        if (t >= at_.length[r]) {
          zero_row(at_.at(p_.delta, r, t, 4), 4 * n_);
          zero_row(at_.at(p_.lam, r, t), n_);
          zero_row(at_.at(p_.to_c, r, t), n_);
        } else {
          step(r, t);
        }
      }
    }
    move(packed);
    for (int64_t r = 0; r < at_.rows; ++r) {
      T *gh0 = at_.batch(p_.gh0, r), *gc0 = at_.batch(p_.gc0, r);
      columns<T>(n_, [&](int64_t j, int count, auto full) __attribute__((always_inline)) {
        constexpr bool F = decltype(full)::value;
        const V kept = load<V>(kept_ + r * ld_ + j), moved = transported(r, j);
        write<F, V>(gh0 + j, kState ? moved : moved + kept, count);
        if constexpr (kState) write<F, V>(gc0 + j, kept, count);
      });
    }
  }

 private:
  void move(const T* packed) {
    if constexpr (P == Transport::Full) gemm<T>(at_.rows, carry_, wide_, packed, G * n_, n_, product_, ld_, true);
  }
  // What reaches h from the next step through recurrent weights, in the columns from j.
  RX_FN V transported(int64_t r, int64_t j) const {
    if constexpr (P == Transport::Full) return load<V>(product_ + r * ld_ + j);
    V sum{};
    if constexpr (P == Transport::Diagonal) {
      for (int g = 0; g < G; ++g) sum += load<V>(own_ + r * wide_ + g * n_ + j) * load<V>(carry_ + r * wide_ + g * n_ + j);
    }
    return sum;
  }
  void step(int64_t r, int64_t t) {
    const bool first = t == at_.length[r] - 1;  // no step after it: nothing is carried in yet
    const bool empty = first || (p_.window > 0 && (at_.length[r] - t - 1) % p_.window == 0);
    const T *gy = at_.at(p_.gy, r, t), *aux = at_.at(p_.aux, r, t, A);
    const T *gh_n = first ? at_.batch(p_.gh_n, r) : nullptr, *gc_n = first ? at_.batch(p_.gc_n, r) : nullptr;
    const T* before = state_before<Cell>(at_, p_.before, p_.aux, p_.y, r, t);
    T *delta = at_.at(p_.delta, r, t, 4), *carry = carry_ + r * wide_, *kept = kept_ + r * ld_;
    T* filtered = own_ + r * wide_;
    const T decay = static_cast<T>(p_.decay);
    T *kept_lam = at_.at(p_.lam, r, t), *kept_to_c = at_.at(p_.to_c, r, t);
    columns<T>(n_, [&](int64_t j, int count, auto full) __attribute__((always_inline)) {
      constexpr bool F = decltype(full)::value;
      V lam{}, from_next{}, a[A], d[4], c[G];
      if (!empty) {
        lam = transported(r, j);
        from_next = load<V>(kept + j);
      }
      V signal = gy ? read<F, V>(gy + j, count) : V{};
      if (gh_n) signal += read<F, V>(gh_n + j, count);
      if constexpr (P == Transport::Local) {
        if (decay != 0) {
          if (!first) signal += decay * load<V>(filtered + j);
          store<V>(filtered + j, signal);
        }
      }
      lam += signal;
      const V last = gc_n ? read<F, V>(gc_n + j, count) : V{};
      for (int k = 0; k < A; ++k) a[k] = read<F, V>(aux + k * n_ + j, count);
      if (kept_lam) write<F, V>(kept_lam + j, kState ? lam : lam + from_next, count);
      if (kState && kept_to_c) write<F, V>(kept_to_c + j, from_next + last, count);
      Cell::backward(lam, last, a, read<F, V>(before + j, count), from_next, d, c);
      write<F, V>(kept + j, from_next, count);
      for (int k = 0; k < 4; ++k) write<F, V>(delta + k * n_ + j, d[k], count);
      if constexpr (P != Transport::Local) {
        for (int g = 0; g < G; ++g) write<F, V>(carry + g * n_ + j, c[g], count);
      }
    });
  }
};

template <class T, class Cell>
void gated_backward_policy(const GatedBackward<T>& p, RowRange range, const T* packed, T* scratch) {
  switch (p.transport) {
    case Transport::Local:
      return GatedBackwardRun<T, Cell, Transport::Local>(p, range, scratch).run(packed);
    case Transport::Diagonal:
      return GatedBackwardRun<T, Cell, Transport::Diagonal>(p, range, scratch).run(packed);
    default:
      return GatedBackwardRun<T, Cell, Transport::Full>(p, range, scratch).run(packed);
  }
}

template <class T>
void gated_backward(const GatedBackward<T>& p, RowRange range, const T* packed, T* scratch) {
  if (p.cell == GatedCell::Gru) return gated_backward_policy<T, Gru>(p, range, packed, scratch);
  gated_backward_policy<T, Lstm>(p, range, packed, scratch);
}

}  // namespace RX_NS
}  // namespace rx
