// Leaky integrate-and-fire unit, with adaptive threshold (ALIF) or without (LIF): value and adjoint of one step, element-wise.
// The recurrent products are the caller's. Instantiated with plain scalars or SIMD vectors. ' marks the step before.
//   v = alpha v' + c u - v_th z'  or, with the reset to zero,  v = alpha v' (1 - z') + c u,   u = pre + W z'
//   a = rho a' + z',  A = v_th + beta a,  z = 1 where v > A,  psi = (gamma / v_th) s((v - A) / v_th); both 0 while refractory
#pragma once
#include "cells/transport.h"
#include "kernels/primitives.h"

namespace rx {
namespace RX_NS {

// The shapes s of the surrogate derivative. `pi` is a parameter for its precision.
struct Triangular {
  template <class S>
  RX_FN static S value(S x, S pi) {
    static_cast<void>(pi);
    return max0(one_minus(x < 0 ? -x : x));
  }
};
struct FastSigmoid {
  template <class S>
  RX_FN static S value(S x, S pi) {
    static_cast<void>(pi);
    const S d = 1 + (x < 0 ? -x : x);
    return 1 / (d * d);
  }
};
struct Arctan {
  template <class S>
  RX_FN static S value(S x, S pi) {
    const S y = pi * x;
    return 1 / (1 + y * y);
  }
};

template <class S>
struct AlifShared {  // of all units
  S v_th, per_v_th;
  S height;  // gamma / v_th, psi at the threshold
  S pi;
  S spiked;     // counter after a spike: refractory steps + 1
  bool zero;    // reset to zero instead of by subtraction
  bool counts;  // there is a refractory period
};

template <class S>
struct AlifUnit {
  S alpha, scale;  // scale: c
  S rho, beta;     // not read without adaptation
};

// Before a step, and after it. The counter falls by 1 at every step and is `spiked` after a spike; a step that begins with
// more than 1 is refractory.
template <class S>
struct AlifState {
  S z, v, a, count;
};

// One step from u; returns psi.
template <class Surrogate, bool Adapts, class S>
RX_FN S alif_value(S u, AlifState<S>& state, const AlifUnit<S>& unit, const AlifShared<S>& all) {
  const S leak = unit.alpha * state.v;
  state.v = (all.zero ? leak * one_minus(state.z) : leak - all.v_th * state.z) + unit.scale * u;
  S threshold = all.v_th;
  if constexpr (Adapts) {
    state.a = unit.rho * state.a + state.z;
    threshold = threshold + unit.beta * state.a;
  }
  const S above = state.v - threshold;
  S psi = all.height * Surrogate::value(above * all.per_v_th, all.pi);
  state.z = step(above);
  if (all.counts) {
    psi = state.count > 1 ? S{} : psi;
    state.z = state.count > 1 ? S{} : state.z;
    state.count = state.z > 0 ? all.spiked : max0(state.count - 1);
  }
  return psi;
}

// What enters a step of the backward recursion. Without a step after it v, a and moved are zero.
template <class S>
struct AlifIncoming {
  S signal;          // gradient of z, filtered
  S moved;           // has come from the next step by the transport matrix
  S v, a;            // adjoints of v and a at the next step
  S last_v, last_a;  // gradients of the final state
};

template <class S>
struct AlifBefore {
  S z, v, a;  // adjoints of the state before a step, z without what is given from outside
};

// What a step hands to the state z, v before it. v is read, and z, only where the reset is to zero.
template <Transport P, bool Adapts, class S>
RX_FN AlifBefore<S> alif_before(S moved, S by_v, S by_a, S z, S v, const AlifUnit<S>& unit, const AlifShared<S>& all) {
  constexpr bool live = P == Transport::Full || P == Transport::Diagonal;  // the reset
  AlifBefore<S> out;
  const S kept = unit.alpha * by_v;
  out.v = all.zero ? kept * one_minus(z) : kept;
  out.z = moved;
  out.a = by_a;
  if constexpr (P == Transport::State) {
    out.v = out.v + moved;
    out.z = S{};
  }
  if constexpr (live) out.z = out.z - (all.zero ? kept * v : all.v_th * by_v);
  if constexpr (Adapts) {
    out.z = out.z + by_a;
    out.a = unit.rho * by_a;
  }
  return out;
}

template <class S>
struct AlifAdjoint {
  S delta;   // gradient of pre
  S v, a;    // adjoints of the state
  S excess;  // adjoint of v - A
  S carry;   // what the transport matrix is applied to
};

template <class S>
struct AlifUnitGradient {  // what a step adds to the gradients of a unit's constants
  S alpha, rho, beta;
};

// by: the step's adjoints; v, a: after the step; before: z, v and a before it.
template <bool Adapts, class S>
RX_FN AlifUnitGradient<S> alif_unit_gradient(const AlifAdjoint<S>& by, S v, S a, const AlifBefore<S>& before, bool scaling,
                                             const AlifUnit<S>& unit, const AlifShared<S>& all) {
  AlifUnitGradient<S> out{};
  S kept = all.zero ? before.v * one_minus(before.z) : before.v;
  if (scaling) {  // what v has beside the rest of its step is c u, and c = 1 - alpha
    S drive = v - unit.alpha * kept;
    if (!all.zero) drive = drive + all.v_th * before.z;
    kept = kept - drive / unit.scale;
  }
  out.alpha = by.v * kept;
  if constexpr (Adapts) {
    out.rho = by.a * before.a;
    out.beta = -(by.excess * a);
  }
  return out;
}

// z, v: after the step.
template <Transport P, bool Adapts, class S>
RX_FN AlifAdjoint<S> alif_adjoint(S psi, S z, S v, const AlifIncoming<S>& in, S mu, const AlifUnit<S>& unit,
                                  const AlifShared<S>& all) {
  const AlifBefore<S> sent = alif_before<P, Adapts>(in.moved, in.v, in.a, z, v, unit, all);
  AlifAdjoint<S> out;
  out.excess = psi * (in.signal + sent.z);
  out.v = out.excess + sent.v + in.last_v;
  out.a = in.last_a;
  if constexpr (Adapts) out.a = sent.a - unit.beta * out.excess + in.last_a;
  out.delta = unit.scale * out.v;
  out.carry = P == Transport::State ? out.v : out.delta;
  if constexpr (P == Transport::Hop) out.carry = psi * in.signal + mu * in.moved;
  return out;
}

}  // namespace RX_NS
}  // namespace rx
