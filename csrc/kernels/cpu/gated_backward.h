// Backward pass of a gated cell under a transport policy, a tile of rows through the steps of a call.
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
  Rows<T> at_;
  const int64_t n_, ld_, wide_;
  T *kept_, *product_;  // (rows, ld)
  T *carry_, *own_;     // (rows, wide); `own_` is Diagonal's weights, Local's filtered signal
  T* bias_;

  // What a row's step needs. Most steps are plain: carried into, with gy, without lam or decay; they get code without those
  // branches.
  struct Step {
    int64_t r, t;
    bool first;  // no step after it: nothing is carried in yet
    bool cut;    // what is carried from t+1 is dropped
  };

 public:
  GatedBackwardRun(const GatedBackward<T>& p, RowRange range, T* scratch)
      : p_(p), at_(p.s, range), n_(p.s.n), ld_(gated_stride<T>(n_, 1)), wide_(gated_stride<T>(n_, G)) {
    if (p.part) at_.own_part(p.delta_row);
    kept_ = scratch;
    product_ = kept_ + at_.rows * ld_;
    carry_ = product_ + at_.rows * ld_;
    own_ = carry_ + at_.rows * wide_;
    bias_ = p.bias ? p.bias + range.tile * 4 * n_ : nullptr;
    if (p.s.resume) return;
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
    const bool plain = p_.gy.p && !p_.lam && (P != Transport::Local || p_.decay == 0);
    for (int64_t t = p_.s.end - 1; t >= p_.s.begin; --t) {
      bool any = false;  // some row takes in what is carried
      for (int64_t r = 0; r < at_.rows; ++r) {
        any = any || (t + 1 < at_.length[r] && !cut(r, t));
        at_.prefetch_row(at_.at(p_.aux, r, t, A), A * n_);
        at_.prefetch_row(at_.at(p_.gy, r, t), p_.gy.p ? n_ : 0);
      }
      if (any) move(packed);
      for (int64_t r = 0; r < at_.rows; ++r) {
        if (t >= at_.length[r]) {
          zero_row(delta(r, t), 4 * n_);
          zero_row(at_.at(p_.lam, r, t), n_);
          zero_row(at_.at(p_.to_c, r, t), n_);
          continue;
        }
        const Step at{r, t, t == at_.length[r] - 1, cut(r, t)};
        if (plain && !at.first && !at.cut) {
          step<true>(at);
        } else {
          step<false>(at);
        }
      }
    }
    if (p_.s.begin > 0 || !p_.gh0) return;
    move(packed);
    for (int64_t r = 0; r < at_.rows; ++r) {
      T *gh0 = at_.batch(p_.gh0, r), *gc0 = at_.batch(p_.gc0, r);
      columns<T>(n_, [&](int64_t j, int count, auto full) __attribute__((always_inline)) {
        constexpr bool F = decltype(full)::value;
        const V kept = load<V>(kept_ + r * ld_ + j);
        const V moved = transported(product_ + r * ld_, own_ + r * wide_, carry_ + r * wide_, n_, j);
        write<F, V>(gh0 + j, kState ? moved : moved + kept, count);
        if constexpr (kState) write<F, V>(gc0 + j, kept, count);
      });
    }
  }

 private:
  bool cut(int64_t r, int64_t t) const { return p_.window > 0 && (at_.length[r] - t - 1) % p_.window == 0; }
  void move(const T* packed) {
    if constexpr (P == Transport::Full) gemm<T>(at_.rows, carry_, wide_, packed, G * n_, n_, product_, ld_, true);
  }
  T* delta(int64_t r, int64_t t) const { return p_.part ? at_.at_part(p_.delta, r, t, false) : at_.at(p_.delta, r, t, 4); }
  // What reaches h from the next step through recurrent weights, in the columns from j; pointers to a row of each.
  static RX_FN V transported(const T* product, const T* own, const T* carry, int64_t n, int64_t j) {
    if constexpr (P == Transport::Full) return load<V>(product + j);
    V sum{};
    if constexpr (P == Transport::Diagonal) {
      for (int g = 0; g < G; ++g) sum += load<V>(own + g * n + j) * load<V>(carry + g * n + j);
    }
    return sum;
  }
  template <bool Plain>
  RX_FN void step(const Step& at) {
    const int64_t r = at.r, t = at.t, n = n_;
    const bool last = !Plain && at.first;
    const T *gy = at_.at(p_.gy, r, t), *aux = at_.at(p_.aux, r, t, A);
    const T *gh_n = last ? at_.batch(p_.gh_n, r) : nullptr, *gc_n = last ? at_.batch(p_.gc_n, r) : nullptr;
    const T* before = state_before<Cell>(at_, p_.before, p_.aux, p_.y, r, t);
    T *out = delta(r, t), *carry = carry_ + r * wide_, *kept = kept_ + r * ld_, *own = own_ + r * wide_;
    const T* product = product_ + r * ld_;
    T *kept_lam = Plain ? nullptr : at_.at(p_.lam, r, t), *kept_to_c = Plain ? nullptr : at_.at(p_.to_c, r, t);
    T* bias = bias_;
    const T decay = static_cast<T>(p_.decay);
    const bool empty = !Plain && (at.first || at.cut), filter = !Plain && P == Transport::Local && decay != 0;
    columns<T>(n, [&](int64_t j, int count, auto full) __attribute__((always_inline)) {
      constexpr bool F = decltype(full)::value;
      V signal = Plain ? read<F, V>(gy + j, count) : read_or_zero<F, V>(gy, j, count) + read_or_zero<F, V>(gh_n, j, count);
      if (filter) {
        if (!at.first) signal += decay * load<V>(own + j);
        store<V>(own + j, signal);
      }
      V lam{}, from_next{}, a[A], d[4], c[G];
      if (!empty) {
        lam = transported(product, own, carry, n, j);
        from_next = load<V>(kept + j);
      }
      lam += signal;
      const V final = Plain ? V{} : read_or_zero<F, V>(gc_n, j, count);
      for (int k = 0; k < A; ++k) a[k] = read<F, V>(aux + k * n + j, count);
      if (kept_lam) write<F, V>(kept_lam + j, kState ? lam : lam + from_next, count);
      if (kState && kept_to_c) write<F, V>(kept_to_c + j, from_next + final, count);
      Cell::backward(lam, final, a, read_or_zero<F, V>(before, j, count), from_next, d, c);
      write<F, V>(kept + j, from_next, count);
      for (int k = 0; k < 4; ++k) write<F, V>(out + k * n + j, d[k], count);
      for (int k = 0; bias && k < 4; ++k) write<F, V>(bias + k * n + j, read<F, V>(bias + k * n + j, count) + d[k], count);
      if constexpr (P != Transport::Local) {
        for (int g = 0; g < G; ++g) write<F, V>(carry + g * n + j, c[g], count);
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
