// LeakyRNN, rate and voltage form: values and adjoints of one step, element-wise. The recurrent products are the caller's.
// Instantiated with plain scalars or SIMD vectors for values, with Dual<.> for tangents.
//   rate:    u = pre + W y',  s = (1-k) s' + k phi(u),  y = s
//   voltage: v = (1-k) v' + k (pre + W y'),  y = phi(v)
#pragma once
#include "cells/activations.h"

namespace rx {
namespace RX_NS {

// Leaky integration: the new state from the previous one and what enters. Exact for k = 1.
template <class S>
RX_FN S leaky_mix(S previous, S input, S k) {
  return one_minus(k) * previous + k * input;
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

}  // namespace RX_NS
}  // namespace rx
