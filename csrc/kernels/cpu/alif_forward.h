// Forward pass of ALIF and LIF, a tile of rows through all T steps.
#pragma once
#include "kernels/cpu/alif_rows.h"

namespace rx {
namespace RX_NS {

template <class T, class Surrogate, bool Adapts>
class AlifForwardRun {
  using V = Vec<T>;
  const AlifForward<T>& p_;
  const Rows<T> at_;
  const AlifShared<V> all_;
  const int64_t n_, ld_;
  T *z_, *v_, *a_, *count_, *product_;  // (rows, ld)
  Spikes<T> spikes_;                    // of z_

 public:
  AlifForwardRun(const AlifForward<T>& p, RowRange range, T* scratch)
      : p_(p),
        at_(p.s, range),
        all_(alif_shared<T>(p.s, p.gamma, p.refractory)),
        n_(p.s.n),
        ld_(scratch_stride<T>(n_)),
        z_(scratch),
        v_(z_ + at_.rows * ld_),
        a_(v_ + at_.rows * ld_),
        count_(a_ + at_.rows * ld_),
        product_(count_ + at_.rows * ld_),
        spikes_(at_.rows, n_) {
    for (int64_t r = 0; r < at_.rows; ++r) {
      if (!p.s.resume) {
        copy_in(z_, p.z0, r);
        copy_in(v_, p.v0, r);
        copy_in(a_, p.a0, r);
        copy_in(count_, p.count0, r);
      }
      spikes_.clear(r);
      if (at_.length[r] <= p.s.begin) continue;
      columns<T>(n_, [&](int64_t j, int, auto) { spikes_.add(r, j, load<V>(z_ + r * ld_ + j)); });
    }
  }

  void run(const T* packed) {
    for (int64_t t = p_.s.begin; t < p_.s.end; ++t) {
      for (int64_t r = 0; r < at_.rows; ++r) {
        at_.prefetch_row(at_.at(p_.pre, r, t), n_);
        at_.template prefetch_row<1>(at_.at(p_.z, r, t), n_);
        at_.template prefetch_row<1>(at_.at(p_.psi, r, t), n_);
      }
      spikes_.multiply(at_.rows, z_, ld_, packed, product_);
      for (int64_t r = 0; r < at_.rows; ++r) {
        if (t < at_.length[r]) {
          step(r, t);
          if (t == at_.length[r] - 1) finish(r);
        } else {
          for (T* x : {p_.z, p_.psi, p_.v, p_.a}) zero_row(at_.at(x, r, t), n_);
        }
      }
    }
  }

 private:
  void copy_in(T* to, const In<T>& from, int64_t r) {
    const T* source = at_.batch(from, r);
    for (int64_t j = 0; j < ld_; ++j) to[r * ld_ + j] = source && j < n_ ? source[j] : T(0);
  }
  void finish(int64_t r) {
    spikes_.clear(r);  // the row has ended
    T *v = at_.batch(p_.v_n, r), *a = at_.batch(p_.a_n, r), *count = at_.batch(p_.count_n, r);
    for (int64_t j = 0; j < n_; ++j) v[j] = v_[r * ld_ + j];
    for (int64_t j = 0; a && j < n_; ++j) a[j] = a_[r * ld_ + j];
    for (int64_t j = 0; count && j < n_; ++j) count[j] = count_[r * ld_ + j];
  }
  void step(int64_t r, int64_t t) {
    const T *pre = at_.at(p_.pre, r, t), *drive = at_.at(p_.drive, r, t), *bias = p_.bias;
    const AlifRow<T, Adapts> row(p_, at_, r);
    T *z = at_.at(p_.z, r, t), *psi = at_.at(p_.psi, r, t), *v = at_.at(p_.v, r, t), *a = at_.at(p_.a, r, t);
    const int64_t first = r * ld_;
    spikes_.clear(r);
    columns<T>(n_, [&](int64_t j, int count, auto full) __attribute__((always_inline)) {
      constexpr bool F = decltype(full)::value;
      AlifState<V> state{load<V>(z_ + first + j), load<V>(v_ + first + j), V{}, V{}};
      if constexpr (Adapts) state.a = load<V>(a_ + first + j);
      if (all_.counts) state.count = load<V>(count_ + first + j);
      V u = read<F, V>(pre + j, count);
      if (bias) u += read<F, V>(bias + j, count);
      if (drive) u += read<F, V>(drive + j, count);
      u += load<V>(product_ + first + j);
      const V slope = alif_value<Surrogate, Adapts>(u, state, row.template units<F>(j, count), all_);
      write<F, V>(psi + j, slope, count);
      write<F, V>(z + j, state.z, count);
      store<V>(z_ + first + j, state.z);
      store<V>(v_ + first + j, state.v);
      if (v) write<F, V>(v + j, state.v, count);
      if constexpr (Adapts) {
        store<V>(a_ + first + j, state.a);
        if (a) write<F, V>(a + j, state.a, count);
      }
      if (all_.counts) store<V>(count_ + first + j, state.count);
      spikes_.add(r, j, state.z);
    });
  }
};

template <class T, class Surrogate>
void alif_forward_run(const AlifForward<T>& p, RowRange range, const T* packed, T* scratch) {
  if (p.beta.p) return AlifForwardRun<T, Surrogate, true>(p, range, scratch).run(packed);
  AlifForwardRun<T, Surrogate, false>(p, range, scratch).run(packed);
}

template <class T>
void alif_forward(const AlifForward<T>& p, RowRange range, const T* packed, T* scratch) {
  switch (p.surrogate) {
    case rx::Surrogate::Triangular:
      return alif_forward_run<T, Triangular>(p, range, packed, scratch);
    case rx::Surrogate::FastSigmoid:
      return alif_forward_run<T, FastSigmoid>(p, range, packed, scratch);
    default:
      return alif_forward_run<T, Arctan>(p, range, packed, scratch);
  }
}

}  // namespace RX_NS
}  // namespace rx
