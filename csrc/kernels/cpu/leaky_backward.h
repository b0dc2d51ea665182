// Backward pass of a tile of rows through all T steps under a transport policy (docs/leaky_rnn.md).
#pragma once
#include "kernels/cpu/leaky_rows.h"

namespace rx {
namespace RX_NS {

// What a row's step needs beside the parameters. Most steps are plain: carried into, with gy, without gaux, lam or decay; they
// get code without those branches.
struct BackwardStep {
  int64_t r, t;
  bool first;  // no step after it: nothing is carried in yet
  bool cut;    // the carry from t+1 is dropped
  int64_t tile;
};

template <class T, class Act, bool Voltage, Transport P, bool Plain>
RX_FN void leaky_backward_step(const LeakyBackward<T>& p, Tile<T>& tile, const BackwardStep& at) {
  using V = Vec<T>;
  const int64_t r = at.r, t = at.t;
  const T* gy = tile.at(p.gy, r, t);
  const T* gaux = Plain ? nullptr : tile.at(p.gaux, r, t);
  const T* gs_n = !Plain && at.first ? tile.batch(p.gs_n, r) : nullptr;
  const T* phi_row = Voltage || p.s.unit_leak ? tile.at(p.y, r, t) : tile.at(p.aux, r, t);
  const T* leak = tile.unit(p.leak, r);
  T* delta_row = tile.at_part(p.delta, r, t, !p.part);
  T* bias = p.bias ? p.bias + at.tile * tile.n : nullptr;
  T* lam_row = Plain ? nullptr : tile.at(p.lam, r, t);
  T* carry = tile.carry + r * tile.ld;
  T* state = tile.state + r * tile.ld;
  T* filtered = tile.extra + r * tile.ld;
  const T* product = tile.product + r * tile.ld;
  const bool empty = !Plain && (at.first || at.cut);
  const T decay = static_cast<T>(p.decay);
  const V mu_v = splat<V>(static_cast<T>(p.mu));
  const int64_t n = tile.n;
  columns<T>(n, [&](int64_t j, int count, auto full) __attribute__((always_inline)) {
    constexpr bool F = decltype(full)::value;
    const V k = read<F, V>(leak + j, count);
    const V phi = read<F, V>(phi_row + j, count);
    V signal = Plain || gy ? read<F, V>(gy + j, count) : V{};
    if (!Plain && !Voltage && gs_n) signal += read<F, V>(gs_n + j, count);
    if constexpr (P == Transport::Local && !Plain) {
      if (decay != 0) {
        if (!at.first) signal += decay * load<V>(filtered + j);
        store<V>(filtered + j, signal);
      }
    }
    V moved{}, next{};
    if (!empty) {
      next = load<V>(state + j);
      if constexpr (P == Transport::Diagonal) {
        moved = load<V>(filtered + j) * load<V>(carry + j);  // there the diagonal
      } else if constexpr (P != Transport::Local) {
        moved = load<V>(product + j);
      }
    }
    const V extra = !Plain && gaux ? read<F, V>(gaux + j, count) : V{};
    const V last = !Plain && Voltage && gs_n ? read<F, V>(gs_n + j, count) : V{};
    const LeakyAdjoint<V> out =
        leaky_adjoint<Act, Voltage, P>(phi, LeakyIncoming<V>{signal, moved, next, extra, last}, k, mu_v);
    store<V>(state + j, out.state);
    if constexpr (P != Transport::Local) store<V>(carry + j, out.carry);
    write<F, V>(delta_row + j, out.delta, count);
    if (bias) write<F, V>(bias + j, read<F, V>(bias + j, count) + out.delta, count);
    if (!Plain && lam_row) write<F, V>(lam_row + j, out.lam, count);
  });
}

// Step 0: the adjoints of y_0 and s_0. The product holds carry_1 M.
template <class T, bool Voltage, Transport P>
void leaky_backward_start(const LeakyBackward<T>& p, Tile<T>& tile, int64_t r) {
  using V = Vec<T>;
  const T* leak = tile.unit(p.leak, r);
  const T* diagonal = tile.extra + r * tile.ld;
  T* gy0 = tile.batch(p.gy0, r);
  T* gs0 = tile.batch(p.gs0, r);
  const T* carry = tile.carry + r * tile.ld;
  const T* state = tile.state + r * tile.ld;
  const T* product = tile.product + r * tile.ld;
  columns<T>(tile.n, [&](int64_t j, int count, auto full) __attribute__((always_inline)) {
    constexpr bool F = decltype(full)::value;
    V moved{};
    if constexpr (P == Transport::Diagonal) {
      moved = load<V>(diagonal + j) * load<V>(carry + j);
    } else if constexpr (P != Transport::Local) {
      moved = load<V>(product + j);
    }
    const V rest = one_minus(read<F, V>(leak + j, count)) * load<V>(state + j);
    constexpr bool to_state = Voltage && P == Transport::State;
    write<F, V>(gs0 + j, to_state ? rest + moved : rest, count);
    write<F, V>(gy0 + j, to_state ? V{} : moved, count);
  });
}

template <class T, class Act, bool Voltage, Transport P>
void leaky_backward_run(const LeakyBackward<T>& p, RowRange range, const T* packed, T* scratch) {
  Tile<T> tile(p.s, range, scratch);
  if (p.part) tile.own_part(tile.n);
  if (P == Transport::Diagonal && !p.s.resume) {  // gathered once: `extra` has no other use here
    for (int64_t r = 0; r < tile.rows; ++r) {
      const T* w = p.w.p + (p.w.lead ? tile.l[r] : 0) * tile.n * tile.n;
      for (int64_t j = 0; j < tile.n; ++j) tile.extra[r * tile.ld + j] = w[j * (tile.n + 1)];
    }
  }
  const bool plain = p.gy.p && !p.gaux.p && !p.lam && p.decay == 0;
  for (int64_t t = p.s.end - 1; t >= p.s.begin; --t) {
    bool any = false;  // some row takes in what is carried
    bool cut[kMaxRows];
    for (int64_t r = 0; r < tile.rows; ++r) {
      cut[r] = p.window > 0 && (tile.length[r] - t - 1) % p.window == 0;
      any = any || (t + 1 < tile.length[r] && !cut[r]);
    }
    tile.prefetch(p.gy, t);
    tile.prefetch(p.s.form == Form::Voltage || p.s.unit_leak ? p.y : p.aux, t);
    tile.prefetch(p.delta, t, !p.part);
    if (multiplies(P) && any) tile.multiply(packed);
    for (int64_t r = 0; r < tile.rows; ++r) {
      if (t >= tile.length[r]) {
        zero_row(tile.at_part(p.delta, r, t, !p.part), tile.n);
        zero_row(tile.at(p.lam, r, t), tile.n);
        continue;
      }
      const BackwardStep at{r, t, t == tile.length[r] - 1, cut[r], range.tile};
      if (plain && !at.first && !at.cut) {
        leaky_backward_step<T, Act, Voltage, P, true>(p, tile, at);
      } else {
        leaky_backward_step<T, Act, Voltage, P, false>(p, tile, at);
      }
    }
  }
  if (p.s.begin > 0 || !p.gy0) return;
  if (multiplies(P)) tile.multiply(packed);
  for (int64_t r = 0; r < tile.rows; ++r) leaky_backward_start<T, Voltage, P>(p, tile, r);
}

template <class T, class Act, bool Voltage>
void leaky_backward_policy(const LeakyBackward<T>& p, RowRange range, const T* packed, T* scratch) {
  switch (p.transport) {
    case Transport::Full:
      return leaky_backward_run<T, Act, Voltage, Transport::Full>(p, range, packed, scratch);
    case Transport::Local:
      return leaky_backward_run<T, Act, Voltage, Transport::Local>(p, range, packed, scratch);
    case Transport::Diagonal:
      return leaky_backward_run<T, Act, Voltage, Transport::Diagonal>(p, range, packed, scratch);
    case Transport::Hop:
      return leaky_backward_run<T, Act, Voltage, Transport::Hop>(p, range, packed, scratch);
    default:
      return leaky_backward_run<T, Act, Voltage, Transport::State>(p, range, packed, scratch);
  }
}

template <class T>
void leaky_backward(const LeakyBackward<T>& p, RowRange range, const T* packed, T* scratch) {
  with_activation(p.s.act, [&](auto act) {
    using Act = decltype(act);
    if (p.s.form == Form::Voltage) {
      leaky_backward_policy<T, Act, true>(p, range, packed, scratch);
    } else {
      leaky_backward_policy<T, Act, false>(p, range, packed, scratch);
    }
  });
}

}  // namespace RX_NS
}  // namespace rx
