// One step of the recurrences of ALIF and LIF, forward and backward, for four columns of a row; see leaky_steps.h. The
// surrogate, the reset and the policies that multiply are branches that all threads of a launch take alike.
#pragma once
#include "cells/alif.h"
#include "kernels/alif.h"
#include "kernels/cuda/rows.h"

namespace rx {
namespace cuda {

using namespace RX_NS;

// An operation's parameters, and what a kernel would have to divide for.
template <class P, class S>
struct WithShared : P {
  AlifShared<S> all;
};

template <class T>
AlifShared<T> alif_shared(const AlifShape& s, double gamma, int64_t refractory) {
  return {static_cast<T>(s.v_th),
          static_cast<T>(1 / s.v_th),
          static_cast<T>(gamma / s.v_th),
          static_cast<T>(3.14159265358979323846),
          static_cast<T>(refractory + 1),
          s.reset == Reset::Zero,
          refractory > 0};
}

// f(Shape{}) for the surrogate; the name of its number is hidden by that of the namespace with the shapes.
template <class F>
__device__ __forceinline__ void with_surrogate(rx::Surrogate surrogate, F&& f) {
  switch (surrogate) {
    case rx::Surrogate::Triangular:
      return f(Triangular{});
    case rx::Surrogate::FastSigmoid:
      return f(FastSigmoid{});
    default:
      return f(Arctan{});
  }
}

template <Transport P>
struct Policy {
  static constexpr Transport kValue = P;
};
// f(Policy<..>{}); Full stands for all that multiply.
template <Transport P, class F>
__device__ __forceinline__ void with_policy(Transport asked, F&& f) {
  if constexpr (P == Transport::Full) {
    if (asked == Transport::Hop) return f(Policy<Transport::Hop>{});
    if (asked == Transport::State) return f(Policy<Transport::State>{});
  }
  f(Policy<P>{});
}

// The constants of four units.
template <class T, bool Adapts>
struct AlifUnits {
  Quad<T> alpha, rho, beta;

  template <class Params>
  __device__ __forceinline__ void load(const Params& p, const Place& at) {
    alpha = at.unit(p.alpha, p.s.n);
    if constexpr (Adapts) {
      rho = at.unit(p.rho, p.s.n);
      beta = at.unit(p.beta, p.s.n);
    }
  }
  __device__ __forceinline__ AlifUnit<T> get(int i, bool scaling) const {
    const T a = alpha.v[i], scale = scaling ? one_minus(a) : T(1);
    if constexpr (Adapts) return {a, scale, rho.v[i], beta.v[i]};
    return {a, scale, T(0), T(0)};
  }
};

template <class E, bool Adapts>
struct AlifForwardStep {
  using Element = E;
  using T = ComputeOf<E>;
  using Params = WithShared<AlifForward<T>, T>;
  // extra: the refractory counter, and a
  static constexpr int kCarries = 1, kProducts = 1, kExtras = Adapts ? 2 : 1;
  static constexpr bool kBackwards = false, kTransposed = true, kFinishes = false;
  static constexpr bool kExtrasMove = true, kReadsCarry = true;
  struct Loaded {
    Quad<T> pre;
    AlifUnits<T, Adapts> units;
  };
  using Keep = Kept<T, kCarries, kExtras>;

  static __device__ __forceinline__ void begin(const Params& p, const Place& at, Keep& kept) {
    kept.carry[0] = at.batch(p.z0);
    kept.state = at.batch(p.v0);
    kept.extra[0] = at.batch(p.count0);
    if constexpr (Adapts) kept.extra[1] = at.batch(p.a0);
  }
  static __device__ __forceinline__ void load(const Params& p, const Place& at, int64_t t, Loaded& in) {
    if (t >= at.length) return;
    in.pre = at.get(p.pre, t);
    in.units.load(p, at);
  }
  static __device__ __forceinline__ void run(const Params& p, const Place& at, int64_t t, const Loaded& in,
                                             const Quad<T>* product, Keep& kept) {
    if (t >= at.length) {
      for (T* x : {p.z, p.psi, p.v, p.a}) at.put(x, t, zero_quad<T>());
      return;
    }
    Quad<T> psi;
    with_surrogate(p.surrogate, [&](auto shape) {
      using Shape = decltype(shape);
#pragma unroll
      for (int i = 0; i < kColumns; ++i) {
        AlifState<T> state{kept.carry[0].v[i], kept.state.v[i], Adapts ? kept.extra[kExtras - 1].v[i] : T(0),
                           kept.extra[0].v[i]};
        psi.v[i] = alif_value<Shape, Adapts>(in.pre.v[i] + product->v[i], state, in.units.get(i, p.s.scaling), p.all);
        kept.carry[0].v[i] = state.z;
        kept.state.v[i] = state.v;
        kept.extra[0].v[i] = state.count;
        if constexpr (Adapts) kept.extra[1].v[i] = state.a;
      }
    });
    at.put(p.z, t, kept.carry[0]);
    at.put(p.psi, t, psi);
    at.put(p.v, t, kept.state);
    if constexpr (Adapts) at.put(p.a, t, kept.extra[1]);
    if (t == at.length - 1) {
      at.put_batch(p.v_n, kept.state);
      at.put_batch(p.count_n, kept.extra[0]);
      if constexpr (Adapts) at.put_batch(p.a_n, kept.extra[1]);
    }
  }
};

// P: Full (and Hop and State, as the parameters say), Local or Diagonal.
template <class E, bool Adapts, Transport P>
struct AlifBackwardStep {
  using Element = E;
  using T = ComputeOf<E>;
  using Params = WithShared<AlifBackward<T>, T>;
  // extra: the filtered signal or each unit's weight onto itself; the adjoint of a comes last. state: the adjoint of v
  static constexpr int kCarries = 1, kProducts = 1, kExtras = (P == Transport::Full ? 0 : 1) + (Adapts ? 1 : 0);
  static constexpr bool kBackwards = true, kTransposed = false, kFinishes = true, kExtrasMove = Adapts;
  struct Loaded {
    Quad<T> psi, signal, z, v;
    AlifUnits<T, Adapts> units;
  };
  using Keep = Kept<T, kCarries, kExtras>;

  static __device__ __forceinline__ void begin(const Params& p, const Place& at, Keep& kept) {
    if constexpr (P == Transport::Diagonal) {
      const E* w = p.w.p + (p.w.lead ? at.l * p.s.n * p.s.n : 0);
#pragma unroll
      for (int i = 0; i < kColumns; ++i) {
        if (RX_BOUND(14, i < at.count)) kept.extra[0].v[i] = w[(at.j + i) * (p.s.n + 1)];
      }
    }
  }
  static __device__ __forceinline__ void load(const Params& p, const Place& at, int64_t t, Loaded& in) {
    if (t >= at.length) return;
    in.psi = at.get(p.psi, t);
    in.signal = at.get(p.gz, t);
    in.z = in.v = zero_quad<T>();
    if (p.all.zero) {
      in.z = at.get(p.z, t);
      in.v = at.get(p.v, t);
    }
    in.units.load(p, at);
  }
  static __device__ __forceinline__ Quad<T> moved_of(const Quad<T>* product, const Keep& kept) {
    if constexpr (P == Transport::Full) return *product;
    Quad<T> moved = zero_quad<T>();
    if constexpr (P == Transport::Diagonal) {
#pragma unroll
      for (int i = 0; i < kColumns; ++i) moved.v[i] = kept.extra[0].v[i] * kept.carry[0].v[i];
    }
    return moved;
  }
  static __device__ __forceinline__ void run(const Params& p, const Place& at, int64_t t, const Loaded& in,
                                             const Quad<T>* product, Keep& kept) {
    if (t >= at.length) {
      for (T* x : {p.delta, p.dv, p.da, p.dx}) at.put(x, t, zero_quad<T>());
      return;
    }
    const bool first = t == at.length - 1;  // no step after it: nothing is carried in yet
    const bool empty = first || (p.window > 0 && (at.length - t - 1) % p.window == 0);
    Quad<T> moved = zero_quad<T>(), last_v = moved, last_a = moved, delta, excess;
    if (empty) {
      kept.state = moved;
      if constexpr (Adapts) kept.extra[kExtras - 1] = moved;
    } else {
      moved = moved_of(product, kept);
    }
    if (first) {
      last_v = at.batch(p.gv_n);
      if constexpr (Adapts) last_a = at.batch(p.ga_n);
    }
    const T mu = static_cast<T>(p.mu), decay = static_cast<T>(p.decay);
    with_policy<P>(p.transport, [&](auto policy) {
#pragma unroll
      for (int i = 0; i < kColumns; ++i) {
        T signal = in.signal.v[i];
        if constexpr (P == Transport::Local) {
          if (decay != T(0)) {
            if (!first) signal += decay * kept.extra[0].v[i];
            kept.extra[0].v[i] = signal;
          }
        }
        const T by_a = Adapts ? kept.extra[Adapts ? kExtras - 1 : 0].v[i] : T(0);
        const AlifIncoming<T> incoming{signal, moved.v[i], kept.state.v[i], by_a, last_v.v[i], last_a.v[i]};
        const AlifAdjoint<T> out = alif_adjoint<decltype(policy)::kValue, Adapts>(in.psi.v[i], in.z.v[i], in.v.v[i], incoming,
                                                                                  mu, in.units.get(i, p.s.scaling), p.all);
        kept.state.v[i] = out.v;
        kept.carry[0].v[i] = out.carry;
        if constexpr (Adapts) kept.extra[kExtras - 1].v[i] = out.a;
        delta.v[i] = out.delta;
        excess.v[i] = out.excess;
      }
    });
    at.put(p.delta, t, delta);
    at.put(p.dv, t, kept.state);
    if constexpr (Adapts) at.put(p.da, t, kept.extra[kExtras - 1]);
    at.put(p.dx, t, excess);
  }
  // The adjoints of z_0, v_0 and a_0, from the product of the first step's carry.
  static __device__ __forceinline__ void finish(const Params& p, const Place& at, const Quad<T>* product, Keep& kept) {
    const Quad<T> moved = moved_of(product, kept), z0 = at.batch(p.z0), v0 = at.batch(p.v0);
    AlifUnits<T, Adapts> units;
    units.load(p, at);
    Quad<T> gz0, gv0, ga0;
    with_policy<P>(p.transport, [&](auto policy) {
#pragma unroll
      for (int i = 0; i < kColumns; ++i) {
        const T by_a = Adapts ? kept.extra[Adapts ? kExtras - 1 : 0].v[i] : T(0);
        const AlifBefore<T> out = alif_before<decltype(policy)::kValue, Adapts>(moved.v[i], kept.state.v[i], by_a, z0.v[i],
                                                                                v0.v[i], units.get(i, p.s.scaling), p.all);
        gz0.v[i] = out.z;
        gv0.v[i] = out.v;
        ga0.v[i] = out.a;
      }
    });
    at.put_batch(p.gz0, gz0);
    at.put_batch(p.gv0, gv0);
    if constexpr (Adapts) at.put_batch(p.ga0, ga0);
  }
};

}  // namespace cuda
}  // namespace rx
