// Gated cells in terms of their maths, with values side by side as kernels have them. V: a number, a SIMD vector, or a dual.
#pragma once
#include "cells/gru.h"
#include "cells/lstm.h"

namespace rx {
namespace RX_NS {

// Of both cells: `forward` takes u (pre-activations of all gates) and the products of the carry with W, and makes the values
// to keep, the new state and the output; `backward` takes the adjoint of the output and what the state's own path hands back
// (`kept`), and makes the gradients `delta` and what W is applied to.
struct Gru {
  static constexpr int kGates = 3, kAux = 4;
  static constexpr bool kOwnState = false;  // the state is the output
  template <class V>
  static RX_FN V forward(const V* pre, const V* product, V bias, V& state, V* aux) {
    const GruValue<V> out = gru_value(pre[0] + product[0], pre[1] + product[1], pre[2], product[2] + bias, state);
    aux[0] = out.r;
    aux[1] = out.z;
    aux[2] = out.q;
    aux[3] = out.m;
    return state = out.h;
  }
  template <class V>
  static RX_FN void backward(V lam, V last, const V* aux, V before, V& kept, V* delta, V* carry) {
    static_cast<void>(last);
    const GruAdjoint<V> out = gru_adjoint(lam + kept, aux[0], aux[1], aux[2], aux[3], before);
    carry[0] = delta[0] = out.r;
    carry[1] = delta[1] = out.z;
    delta[2] = out.q;
    carry[2] = delta[3] = out.m;
    kept = out.before;
  }
  // du (4) and the products of dh' with W; `dstate` is the tangent of h'.
  template <class V>
  static RX_FN V tangent(const V* aux, V before, const V* du, const V* product, V& dstate, V* daux) {
    const GruValue<V> out = gru_tangent(aux[0], aux[1], aux[2], aux[3], before, du[0] + product[0], du[1] + product[1], du[2],
                                        du[3] + product[2], dstate);
    daux[0] = out.r;
    daux[1] = out.z;
    daux[2] = out.q;
    daux[3] = out.m;
    return dstate = out.h;
  }
};

struct Lstm {
  static constexpr int kGates = 4, kAux = 5;
  static constexpr bool kOwnState = true;  // c, the last of the values kept
  template <class V>
  static RX_FN V forward(const V* pre, const V* product, V, V& state, V* aux) {
    const LstmValue<V> out =
        lstm_value(pre[0] + product[0], pre[1] + product[1], pre[2] + product[2], pre[3] + product[3], state);
    aux[0] = out.i;
    aux[1] = out.f;
    aux[2] = out.g;
    aux[3] = out.o;
    aux[4] = state = out.c;
    return out.h;
  }
  template <class V>
  static RX_FN void backward(V lam, V last, const V* aux, V before, V& kept, V* delta, V* carry) {
    const LstmAdjoint<V> out = lstm_adjoint(lam, kept + last, aux[0], aux[1], aux[2], aux[3], aux[4], before);
    carry[0] = delta[0] = out.i;
    carry[1] = delta[1] = out.f;
    carry[2] = delta[2] = out.g;
    carry[3] = delta[3] = out.o;
    kept = out.before;
  }
  template <class V>
  static RX_FN V tangent(const V* aux, V before, const V* du, const V* product, V& dstate, V* daux) {
    const LstmValue<V> out = lstm_tangent(aux[0], aux[1], aux[2], aux[3], aux[4], before, du[0] + product[0],
                                          du[1] + product[1], du[2] + product[2], du[3] + product[3], dstate);
    daux[0] = out.i;
    daux[1] = out.f;
    daux[2] = out.g;
    daux[3] = out.o;
    daux[4] = dstate = out.c;
    return out.h;
  }
};

}  // namespace RX_NS
}  // namespace rx
