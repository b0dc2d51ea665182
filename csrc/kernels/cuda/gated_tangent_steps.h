// Steps of the tangents of gated cells, forward and backward (exact rule); see leaky_steps.h.
#pragma once
#include "cells/dual.h"
#include "kernels/cuda/gated_steps.h"

namespace rx {
namespace cuda {

template <class E, class Cell>
struct GatedForwardJvpStep {
  using Element = E;
  using T = ComputeOf<E>;
  using Params = GatedForwardJvp<T, E>;
  static constexpr int G = Cell::kGates, A = Cell::kAux;
  static constexpr int kCarries = 1, kProducts = G, kExtras = 0;
  static constexpr bool kBackwards = false, kTransposed = true, kFinishes = false;
  struct Loaded {
    Quad<T> du[4], aux[A], before;
  };
  using Keep = Kept<T, kCarries, kExtras>;

  static __device__ __forceinline__ void begin(const Params& p, const Place& at, Keep& kept) {
    kept.carry[0] = at.batch(p.dh0);
    kept.state = Cell::kOwnState ? at.batch(p.dc0) : kept.carry[0];
  }
  static __device__ __forceinline__ void load(const Params& p, const Place& at, int64_t t, Loaded& in) {
    if (t >= at.length) return;
#pragma unroll
    for (int k = 0; k < 4; ++k) in.du[k] = at.get<4>(p.du, t, k, p.s.n);
#pragma unroll
    for (int k = 0; k < A; ++k) in.aux[k] = at.get<A>(p.aux, t, k, p.s.n);
    in.before = state_before<Cell>(at, p.before, p.aux, p.y, t, p.s.n);
  }
  static __device__ __forceinline__ void run(const Params& p, const Place& at, int64_t t, const Loaded& in,
                                             const Quad<T>* product, Keep& kept) {
    if (t >= at.length) {
      at.put(p.dy, t, zero_quad<T>());
#pragma unroll
      for (int k = 0; k < A; ++k) at.put<A>(p.daux, t, k, p.s.n, zero_quad<T>());
      return;
    }
    Quad<T> daux[A];
#pragma unroll
    for (int i = 0; i < kColumns; ++i) {
      T u[4], m[G], a[A], d[A];
#pragma unroll
      for (int k = 0; k < 4; ++k) u[k] = in.du[k].v[i];
#pragma unroll
      for (int g = 0; g < G; ++g) m[g] = product[g].v[i];
#pragma unroll
      for (int k = 0; k < A; ++k) a[k] = in.aux[k].v[i];
      kept.carry[0].v[i] = Cell::tangent(a, in.before.v[i], u, m, kept.state.v[i], d);
#pragma unroll
      for (int k = 0; k < A; ++k) daux[k].v[i] = d[k];
    }
    at.put(p.dy, t, kept.carry[0]);
#pragma unroll
    for (int k = 0; k < A; ++k) at.put<A>(p.daux, t, k, p.s.n, daux[k]);
    if (t == at.length - 1) {
      at.put_batch(p.dh_n, kept.carry[0]);
      if constexpr (Cell::kOwnState) at.put_batch(p.dc_n, kept.state);
    }
  }
};

template <class E, class Cell>
struct GatedBackwardJvpStep {
  using Element = E;
  using T = ComputeOf<E>;
  using Params = GatedBackwardJvp<T, E>;
  static constexpr int G = Cell::kGates, A = Cell::kAux;
  static constexpr bool kOwnState = Cell::kOwnState;
  static constexpr int kCarries = G, kProducts = 1, kExtras = 0;
  static constexpr bool kBackwards = true, kTransposed = false, kFinishes = true;
  // Of LSTM in double not all operands fit into registers beside the product: tangents are read after it.
  static constexpr bool kLate = kOwnState && sizeof(T) == 8;
  struct Loaded {
    Quad<T> aux[A], daux[A], before, dbefore, lam, signal, to_c, last;
  };
  using Keep = Kept<T, kCarries, kExtras>;

  static __device__ __forceinline__ void begin(const Params&, const Place&, Keep&) {}
  static __device__ __forceinline__ void load(const Params& p, const Place& at, int64_t t, Loaded& in) {
    if (t >= at.length) return;
#pragma unroll
    for (int k = 0; k < A; ++k) in.aux[k] = at.get<A>(p.aux, t, k, p.s.n);
    in.before = state_before<Cell>(at, p.before, p.aux, p.y, t, p.s.n);
    if constexpr (!kLate) load_tangents(p, at, t, in);
    in.lam = at.get(p.lam, t);
    in.signal = at.get(p.dgy, t);
    const bool first = t == at.length - 1;
    if (first) {
      const Quad<T> dgh_n = at.batch(p.dgh_n);
#pragma unroll
      for (int i = 0; i < kColumns; ++i) in.signal.v[i] += dgh_n.v[i];
    }
    in.to_c = kOwnState ? at.get(p.to_c, t) : zero_quad<T>();
    in.last = kOwnState && first ? at.batch(p.dgc_n) : zero_quad<T>();
  }
  static __device__ __forceinline__ void load_tangents(const Params& p, const Place& at, int64_t t, Loaded& in) {
#pragma unroll
    for (int k = 0; k < A; ++k) in.daux[k] = at.get<A>(p.daux, t, k, p.s.n);
    in.dbefore = state_before<Cell>(at, p.dbefore, p.daux, p.dy, t, p.s.n);
  }
  static __device__ __forceinline__ void run(const Params& p, const Place& at, int64_t t, Loaded& in, const Quad<T>* product,
                                             Keep& kept) {
    using D = Dual<T>;
    if (t >= at.length) {
#pragma unroll
      for (int k = 0; k < 4; ++k) at.put<4>(p.ddelta, t, k, p.s.n, zero_quad<T>());
      return;
    }
    if constexpr (kLate) load_tangents(p, at, t, in);
    Quad<T> ddelta[4];
#pragma unroll
    for (int i = 0; i < kColumns; ++i) {
      // Values are the first pass's own; what GRU's state hands back is in lam already, so its value is zero here.
      D a[A], d[4], c[G], own{T(0), kept.state.v[i]};
#pragma unroll
      for (int k = 0; k < A; ++k) a[k] = {in.aux[k].v[i], in.daux[k].v[i]};
      const D lam{in.lam.v[i], in.signal.v[i] + product->v[i]}, last{in.to_c.v[i], in.last.v[i]};
      Cell::backward(lam, last, a, D{in.before.v[i], in.dbefore.v[i]}, own, d, c);
      kept.state.v[i] = own.b;
#pragma unroll
      for (int k = 0; k < 4; ++k) ddelta[k].v[i] = d[k].b;
#pragma unroll
      for (int g = 0; g < G; ++g) kept.carry[g].v[i] = c[g].b;
    }
#pragma unroll
    for (int k = 0; k < 4; ++k) at.put<4>(p.ddelta, t, k, p.s.n, ddelta[k]);
  }
  static __device__ __forceinline__ void finish(const Params& p, const Place& at, const Quad<T>* product, Keep& kept) {
    Quad<T> moved = *product;
    if constexpr (kOwnState) {
      at.put_batch(p.dgc0, kept.state);
    } else {
#pragma unroll
      for (int i = 0; i < kColumns; ++i) moved.v[i] += kept.state.v[i];
    }
    at.put_batch(p.dgh0, moved);
  }
};

}  // namespace cuda
}  // namespace rx
