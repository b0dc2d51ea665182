// One step of each LeakyRNN recurrence for four columns of a row, in terms of the cell's maths. A Step says what is kept
// (`begin`), what one step reads (`load`: before the recurrent product, so that it hides the latency), what it does (`run`,
// given the recurrent products of the carry, kProducts quads), and what is left to do (`finish`). A Step's matrix has
// kCarries n columns and kProducts n rows, one of the two being 1. E: element type of the arrays.
#pragma once
#include "cells/leaky.h"
#include "kernels/activation.h"
#include "kernels/cuda/rows.h"

namespace rx {
namespace cuda {

using namespace RX_NS;

template <class E, bool Voltage, bool Unit>
struct ForwardStep {
  using Element = E;
  using T = ComputeOf<E>;
  using Params = LeakyForward<T, E>;
  static constexpr int kCarries = 1, kProducts = 1, kExtras = 1;
  static constexpr bool kBackwards = false, kTransposed = true, kFinishes = false;
  struct Loaded {
    Quad<T> pre;
  };

  static __device__ __forceinline__ void begin(const Params& p, const Place& at, Kept<T>& kept) {
    kept.carry[0] = at.batch(p.y0);
    kept.state = at.batch(p.s0);
    if constexpr (!Unit) kept.extra[0] = at.unit(p.leak, p.s.n);
  }
  static __device__ __forceinline__ void load(const Params& p, const Place& at, int64_t t, Loaded& in) {
    if (t < at.length) in.pre = at.get(p.pre, t);
  }
  static __device__ __forceinline__ void run(const Params& p, const Place& at, int64_t t, const Loaded& in,
                                             const Quad<T>* product, Kept<T>& kept) {
    if (t >= at.length) {
      at.put(p.y, t, zero_quad<T>());
      at.put(p.aux, t, zero_quad<T>());
      return;
    }
    Quad<T> aux;
    with_activation(p.s.act, [&](auto act) {
      using Act = decltype(act);
#pragma unroll
      for (int i = 0; i < kColumns; ++i) {
        const T u = in.pre.v[i] + product->v[i];
        if constexpr (Unit) {
          kept.carry[0].v[i] = kept.state.v[i] = Act::value(u);
        } else {
          const LeakyValue<T> out = leaky_value<Act, Voltage>(u, kept.state.v[i], kept.extra[0].v[i]);
          aux.v[i] = out.aux;
          kept.state.v[i] = out.state;
          kept.carry[0].v[i] = out.y;
        }
      }
    });
    at.put(p.y, t, kept.carry[0]);
    if constexpr (!Unit) at.put(p.aux, t, aux);
    if (t == at.length - 1) at.put_batch(p.s_n, kept.state);
  }
};

template <class E, bool Voltage, Transport P>
struct BackwardStep {
  using Element = E;
  using T = ComputeOf<E>;
  using Params = LeakyBackward<T, E>;
  static constexpr int kCarries = 1, kProducts = 1, kExtras = 1;
  static constexpr bool kBackwards = true, kTransposed = false, kFinishes = true;
  struct Loaded {
    Quad<T> leak, phi, signal, extra, last;
  };

  static __device__ __forceinline__ void begin(const Params& p, const Place& at, Kept<T>& kept) {
    if constexpr (P == Transport::Diagonal) {  // `extra` has no other use there
      const E* w = p.w.p + (p.w.lead ? at.l * p.s.n * p.s.n : 0);
#pragma unroll
      for (int i = 0; i < kColumns; ++i) {
        if (RX_BOUND(3, i < at.count)) kept.extra[0].v[i] = widen(w[(at.j + i) * (p.s.n + 1)]);
      }
    }
  }
  static __device__ __forceinline__ void load(const Params& p, const Place& at, int64_t t, Loaded& in) {
    if (t >= at.length) return;
    in.leak = at.unit(p.leak, p.s.n);
    in.phi = Voltage || p.s.unit_leak ? at.get(p.y, t) : at.get(p.aux, t);
    in.signal = at.get(p.gy, t);
    in.extra = at.get(p.gaux, t);
    in.last = t == at.length - 1 ? at.batch(p.gs_n) : zero_quad<T>();
  }
  static __device__ __forceinline__ Quad<T> moved_of(const Quad<T>* product, const Kept<T>& kept) {
    Quad<T> moved = zero_quad<T>();
#pragma unroll
    for (int i = 0; i < kColumns; ++i) {
      if constexpr (P == Transport::Diagonal) {
        moved.v[i] = kept.extra[0].v[i] * kept.carry[0].v[i];
      } else if constexpr (multiplies(P)) {
        moved.v[i] = product->v[i];
      }
    }
    return moved;
  }
  static __device__ __forceinline__ void run(const Params& p, const Place& at, int64_t t, const Loaded& in,
                                             const Quad<T>* product, Kept<T>& kept) {
    if (t >= at.length) {
      at.put(p.delta, t, zero_quad<T>());
      at.put(p.lam, t, zero_quad<T>());
      return;
    }
    const bool first = t == at.length - 1;  // no step after it: nothing is carried in yet
    const bool empty = first || (p.window > 0 && (at.length - t - 1) % p.window == 0);
    Quad<T> moved = zero_quad<T>(), next = moved, delta, lam;
    if (!empty) {
      moved = moved_of(product, kept);
      next = kept.state;
    }
    const T mu = static_cast<T>(p.mu), decay = static_cast<T>(p.decay);
    with_activation(p.s.act, [&](auto act) {
      using Act = decltype(act);
#pragma unroll
      for (int i = 0; i < kColumns; ++i) {
        T s = in.signal.v[i];
        if constexpr (!Voltage) s += in.last.v[i];
        if constexpr (P == Transport::Local) {
          if (decay != T(0)) {
            if (!first) s += decay * kept.extra[0].v[i];
            kept.extra[0].v[i] = s;
          }
        }
        const LeakyIncoming<T> incoming{s, moved.v[i], next.v[i], in.extra.v[i], Voltage ? in.last.v[i] : T(0)};
        const LeakyAdjoint<T> out = leaky_adjoint<Act, Voltage, P>(in.phi.v[i], incoming, in.leak.v[i], mu);
        kept.state.v[i] = out.state;
        kept.carry[0].v[i] = out.carry;
        delta.v[i] = out.delta;
        lam.v[i] = out.lam;
      }
    });
    at.put(p.delta, t, delta);
    at.put(p.lam, t, lam);
  }
  // The adjoints of y_0 and s_0, from the product of the first step's carry.
  static __device__ __forceinline__ void finish(const Params& p, const Place& at, const Quad<T>* product, Kept<T>& kept) {
    const Quad<T> leak = at.unit(p.leak, p.s.n), moved = moved_of(product, kept);
    constexpr bool to_state = Voltage && P == Transport::State;
    Quad<T> gy0, gs0;
#pragma unroll
    for (int i = 0; i < kColumns; ++i) {
      const T rest = one_minus(leak.v[i]) * kept.state.v[i];
      gs0.v[i] = to_state ? rest + moved.v[i] : rest;
      gy0.v[i] = to_state ? T(0) : moved.v[i];
    }
    at.put_batch(p.gs0, gs0);
    at.put_batch(p.gy0, gy0);
  }
};

}  // namespace cuda
}  // namespace rx
