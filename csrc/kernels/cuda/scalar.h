// The elementary operations of csrc/cells on plain numbers, for CUDA kernels: float and double. NaN passes through.
#pragma once
#include <cmath>

#include "kernels/config.h"

namespace rx {
namespace RX_NS {

template <class S>
RX_FN S one_like(S) {
  return S(1);
}
template <class S>
RX_FN S one_minus(S x) {
  return S(1) - x;
}
template <class S>
RX_FN S max0(S x) {
  return x <= S(0) ? S(0) : x;
}
template <class S>
RX_FN S step(S x) {
  return x > S(0) ? S(1) : S(0);
}
template <class S>
RX_FN S positive(S x) {
  return x > S(0) ? x : S(1);
}

RX_FN float fused(float x, float y, float z) {
  return fmaf(x, y, z);
}
RX_FN double fused(double x, double y, double z) {
  return fma(x, y, z);
}
RX_FN float tanh_(float x) {
  return tanhf(x);
}
RX_FN double tanh_(double x) {
  return tanh(x);
}
RX_FN float softplus_(float x) {
  return max0(x) + log1pf(expf(-fabsf(x)));  // max0, since fmaxf drops a NaN
}
RX_FN double softplus_(double x) {
  return max0(x) + log1p(exp(-fabs(x)));
}
RX_FN float one_minus_exp_neg(float x) {
  return -expm1f(-x);
}
RX_FN double one_minus_exp_neg(double x) {
  return -expm1(-x);
}

}  // namespace RX_NS
}  // namespace rx
