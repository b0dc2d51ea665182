// The four nonlinearities, and the one of gates. `value` maps a pre-activation u to phi(u); `slope` gives phi'(u) from the
// value phi(u) alone, so that only values are saved. `slope` is generic over plain and dual scalars: its tangent is the second
// derivative.
#pragma once
#include "cells/dual.h"

namespace rx {
namespace RX_NS {

struct Tanh {
  template <class S>
  RX_FN static S value(S u) {
    return tanh_(u);
  }
  template <class S>
  RX_FN static S slope(S phi) {
    return one_minus(phi * phi);
  }
};

struct Sigmoid {  // of gates
  template <class S>
  RX_FN static S value(S u) {
    return tanh_(u * 0.5f) * 0.5f + 0.5f;
  }
  template <class S>
  RX_FN static S slope(S phi) {
    return phi * one_minus(phi);
  }
};

struct Relu {
  template <class S>
  RX_FN static S value(S u) {
    return max0(u);
  }
  template <class S>
  RX_FN static S slope(S phi) {
    return step(phi);
  }
  template <class S>
  RX_FN static Dual<S> slope(Dual<S> phi) {
    return {step(phi.a), phi.a - phi.a};
  }
};

struct Softplus {
  template <class S>
  RX_FN static S value(S u) {
    return softplus_(u);
  }
  template <class S>
  RX_FN static S slope(S phi) {  // 1 - exp(-phi)
    return one_minus_exp_neg(phi);
  }
  template <class S>
  RX_FN static Dual<S> slope(Dual<S> phi) {
    const S s = one_minus_exp_neg(phi.a);
    return {s, one_minus(s) * phi.b};
  }
};

struct Identity {
  template <class S>
  RX_FN static S value(S u) {
    return u;
  }
  template <class S>
  RX_FN static S slope(S phi) {
    return one_like(phi);
  }
  template <class S>
  RX_FN static Dual<S> slope(Dual<S> phi) {
    return {one_like(phi.a), phi.a - phi.a};
  }
};

}  // namespace RX_NS
}  // namespace rx
