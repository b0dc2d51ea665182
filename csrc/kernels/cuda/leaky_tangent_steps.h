// Steps of the tangents of the LeakyRNN recurrence, forward and backward (exact rule); see leaky_steps.h.
#pragma once
#include "kernels/cuda/leaky_steps.h"

namespace rx {
namespace cuda {

template <class T, bool Voltage>
struct ForwardJvpStep {
  using Number = T;
  using Params = LeakyForwardJvp<T>;
  static constexpr bool kBackwards = false, kTransposed = true, kFinishes = false;

  static __device__ __forceinline__ void begin(const Params& p, const Place<T>& at, Kept<T>& kept) {
    kept.carry = at.batch(p.dy0);
    kept.state = at.batch(p.ds0);
  }
  static __device__ __forceinline__ void run(const Params& p, const Place<T>& at, int64_t t, const Quad<T>& product,
                                             Kept<T>& kept) {
    if (t >= at.length) {
      at.put(p.dy, t, zero_quad<T>());
      at.put(p.daux, t, zero_quad<T>());
      at.put(p.du, t, zero_quad<T>());
      return;
    }
    const In<T>& states = Voltage ? p.aux : p.y;
    const Quad<T> dpre = at.get(p.dpre, t), phi = at.get(Voltage || p.s.unit_leak ? p.y : p.aux, t),
                  leak = at.unit(p.leak, p.s.n);
    Quad<T> dleak = zero_quad<T>(), before = dleak, now = dleak, du, aux;
    if (p.dleak.p) {
      dleak = at.unit(p.dleak, p.s.n);
      before = t > 0 ? at.get(states, t - 1) : at.batch(p.s0);
      now = at.get(states, t);
    }
    with_activation(p.s.act, [&](auto act) {
      using Act = decltype(act);
#pragma unroll
      for (int i = 0; i < kColumns; ++i) {
        du.v[i] = dpre.v[i] + product.v[i];
        const T k = leak.v[i], slope = Act::slope(phi.v[i]);
        T s, out;
        if constexpr (Voltage) {
          s = leaky_mix(kept.state.v[i], du.v[i], k) + dleak.v[i] * ((now.v[i] - before.v[i]) / positive(k));
          out = slope * s;
          aux.v[i] = s;
        } else {
          aux.v[i] = slope * du.v[i];
          s = leaky_mix(kept.state.v[i], aux.v[i], k) + dleak.v[i] * (phi.v[i] - before.v[i]);
          out = s;
        }
        kept.state.v[i] = s;
        kept.carry.v[i] = out;
      }
    });
    at.put(p.dy, t, kept.carry);
    at.put(p.daux, t, aux);
    at.put(p.du, t, du);
    if (t == at.length - 1) at.put_batch(p.ds_n, kept.state);
  }
};

template <class T, bool Voltage>
struct BackwardJvpStep {
  using Number = T;
  using Params = LeakyBackwardJvp<T>;
  static constexpr bool kBackwards = true, kTransposed = false, kFinishes = true;

  static __device__ __forceinline__ void begin(const Params&, const Place<T>&, Kept<T>& kept) {
    kept.carry = kept.state = zero_quad<T>();
  }
  static __device__ __forceinline__ void run(const Params& p, const Place<T>& at, int64_t t, const Quad<T>& product,
                                             Kept<T>& kept) {
    using D = Dual<T>;
    if (t >= at.length) {
      at.put(p.ddelta, t, zero_quad<T>());
      at.put(p.dlam, t, zero_quad<T>());
      return;
    }
    const bool first = t == at.length - 1, y_is_phi = Voltage || p.s.unit_leak, moving = p.dleak.p != nullptr;
    const Quad<T> zero = zero_quad<T>();
    const Quad<T> leak = at.unit(p.leak, p.s.n), dleak = at.unit(p.dleak, p.s.n), dgy = at.get(p.dgy, t),
                  phi = at.get(y_is_phi ? p.y : p.aux, t), dphi = at.get(y_is_phi ? p.dy : p.daux, t), lam = at.get(p.lam, t),
                  last = first ? at.batch(p.dgs_n) : zero, delta = Voltage && moving ? at.get(p.delta, t) : zero;
    // the primal adjoint of the state at t+1: lam (rate), delta / k (voltage)
    const Quad<T> next = !first && moving ? at.get(Voltage ? p.delta : p.lam, t + 1) : zero;
    Quad<T> ddelta, dlam;
    with_activation(p.s.act, [&](auto act) {
      using Act = decltype(act);
#pragma unroll
      for (int i = 0; i < kColumns; ++i) {
        const D k{leak.v[i], dleak.v[i]}, f{phi.v[i], dphi.v[i]};
        const T inverse = Voltage ? T(1) / positive(k.a) : T(1);
        D after{T(0), T(0)};
        T signal = dgy.v[i];
        if (!first) {
          after = {next.v[i] * inverse, kept.state.v[i]};
          signal += product.v[i];
        }
        if constexpr (!Voltage) signal += last.v[i];
        D adjoint{lam.v[i], signal};
        if constexpr (Voltage) {
          D d = leaky_voltage_adjoint<Act>(f, adjoint, after, k);
          d.b += last.v[i];
          if (moving) d.a = delta.v[i] * inverse;
          ddelta.v[i] = (k * d).b;
          kept.state.v[i] = d.b;
        } else {
          adjoint.b += (one_minus(k) * after).b;
          ddelta.v[i] = leaky_rate_delta<Act>(f, adjoint, k).b;
          kept.state.v[i] = adjoint.b;
        }
        dlam.v[i] = adjoint.b;
      }
    });
    kept.carry = ddelta;
    at.put(p.ddelta, t, ddelta);
    at.put(p.dlam, t, dlam);
  }
  static __device__ __forceinline__ void finish(const Params& p, const Place<T>& at, const Quad<T>& product, Kept<T>& kept) {
    const Quad<T> leak = at.unit(p.leak, p.s.n), dleak = at.unit(p.dleak, p.s.n),
                  next = p.dleak.p ? at.get(Voltage ? p.delta : p.lam, 0) : zero_quad<T>();
    Quad<T> dgs0;
#pragma unroll
    for (int i = 0; i < kColumns; ++i) {
      const T primal = Voltage ? next.v[i] / positive(leak.v[i]) : next.v[i];
      dgs0.v[i] = one_minus(leak.v[i]) * kept.state.v[i] - dleak.v[i] * primal;
    }
    at.put_batch(p.dgs0, dgs0);
    at.put_batch(p.dgy0, product);
  }
};

}  // namespace cuda
}  // namespace rx
