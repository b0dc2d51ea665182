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

// Numbers between rows of `wide` values of a unit; room for the vector that begins with the last ones.
template <class T>
int64_t gated_stride(int64_t n, int64_t wide) {
  return scratch_stride<T>(wide * n + lanes<Vec<T>>());
}

// The state of row r before step t, or its tangent: the first one, else what `aux` (LSTM) or `y` (GRU) keeps of the last step.
template <class Cell, class T>
const T* state_before(const Rows<T>& at, const In<T>& first, const In<T>& aux, const In<T>& y, int64_t r, int64_t t) {
  if (t == 0) return at.batch(first, r);
  if (Cell::kOwnState) return at.at(aux, r, t - 1, Cell::kAux) + (Cell::kAux - 1) * at.n;
  return at.at(y, r, t - 1);
}

// A row of `p` in the columns from j, zeros where it is null.
template <bool F, class V>
RX_FN V read_or_zero(const typename Lane<V>::type* p, int64_t j, int count) {
  return p ? read<F, V>(p + j, count) : V{};
}

// Steps through time of a tile, from the first to the last: a product of the carry (n) with W for all gates, then `step(r, t,
// product, carry, state)` for each row in time, which leaves the row's carry and state. Their first values are h0 and, of
// LSTM, c0; the last ones go to h_n and c_n.
template <class T, class Cell, class P, class Rest, class Step>
inline __attribute__((always_inline)) void gated_steps(const P& p, const Rows<T>& at, const T* packed, T* scratch, In<T> h0,
                                                       In<T> c0, T* h_n, T* c_n, Rest&& rest, Step&& step) {
  const int64_t n = at.n, ld = gated_stride<T>(n, 1), wide = gated_stride<T>(n, Cell::kGates);
  T* carry = scratch;                 // (rows, ld): h
  T* state = carry + at.rows * ld;    // (rows, ld): GRU h, LSTM c
  T* product = state + at.rows * ld;  // (rows, wide)
  for (int64_t r = 0; !p.s.resume && r < at.rows; ++r) {
    const T *h = at.batch(h0, r), *c = Cell::kOwnState ? at.batch(c0, r) : h;
    for (int64_t j = 0; j < ld; ++j) {
      carry[r * ld + j] = h && j < n ? h[j] : T(0);
      state[r * ld + j] = c && j < n ? c[j] : T(0);
    }
  }
  for (int64_t t = p.s.begin; t < p.s.end; ++t) {
    for (int64_t r = 0; r < at.rows; ++r) at.prefetch_row(at.at(p.aux, r, t, Cell::kAux), Cell::kAux * n);
    gemm<T>(at.rows, carry, ld, packed, n, Cell::kGates * n, product, wide, true);
    for (int64_t r = 0; r < at.rows; ++r) {
      if (t >= at.length[r]) {
        rest(r, t);
        continue;
      }
      step(r, t, product + r * wide, carry + r * ld, state + r * ld);
      if (t < at.length[r] - 1) continue;
      T *h = at.batch(h_n, r), *c = at.batch(c_n, r);
      for (int64_t j = 0; j < n; ++j) h[j] = carry[r * ld + j];
      for (int64_t j = 0; c && j < n; ++j) c[j] = state[r * ld + j];
    }
  }
}

}  // namespace RX_NS
}  // namespace rx
