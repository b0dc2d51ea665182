// Dual numbers: value and tangent. Instantiating a cell's pointwise maths with Dual<S> gives its tangents.
#pragma once
#include "kernels/primitives.h"

namespace rx {
namespace RX_NS {

template <class S>
struct Dual {
  S a;  // value
  S b;  // tangent
};

template <class S>
RX_FN Dual<S> operator+(Dual<S> x, Dual<S> y) {
  return {x.a + y.a, x.b + y.b};
}
template <class S>
RX_FN Dual<S> operator-(Dual<S> x, Dual<S> y) {
  return {x.a - y.a, x.b - y.b};
}
template <class S>
RX_FN Dual<S> operator*(Dual<S> x, Dual<S> y) {
  return {x.a * y.a, x.a * y.b + x.b * y.a};
}
template <class S>
RX_FN Dual<S> one_minus(Dual<S> x) {
  return {one_minus(x.a), -x.b};
}
template <class S>
RX_FN Dual<S> tanh_(Dual<S> x) {
  const S value = tanh_(x.a);
  return {value, one_minus(value * value) * x.b};
}

}  // namespace RX_NS
}  // namespace rx
