// LSTM as PyTorch has it: values and adjoints of one step, element-wise. The recurrent products are the caller's.
// Instantiated with plain scalars or SIMD vectors.
//   i, f, o = sigma(u), g = tanh(u), c = f c' + i g, h = o tanh(c)
#pragma once
#include "cells/activations.h"

namespace rx {
namespace RX_NS {

template <class S>
struct LstmValue {
  S i, f, g, o, c;  // kept for the backward pass
  S h;
};

// From u = pre + W h' of the four gates.
template <class S>
RX_FN LstmValue<S> lstm_value(S u_i, S u_f, S u_g, S u_o, S before) {
  LstmValue<S> out;
  out.i = Sigmoid::value(u_i);
  out.f = Sigmoid::value(u_f);
  out.g = Tanh::value(u_g);
  out.o = Sigmoid::value(u_o);
  out.c = out.f * before + out.i * out.g;
  out.h = out.o * Tanh::value(out.c);
  return out;
}

// Tangents from those of the four u and of c'.
template <class S>
RX_FN LstmValue<S> lstm_tangent(S i, S f, S g, S o, S c, S before, S du_i, S du_f, S du_g, S du_o, S dbefore) {
  const S squashed = Tanh::value(c);
  LstmValue<S> out;
  out.i = Sigmoid::slope(i) * du_i;
  out.f = Sigmoid::slope(f) * du_f;
  out.g = Tanh::slope(g) * du_g;
  out.o = Sigmoid::slope(o) * du_o;
  out.c = out.f * before + f * dbefore + out.i * g + i * out.g;
  out.h = out.o * squashed + o * (Tanh::slope(squashed) * out.c);
  return out;
}

template <class S>
struct LstmAdjoint {
  S i, f, g, o;  // gradients of the pre-activations
  S before;      // adjoint of c'
};

// From the adjoint of h and what reaches c from the next step.
template <class S>
RX_FN LstmAdjoint<S> lstm_adjoint(S lam, S to_c, S i, S f, S g, S o, S c, S before) {
  const S squashed = Tanh::value(c), d = to_c + lam * o * Tanh::slope(squashed);
  LstmAdjoint<S> out;
  out.i = d * g * Sigmoid::slope(i);
  out.f = d * before * Sigmoid::slope(f);
  out.g = d * i * Tanh::slope(g);
  out.o = lam * squashed * Sigmoid::slope(o);
  out.before = d * f;
  return out;
}

}  // namespace RX_NS
}  // namespace rx
