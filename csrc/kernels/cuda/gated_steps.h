// One step of the recurrences of gated cells, forward and backward, for four columns of a row; see leaky_steps.h.
#pragma once
#include "kernels/cuda/rows.h"
#include "kernels/gated.h"
#include "kernels/gated_cells.h"

namespace rx {
namespace cuda {

using namespace RX_NS;

// The state before step t, or its tangent: the first one, else what `aux` (LSTM) or `y` (GRU) keeps of the last step.
template <class Cell, class E>
__device__ __forceinline__ Quad<ComputeOf<E>> state_before(const Place& at, const In<E>& first, const In<ComputeOf<E>>& aux,
                                                           const In<E>& y, int64_t t, int64_t n) {
  if (t == 0) return at.batch(first);
  if constexpr (Cell::kOwnState) {
    return at.get<Cell::kAux>(aux, t - 1, Cell::kAux - 1, n);
  } else {
    return at.get(y, t - 1);
  }
}

template <class E, class Cell>
struct GatedForwardStep {
  using Element = E;
  using T = ComputeOf<E>;
  using Params = GatedForward<T, E>;
  static constexpr int G = Cell::kGates, A = Cell::kAux;
  static constexpr int kCarries = 1, kProducts = G, kExtras = Cell::kOwnState ? 0 : 1;  // extra: the bias of GRU's product
  static constexpr bool kBackwards = false, kTransposed = true, kFinishes = false;
  struct Loaded {
    Quad<T> pre[G];
  };
  using Keep = Kept<T, kCarries, kExtras>;

  static __device__ __forceinline__ void begin(const Params& p, const Place& at, Keep& kept) {
    kept.carry[0] = at.batch(p.h0);
    if constexpr (Cell::kOwnState) {
      kept.state = at.batch(p.c0);
    } else {
      kept.state = kept.carry[0];
      kept.extra[0] = at.unit(p.bias, p.s.n);
    }
  }
  static __device__ __forceinline__ void load(const Params& p, const Place& at, int64_t t, Loaded& in) {
    if (t >= at.length) return;
#pragma unroll
    for (int g = 0; g < G; ++g) in.pre[g] = at.get<G>(p.pre, t, g, p.s.n);
  }
  static __device__ __forceinline__ void run(const Params& p, const Place& at, int64_t t, const Loaded& in,
                                             const Quad<T>* product, Keep& kept) {
    if (t >= at.length) {
      at.put(p.y, t, zero_quad<T>());
#pragma unroll
      for (int k = 0; k < A; ++k) at.put<A>(p.aux, t, k, p.s.n, zero_quad<T>());
      return;
    }
    Quad<T> aux[A];
#pragma unroll
    for (int i = 0; i < kColumns; ++i) {
      T u[G], m[G], a[A];
#pragma unroll
      for (int g = 0; g < G; ++g) {
        u[g] = in.pre[g].v[i];
        m[g] = product[g].v[i];
      }
      const T bias = kExtras ? kept.extra[0].v[i] : T(0);
      kept.carry[0].v[i] = Cell::forward(u, m, bias, kept.state.v[i], a);
#pragma unroll
      for (int k = 0; k < A; ++k) aux[k].v[i] = a[k];
    }
    at.put(p.y, t, kept.carry[0]);
#pragma unroll
    for (int k = 0; k < A; ++k) at.put<A>(p.aux, t, k, p.s.n, aux[k]);
    if (t == at.length - 1) {
      at.put_batch(p.h_n, kept.carry[0]);
      if constexpr (Cell::kOwnState) at.put_batch(p.c_n, kept.state);
    }
  }
};

template <class E, class Cell, Transport P>
struct GatedBackwardStep {
  using Element = E;
  using T = ComputeOf<E>;
  using Params = GatedBackward<T, E>;
  static constexpr int G = Cell::kGates, A = Cell::kAux;
  static constexpr bool kOwnState = Cell::kOwnState;
  // extra: each unit's weights onto itself, or the filtered signal
  static constexpr int kCarries = G, kProducts = 1, kExtras = P == Transport::Diagonal ? G : P == Transport::Local ? 1 : 0;
  static constexpr bool kBackwards = true, kTransposed = false, kFinishes = true;
  struct Loaded {
    Quad<T> aux[A], before, signal, last;
  };
  using Keep = Kept<T, kCarries, kExtras>;

  static __device__ __forceinline__ void begin(const Params& p, const Place& at, Keep& kept) {
    if constexpr (P == Transport::Diagonal) {
      const int64_t n = p.s.n;
      const E* w = p.w.p + (p.w.lead ? at.l * G * n * n : 0);
#pragma unroll
      for (int g = 0; g < G; ++g) {
#pragma unroll
        for (int i = 0; i < kColumns; ++i) {
          if (RX_BOUND(13, i < at.count)) kept.extra[g].v[i] = widen(w[(g * n + at.j + i) * n + at.j + i]);
        }
      }
    }
  }
  static __device__ __forceinline__ void load(const Params& p, const Place& at, int64_t t, Loaded& in) {
    if (t >= at.length) return;
#pragma unroll
    for (int k = 0; k < A; ++k) in.aux[k] = at.get<A>(p.aux, t, k, p.s.n);
    in.before = state_before<Cell>(at, p.before, p.aux, p.y, t, p.s.n);
    in.signal = at.get(p.gy, t);
    const bool first = t == at.length - 1;
    if (first) {
      const Quad<T> gh_n = at.batch(p.gh_n);
#pragma unroll
      for (int i = 0; i < kColumns; ++i) in.signal.v[i] += gh_n.v[i];
    }
    in.last = kOwnState && first ? at.batch(p.gc_n) : zero_quad<T>();
  }
  // What reaches h from the next step through recurrent weights.
  static __device__ __forceinline__ Quad<T> moved_of(const Quad<T>* product, const Keep& kept) {
    if constexpr (multiplies(P)) return *product;
    Quad<T> moved = zero_quad<T>();
    if constexpr (P == Transport::Diagonal) {
#pragma unroll
      for (int g = 0; g < G; ++g) {
#pragma unroll
        for (int i = 0; i < kColumns; ++i) moved.v[i] += kept.extra[g].v[i] * kept.carry[g].v[i];
      }
    }
    return moved;
  }
  static __device__ __forceinline__ void run(const Params& p, const Place& at, int64_t t, const Loaded& in,
                                             const Quad<T>* product, Keep& kept) {
    if (t >= at.length) {
#pragma unroll
      for (int k = 0; k < 4; ++k) at.put<4>(p.delta, t, k, p.s.n, zero_quad<T>());
      at.put(p.lam, t, zero_quad<T>());
      at.put(p.to_c, t, zero_quad<T>());
      return;
    }
    const bool first = t == at.length - 1;  // no step after it: nothing is carried in yet
    const bool empty = first || (p.window > 0 && (at.length - t - 1) % p.window == 0);
    Quad<T> moved = zero_quad<T>(), delta[4], lam, to_c;
    if (empty) {
      kept.state = moved;
    } else {
      moved = moved_of(product, kept);
    }
    const T decay = static_cast<T>(p.decay);
#pragma unroll
    for (int i = 0; i < kColumns; ++i) {
      T a[A], d[4], c[G], signal = in.signal.v[i];
      if constexpr (P == Transport::Local) {
        if (decay != T(0)) {
          if (!first) signal += decay * kept.extra[0].v[i];
          kept.extra[0].v[i] = signal;
        }
      }
#pragma unroll
      for (int k = 0; k < A; ++k) a[k] = in.aux[k].v[i];
      T& own = kept.state.v[i];
      const T to_h = signal + moved.v[i], last = in.last.v[i];
      lam.v[i] = kOwnState ? to_h : to_h + own;
      to_c.v[i] = own + last;
      Cell::backward(to_h, last, a, in.before.v[i], own, d, c);
#pragma unroll
      for (int k = 0; k < 4; ++k) delta[k].v[i] = d[k];
#pragma unroll
      for (int g = 0; g < G; ++g) kept.carry[g].v[i] = c[g];
    }
#pragma unroll
    for (int k = 0; k < 4; ++k) at.put<4>(p.delta, t, k, p.s.n, delta[k]);
    at.put(p.lam, t, lam);
    if constexpr (kOwnState) at.put(p.to_c, t, to_c);
  }
  // The adjoints of h_0 and c_0, from the product of the first step's carry.
  static __device__ __forceinline__ void finish(const Params& p, const Place& at, const Quad<T>* product, Keep& kept) {
    Quad<T> moved = moved_of(product, kept);
    if constexpr (kOwnState) {
      at.put_batch(p.gc0, kept.state);
    } else {
#pragma unroll
      for (int i = 0; i < kColumns; ++i) moved.v[i] += kept.state.v[i];
    }
    at.put_batch(p.gh0, moved);
  }
};

}  // namespace cuda
}  // namespace rx
