// Steps of the tangents of the LeakyRNN recurrence, forward and backward (exact rule); see leaky_steps.h.
#pragma once
#include "cells/dual.h"
#include "kernels/cuda/leaky_steps.h"

namespace rx {
namespace cuda {

template <class E, bool Voltage>
struct ForwardJvpStep {
  using Element = E;
  using T = ComputeOf<E>;
  using Params = LeakyForwardJvp<T, E>;
  static constexpr int kCarries = 1, kProducts = 1, kExtras = 1;
  static constexpr bool kBackwards = false, kTransposed = true, kFinishes = false;
  struct Loaded {
    Quad<T> leak, dpre, phi, change;  // change: of the state (voltage), from the state to phi (rate)
  };

  static __device__ __forceinline__ void begin(const Params& p, const Place& at, Kept<T>& kept) {
    kept.carry[0] = at.batch(p.dy0);
    kept.state = at.batch(p.ds0);
    kept.extra[0] = at.unit(p.dleak, p.s.n);  // what `change` is multiplied by
    if constexpr (Voltage) {
      const Quad<T> leak = at.unit(p.leak, p.s.n);
#pragma unroll
      for (int i = 0; i < kColumns; ++i) kept.extra[0].v[i] = kept.extra[0].v[i] / positive(leak.v[i]);
    }
  }
  static __device__ __forceinline__ Quad<T> state(const Params& p, const Place& at, int64_t t) {
    if constexpr (Voltage) {
      return at.get(p.aux, t);
    } else {
      return at.get(p.y, t);
    }
  }
  static __device__ __forceinline__ void load(const Params& p, const Place& at, int64_t t, Loaded& in) {
    if (t >= at.length) return;
    in.leak = at.unit(p.leak, p.s.n);
    in.dpre = at.get(p.dpre, t);
    in.phi = Voltage || p.s.unit_leak ? at.get(p.y, t) : at.get(p.aux, t);
    in.change = zero_quad<T>();
    if (p.dleak.p == nullptr) return;
    const Quad<T> before = t > 0 ? state(p, at, t - 1) : at.batch(p.s0), now = Voltage ? state(p, at, t) : in.phi;
#pragma unroll
    for (int i = 0; i < kColumns; ++i) in.change.v[i] = now.v[i] - before.v[i];
  }
  static __device__ __forceinline__ void run(const Params& p, const Place& at, int64_t t, const Loaded& in,
                                             const Quad<T>* product, Kept<T>& kept) {
    if (t >= at.length) {
      at.put(p.dy, t, zero_quad<T>());
      at.put(p.daux, t, zero_quad<T>());
      at.put(p.du, t, zero_quad<T>());
      return;
    }
    Quad<T> du, aux;
    with_activation(p.s.act, [&](auto act) {
      using Act = decltype(act);
#pragma unroll
      for (int i = 0; i < kColumns; ++i) {
        du.v[i] = in.dpre.v[i] + product->v[i];
        const T k = in.leak.v[i], slope = Act::slope(in.phi.v[i]), extra = kept.extra[0].v[i] * in.change.v[i];
        if constexpr (Voltage) {
          kept.state.v[i] = aux.v[i] = leaky_mix(kept.state.v[i], du.v[i], k) + extra;
          kept.carry[0].v[i] = slope * kept.state.v[i];
        } else {
          aux.v[i] = slope * du.v[i];
          kept.state.v[i] = kept.carry[0].v[i] = leaky_mix(kept.state.v[i], aux.v[i], k) + extra;
        }
      }
    });
    at.put(p.dy, t, kept.carry[0]);
    at.put(p.daux, t, aux);
    at.put(p.du, t, du);
    if (t == at.length - 1) at.put_batch(p.ds_n, kept.state);
  }
};

template <class E, bool Voltage>
struct BackwardJvpStep {
  using Element = E;
  using T = ComputeOf<E>;
  using Params = LeakyBackwardJvp<T, E>;
  static constexpr int kCarries = 1, kProducts = 1, kExtras = 1;
  static constexpr bool kBackwards = true, kTransposed = false, kFinishes = true;
  struct Loaded {
    // adjoint, next: the primal adjoint of the state at t and t+1; in voltage form times the leak
    Quad<T> leak, dleak, dgy, phi, dphi, lam, last, adjoint, next;
  };

  static __device__ __forceinline__ void begin(const Params& p, const Place& at, Kept<T>& kept) {
    if constexpr (Voltage) {  // `extra`: one over the leak
      const Quad<T> leak = at.unit(p.leak, p.s.n);
#pragma unroll
      for (int i = 0; i < kColumns; ++i) kept.extra[0].v[i] = T(1) / positive(leak.v[i]);
    }
  }
  static __device__ __forceinline__ Quad<T> adjoint(const Params& p, const Place& at, int64_t t) {
    if constexpr (Voltage) {
      return at.get(p.delta, t);
    } else {
      return at.get(p.lam, t);
    }
  }
  static __device__ __forceinline__ void load(const Params& p, const Place& at, int64_t t, Loaded& in) {
    if (t >= at.length) return;
    const bool first = t == at.length - 1, y_is_phi = Voltage || p.s.unit_leak, moving = p.dleak.p != nullptr;
    in.leak = at.unit(p.leak, p.s.n);
    in.dleak = at.unit(p.dleak, p.s.n);
    in.dgy = at.get(p.dgy, t);
    in.phi = y_is_phi ? at.get(p.y, t) : at.get(p.aux, t);
    in.dphi = y_is_phi ? at.get(p.dy, t) : at.get(p.daux, t);
    in.lam = at.get(p.lam, t);
    in.last = first ? at.batch(p.dgs_n) : zero_quad<T>();
    in.adjoint = Voltage && moving ? adjoint(p, at, t) : zero_quad<T>();
    in.next = !first && moving ? adjoint(p, at, t + 1) : zero_quad<T>();
  }
  static __device__ __forceinline__ void run(const Params& p, const Place& at, int64_t t, const Loaded& in,
                                             const Quad<T>* product, Kept<T>& kept) {
    using D = Dual<T>;
    if (t >= at.length) {
      at.put(p.ddelta, t, zero_quad<T>());
      at.put(p.dlam, t, zero_quad<T>());
      return;
    }
    const bool first = t == at.length - 1, moving = p.dleak.p != nullptr;
    Quad<T> ddelta, dlam;
    with_activation(p.s.act, [&](auto act) {
      using Act = decltype(act);
#pragma unroll
      for (int i = 0; i < kColumns; ++i) {
        const D k{in.leak.v[i], in.dleak.v[i]}, f{in.phi.v[i], in.dphi.v[i]};
        const T inverse = Voltage ? kept.extra[0].v[i] : T(1);
        D after{T(0), T(0)};
        T signal = in.dgy.v[i];
        if (!first) {
          after = {in.next.v[i] * inverse, kept.state.v[i]};
          signal += product->v[i];
        }
        if constexpr (!Voltage) signal += in.last.v[i];
        D adjoint{in.lam.v[i], signal};
        if constexpr (Voltage) {
          D d = leaky_voltage_adjoint<Act>(f, adjoint, after, k);
          d.b += in.last.v[i];
          if (moving) d.a = in.adjoint.v[i] * inverse;
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
    kept.carry[0] = ddelta;
    at.put(p.ddelta, t, ddelta);
    at.put(p.dlam, t, dlam);
  }
  static __device__ __forceinline__ void finish(const Params& p, const Place& at, const Quad<T>* product, Kept<T>& kept) {
    const Quad<T> leak = at.unit(p.leak, p.s.n), dleak = at.unit(p.dleak, p.s.n),
                  primal = p.dleak.p ? adjoint(p, at, 0) : zero_quad<T>();
    Quad<T> dgs0;
#pragma unroll
    for (int i = 0; i < kColumns; ++i) {
      const T next = Voltage ? primal.v[i] * kept.extra[0].v[i] : primal.v[i];
      dgs0.v[i] = one_minus(leak.v[i]) * kept.state.v[i] - dleak.v[i] * next;
    }
    at.put_batch(p.dgs0, dgs0);
    at.put_batch(p.dgy0, *product);
  }
};

}  // namespace cuda
}  // namespace rx
