// GRU with the reset after the product, as PyTorch and cuDNN have it: values and adjoints of one step, element-wise. The
// recurrent products are the caller's. Instantiated with plain scalars or SIMD vectors.
//   r = sigma(u_r), z = sigma(u_z), m = W_q h' + b, q = tanh(u_q + r m), h = (1-z) q + z h'
#pragma once
#include "cells/activations.h"

namespace rx {
namespace RX_NS {

template <class S>
struct GruValue {
  S r, z, q, m;  // kept for the backward pass
  S h;
};

// From u = pre + W h' of the first two gates, pre of the third and its product m.
template <class S>
RX_FN GruValue<S> gru_value(S u_r, S u_z, S pre_q, S m, S before) {
  GruValue<S> out;
  out.r = Sigmoid::value(u_r);
  out.z = Sigmoid::value(u_z);
  out.m = m;
  out.q = Tanh::value(pre_q + out.r * m);
  out.h = out.q + out.z * (before - out.q);
  return out;
}

// Tangents from those of u_r, u_z, pre_q, m and h'.
template <class S>
RX_FN GruValue<S> gru_tangent(S r, S z, S q, S m, S before, S du_r, S du_z, S dpre_q, S dm, S dbefore) {
  GruValue<S> out;
  out.r = Sigmoid::slope(r) * du_r;
  out.z = Sigmoid::slope(z) * du_z;
  out.m = dm;
  out.q = Tanh::slope(q) * (dpre_q + out.r * m + r * dm);
  out.h = out.q + out.z * (before - q) + z * (dbefore - out.q);
  return out;
}

template <class S>
struct GruAdjoint {
  S r, z, q, m;  // gradients of the three pre-activations and of m
  S before;      // what passes to h' other than through the recurrent weights
};

// From lam, the adjoint of h.
template <class S>
RX_FN GruAdjoint<S> gru_adjoint(S lam, S r, S z, S q, S m, S before) {
  GruAdjoint<S> out;
  out.z = lam * (before - q) * Sigmoid::slope(z);
  out.q = lam * one_minus(z) * Tanh::slope(q);
  out.r = out.q * m * Sigmoid::slope(r);
  out.m = out.q * r;
  out.before = lam * z;
  return out;
}

}  // namespace RX_NS
}  // namespace rx
