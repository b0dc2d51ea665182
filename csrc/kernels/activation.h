// From the nonlinearity as a number to its type.
#pragma once
#include "cells/activations.h"
#include "kernels/leaky.h"

namespace rx {
namespace RX_NS {

// f(Act{}) for the activation.
template <class F>
RX_FN void with_activation(Activation act, F&& f) {
  switch (act) {
    case Activation::Tanh:
      return f(Tanh{});
    case Activation::Relu:
      return f(Relu{});
    case Activation::Softplus:
      return f(Softplus{});
    default:
      return f(Identity{});
  }
}

}  // namespace RX_NS
}  // namespace rx
