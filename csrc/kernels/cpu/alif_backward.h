// Backward pass of ALIF and LIF under a transport policy, a tile of rows through all T steps.
#pragma once
#include "kernels/cpu/alif_rows.h"

namespace rx {
namespace RX_NS {

template <class T, Transport P, bool Adapts>
class AlifBackwardRun {
  using V = Vec<T>;
  const AlifBackward<T>& p_;
  Rows<T> at_;
  const AlifShared<V> all_;
  const V mu_;
  const int64_t n_, ld_;
  T *dv_, *da_, *carry_, *product_, *extra_;  // (rows, ld); extra: Local the filtered signal, Diagonal the own weights

 public:
  AlifBackwardRun(const AlifBackward<T>& p, RowRange range, T* scratch)
      : p_(p),
        at_(p.s, range),
        all_(alif_shared<T>(p.s, 0, 0)),
        mu_(splat<V>(static_cast<T>(p.mu))),
        n_(p.s.n),
        ld_(scratch_stride<T>(n_)),
        dv_(scratch),
        da_(dv_ + at_.rows * ld_),
        carry_(da_ + at_.rows * ld_),
        product_(carry_ + at_.rows * ld_),
        extra_(product_ + at_.rows * ld_) {
    if (p.part) at_.own_part(p.delta_row);
    if (p.s.resume) return;
    for (int64_t i = 0; i < 5 * at_.rows * ld_; ++i) scratch[i] = 0;
    if constexpr (P == Transport::Diagonal) {
      for (int64_t r = 0; r < at_.rows; ++r) {
        const T* w = p.w.p + (p.w.lead ? at_.l[r] : 0) * n_ * n_;
        for (int64_t j = 0; j < n_; ++j) extra_[r * ld_ + j] = w[j * (n_ + 1)];
      }
    }
  }

  void run(const T* packed) {
    for (int64_t t = p_.s.end - 1; t >= p_.s.begin; --t) {
      bool any = false;  // some row takes in what is carried
      for (int64_t r = 0; r < at_.rows; ++r) {
        any = any || !empty(r, t);
        if (const T* gz = at_.at(p_.gz, r, t)) at_.prefetch_row(gz, n_);
        at_.prefetch_row(at_.at(p_.psi, r, t), n_);
        if (!p_.part) at_.template prefetch_row<1>(delta(r, t), n_);
      }
      if (any) multiply(packed);
      for (int64_t r = 0; r < at_.rows; ++r) {
        if (t >= at_.length[r]) {
          zero_row(delta(r, t), n_);
          for (T* x : {p_.dv, p_.da, p_.dx}) zero_row(at_.at(x, r, t), n_);
        } else if (plain_ && !empty(r, t)) {
          step<true>(r, t);
        } else {
          step<false>(r, t);
        }
      }
    }
    if (p_.s.begin > 0 || !p_.gz0) return;
    multiply(packed);
    for (int64_t r = 0; r < at_.rows; ++r) start(r);
  }

 private:
  // Most steps are carried into, with gz, without what is asked for seldom: they get code without those branches.
  const bool plain_ = p_.gz.p && !p_.dx && p_.decay == 0 && p_.s.reset == Reset::Subtract;

  T* delta(int64_t r, int64_t t) const { return at_.at_part(p_.delta, r, t, !p_.part); }
  bool empty(int64_t r, int64_t t) const {
    return t + 1 >= at_.length[r] || (p_.window > 0 && (at_.length[r] - t - 1) % p_.window == 0);
  }
  void multiply(const T* packed) {
    if constexpr (multiplies(P)) gemm<T>(at_.rows, carry_, ld_, packed, n_, n_, product_, ld_, true);
  }
  RX_FN V transported(int64_t i) const {
    if constexpr (multiplies(P)) return load<V>(product_ + i);
    if constexpr (P == Transport::Diagonal) return load<V>(extra_ + i) * load<V>(carry_ + i);
    return V{};
  }

  template <bool Plain>
  void step(int64_t r, int64_t t) {
    const bool last = !Plain && t == at_.length[r] - 1, nothing = !Plain && empty(r, t), zero = !Plain && all_.zero;
    const T *gz = at_.at(p_.gz, r, t), *psi = at_.at(p_.psi, r, t);
    const T *z = zero ? at_.at(p_.z, r, t) : nullptr, *v = zero ? at_.at(p_.v, r, t) : nullptr;
    const T *gv_n = last ? at_.batch(p_.gv_n, r) : nullptr, *ga_n = last ? at_.batch(p_.ga_n, r) : nullptr;
    T *out_delta = delta(r, t), *bias = p_.bias, *dv = Plain ? nullptr : at_.at(p_.dv, r, t);
    T *da = Plain ? nullptr : at_.at(p_.da, r, t), *dx = Plain ? nullptr : at_.at(p_.dx, r, t);
    const AlifRow<T, Adapts> row(p_, at_, r);
    AlifShared<V> all = all_;
    if (Plain) all.zero = false;
    const T decay = static_cast<T>(p_.decay);
    const bool learned = p_.units;
    const Saved saved = saved_at(r, t);
    const int64_t first = r * ld_;
    columns<T>(n_, [&](int64_t j, int count, auto full) __attribute__((always_inline)) {
      constexpr bool F = decltype(full)::value;
      const int64_t i = first + j;
      AlifIncoming<V> in{};
      if (Plain || gz) in.signal = read<F, V>(gz + j, count);
      if constexpr (P == Transport::Local && !Plain) {
        if (decay != 0) {
          if (!last) in.signal += decay * load<V>(extra_ + i);
          store<V>(extra_ + i, in.signal);
        }
      }
      if (!nothing) {
        in.moved = transported(i);
        in.v = load<V>(dv_ + i);
        if constexpr (Adapts) in.a = load<V>(da_ + i);
      }
      if (gv_n) in.last_v = read<F, V>(gv_n + j, count);
      if (Adapts && ga_n) in.last_a = read<F, V>(ga_n + j, count);
      const V spikes = zero ? read<F, V>(z + j, count) : V{}, voltage = zero ? read<F, V>(v + j, count) : V{};
      const AlifAdjoint<V> out =
          alif_adjoint<P, Adapts>(read<F, V>(psi + j, count), spikes, voltage, in, mu_, row.template units<F>(j, count), all);
      write<F, V>(out_delta + j, out.delta, count);
      if (bias) write<F, V>(bias + j, read<F, V>(bias + j, count) + out.delta, count);
      store<V>(dv_ + i, out.v);
      if constexpr (Adapts) store<V>(da_ + i, out.a);
      if constexpr (P != Transport::Local) store<V>(carry_ + i, out.carry);
      if (dv) write<F, V>(dv + j, out.v, count);
      if (da) write<F, V>(da + j, out.a, count);
      if (dx) write<F, V>(dx + j, out.excess, count);
      if (learned) add_units<F>(saved, j, count, out, row.template units<F>(j, count), all);
    });
  }

  // What the gradients of the units' constants read of a row's step. Null where there is nothing, or zeros.
  struct Saved {
    const T *z, *v, *a;  // before the step
    const T *next_v, *next_a;
  };
  Saved saved_at(int64_t r, int64_t t) const {
    if (!p_.units) return {};
    const bool start = t == 0;
    return {start ? at_.batch(p_.z0, r) : at_.at(p_.z, r, t - 1), start ? at_.batch(p_.v0, r) : at_.at(p_.v, r, t - 1),
            start ? at_.batch(p_.a0, r) : at_.at(p_.a, r, t - 1), at_.at(p_.v, r, t), at_.at(p_.a, r, t)};
  }
  template <bool F>
  RX_FN void add_units(const Saved& saved, int64_t j, int count, const AlifAdjoint<V>& by, const AlifUnit<V>& unit,
                       const AlifShared<V>& all) const {
    const auto from = [&](const T* x) __attribute__((always_inline)) { return x ? read<F, V>(x + j, count) : V{}; };
    const AlifBefore<V> before{from(saved.z), from(saved.v), from(saved.a)};
    const auto sums = alif_unit_gradient<Adapts>(by, from(saved.next_v), from(saved.next_a), before, p_.s.scaling, unit, all);
    T* to = p_.units + j;
    write<F, V>(to, read<F, V>(to, count) + sums.alpha, count);
    if constexpr (Adapts) {
      write<F, V>(to + n_, read<F, V>(to + n_, count) + sums.rho, count);
      write<F, V>(to + 2 * n_, read<F, V>(to + 2 * n_, count) + sums.beta, count);
    }
  }

  // The adjoints of the initial state.
  void start(int64_t r) {
    const T *z0 = at_.batch(p_.z0, r), *v0 = at_.batch(p_.v0, r);
    T *gz0 = at_.batch(p_.gz0, r), *gv0 = at_.batch(p_.gv0, r), *ga0 = at_.batch(p_.ga0, r);
    const AlifRow<T, Adapts> row(p_, at_, r);
    columns<T>(n_, [&](int64_t j, int count, auto full) __attribute__((always_inline)) {
      constexpr bool F = decltype(full)::value;
      const int64_t i = r * ld_ + j;
      const AlifBefore<V> out = alif_before<P, Adapts>(
          transported(i), load<V>(dv_ + i), Adapts ? load<V>(da_ + i) : V{}, z0 ? read<F, V>(z0 + j, count) : V{},
          v0 ? read<F, V>(v0 + j, count) : V{}, row.template units<F>(j, count), all_);
      write<F, V>(gz0 + j, out.z, count);
      write<F, V>(gv0 + j, out.v, count);
      if constexpr (Adapts) write<F, V>(ga0 + j, out.a, count);
    });
  }
};

template <class T, Transport P>
void alif_backward_run(const AlifBackward<T>& p, RowRange range, const T* packed, T* scratch) {
  if (p.beta.p) return AlifBackwardRun<T, P, true>(p, range, scratch).run(packed);
  AlifBackwardRun<T, P, false>(p, range, scratch).run(packed);
}

template <class T>
void alif_backward(const AlifBackward<T>& p, RowRange range, const T* packed, T* scratch) {
  switch (p.transport) {
    case Transport::Full:
      return alif_backward_run<T, Transport::Full>(p, range, packed, scratch);
    case Transport::Local:
      return alif_backward_run<T, Transport::Local>(p, range, packed, scratch);
    case Transport::Diagonal:
      return alif_backward_run<T, Transport::Diagonal>(p, range, packed, scratch);
    case Transport::Hop:
      return alif_backward_run<T, Transport::Hop>(p, range, packed, scratch);
    default:
      return alif_backward_run<T, Transport::State>(p, range, packed, scratch);
  }
}

}  // namespace RX_NS
}  // namespace rx
