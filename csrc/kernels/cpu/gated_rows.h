// What the kernels of gated cells share on the CPU: each cell in terms of its maths, and where a tile's rows lie.
#pragma once
#include "cells/gru.h"
#include "cells/lstm.h"
#include "kernels/cpu/leaky_rows.h"
#include "kernels/gated.h"

namespace rx {
namespace RX_NS {

// Of both cells: `forward` takes u (pre-activations of all gates) and the products of the carry with W, and makes the values
// to keep, the new state and the output; `backward` takes the adjoint of the output and what the state's own path hands back
// (`kept`), and makes the gradients `delta` and what W is applied to.
struct Gru {
  static constexpr int kGates = 3, kAux = 4;
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

// Numbers between rows of `wide` values of a unit; room for the vector that begins with the last ones.
template <class T>
int64_t gated_stride(int64_t n, int64_t wide) {
  return scratch_stride<T>(wide * n + lanes<Vec<T>>());
}

// Rows of a tile in arrays of (.., n) and of (.., k n).
template <class T>
struct GatedRows {
  int64_t rows, n, steps;
  int64_t l[kMaxRows], length[kMaxRows], full[kMaxRows], shared[kMaxRows], flat[kMaxRows];

  GatedRows(const GatedShape& s, RowRange range) : rows(range.end - range.begin), n(s.n), steps(s.B * s.n) {
    for (int64_t r = 0; r < rows; ++r) {
      l[r] = (range.begin + r) / s.B;
      const int64_t b = (range.begin + r) % s.B;
      length[r] = s.lengths ? s.lengths[b] : s.T;
      full[r] = (l[r] * s.T * s.B + b) * n;
      shared[r] = b * n;
      flat[r] = (l[r] * s.B + b) * n;
    }
  }
  const T* at(const In<T>& x, int64_t r, int64_t t, int64_t k = 1) const {
    return x.p ? x.p + ((x.lead ? full[r] : shared[r]) + t * steps) * k : nullptr;
  }
  T* at(T* x, int64_t r, int64_t t, int64_t k = 1) const { return x ? x + (full[r] + t * steps) * k : nullptr; }
  const T* batch(const In<T>& x, int64_t r) const { return x.p ? x.p + (x.lead ? flat[r] : shared[r]) : nullptr; }
  T* batch(T* x, int64_t r) const { return x ? x + flat[r] : nullptr; }
  const T* unit(const In<T>& x, int64_t r) const { return x.p ? x.p + (x.lead ? l[r] * n : 0) : nullptr; }
  void prefetch(const T* p, int64_t count) const {
    for (int64_t j = 0; j < count; j += 64 / static_cast<int64_t>(sizeof(T))) __builtin_prefetch(p + j, 0, 3);
  }
};

}  // namespace RX_NS
}  // namespace rx
