// LeakyRNN, rate and voltage form: values and adjoints of one step, element-wise. The recurrent products are the caller's.
// Instantiated with plain scalars or SIMD vectors for values, with Dual<.> for tangents.
//   rate:    u = pre + W y',  s = (1-k) s' + k phi(u),  y = s
//   voltage: v = (1-k) v' + k (pre + W y'),  y = phi(v)
#pragma once
#include "cells/activations.h"
#include "cells/transport.h"

namespace rx {
namespace RX_NS {

// Leaky integration: the new state from the previous one and what enters. Exact for k = 1.
template <class S>
RX_FN S leaky_mix(S previous, S input, S k) {
  return one_minus(k) * previous + k * input;
}

template <class S>
struct LeakyValue {
  S y;      // output
  S aux;    // kept for the backward pass: rate phi(u), voltage v
  S state;  // enters the next step: rate h, voltage v
};

// One step from u = pre + W y' and the state before it.
template <class Act, bool Voltage, class S>
RX_FN LeakyValue<S> leaky_value(S u, S previous, S k) {
  if constexpr (Voltage) {
    const S v = leaky_mix(previous, u, k);
    return {Act::value(v), v, v};
  } else {
    const S phi = Act::value(u), s = leaky_mix(previous, phi, k);
    return {s, phi, s};
  }
}

// rate: adjoint of the state at t from the signal, the transported term and the adjoint at t+1.
template <class S>
RX_FN S leaky_rate_adjoint(S signal, S transported, S next, S k) {
  return signal + transported + one_minus(k) * next;
}
// rate: gradient of the pre-activation, given lam = adjoint of the state.
template <class Act, class S>
RX_FN S leaky_rate_delta(S phi, S lam, S k) {
  return k * (Act::slope(phi) * lam);
}

// voltage: adjoint of v at t, given lam = adjoint of the output y at t and the adjoint of v at t+1.
template <class Act, class S>
RX_FN S leaky_voltage_adjoint(S y, S lam, S next, S k) {
  return Act::slope(y) * lam + one_minus(k) * next;
}

// What enters a step of the backward recursion. `moved` has come from t+1 by the transport matrix, `next` is the adjoint of
// the state there; both are zero at a row's last step. `extra` is the gradient of aux. The gradient of the final state enters
// the last step: in rate form as part of the signal, in voltage form as `last`.
template <class S>
struct LeakyIncoming {
  S signal, moved, next, extra, last;
};

template <class S>
struct LeakyAdjoint {
  S delta;  // gradient of the pre-activation
  S lam;    // adjoint of the output before its map: rate of h, voltage of z
  S state;  // adjoint of the state, `next` of the step before
  S carry;  // what the transport matrix is applied to
};

template <class Act, bool Voltage, Transport P, class S>
RX_FN LeakyAdjoint<S> leaky_adjoint(S phi, const LeakyIncoming<S>& in, S k, S mu) {
  const S slope = Act::slope(phi);
  LeakyAdjoint<S> out;
  if constexpr (Voltage) {
    out.lam = P == Transport::State ? in.signal : in.signal + in.moved;
    out.state = leaky_voltage_adjoint<Act>(phi, out.lam, in.next, k) + in.extra;
    if constexpr (P == Transport::State) out.state = out.state + in.moved;
    out.state = out.state + in.last;
    out.delta = k * out.state;
  } else {
    out.lam = leaky_rate_adjoint(in.signal, in.moved, in.next, k);
    out.state = out.lam;
    out.delta = leaky_rate_delta<Act>(phi, out.lam, k) + slope * in.extra;
  }
  out.carry = P == Transport::State ? out.state : out.delta;
  if constexpr (P == Transport::Hop) out.carry = slope * in.signal + mu * in.moved;
  return out;
}

}  // namespace RX_NS
}  // namespace rx
