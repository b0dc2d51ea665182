// Tangents of the forward and of the exact backward pass. A tile's rows may belong to different directions: with a shared
// recurrent matrix, k directions of B rows are k B rows of one product.
#pragma once
#include "kernels/cpu/leaky_rows.h"

namespace rx {
namespace RX_NS {

template <class T, class Act, bool Voltage>
RX_FN void leaky_forward_jvp_step(const LeakyForwardJvp<T>& p, Tile<T>& tile, int64_t r, int64_t t) {
  using V = Vec<T>;
  const T* dpre = tile.at(p.dpre, r, t);
  const In<T>& value = Voltage || p.s.unit_leak ? p.y : p.aux;
  const In<T>& states = Voltage ? p.aux : p.y;
  const T* phi_row = tile.at(value, r, t);
  const T* leak = tile.unit(p.leak, r);
  const T* dleak = tile.unit(p.dleak, r);
  const T* dbias = tile.unit(p.dbias, r);
  const T* before = t > 0 ? tile.at(states, r, t - 1) : tile.batch(p.s0, r);
  const T* now = tile.at(states, r, t);
  T* dy = tile.at(p.dy, r, t);
  T* daux = tile.at(p.daux, r, t);
  T* du_row = tile.at(p.du, r, t);
  const T* lam = tile.at(p.lam, r, t);
  T* bend = tile.at(p.bend, r, t);
  T* carry = tile.carry + r * tile.ld;
  T* state = tile.state + r * tile.ld;
  const T* product = tile.product + r * tile.ld;
  columns<T>(tile.n, [&](int64_t j, int count, auto full) __attribute__((always_inline)) {
    constexpr bool F = decltype(full)::value;
    const V k = read<F, V>(leak + j, count);
    const V phi = read<F, V>(phi_row + j, count);
    V du = read<F, V>(dpre + j, count) + load<V>(product + j);
    if (dbias) du += read<F, V>(dbias + j, count);
    const V previous = load<V>(state + j);
    V s, out, aux;
    if constexpr (Voltage) {
      s = leaky_mix(previous, du, k);
      if (dleak) {
        V drive = read<F, V>(now + j, count);
        if (before) drive = drive - read<F, V>(before + j, count);
        s += read<F, V>(dleak + j, count) * (drive / positive(k));
      }
      out = Act::slope(phi) * s;
      aux = s;
    } else {
      aux = Act::slope(phi) * du;
      s = leaky_mix(previous, aux, k);
      if (dleak) s += read<F, V>(dleak + j, count) * (before ? phi - read<F, V>(before + j, count) : phi);
      out = s;
    }
    store<V>(state + j, s);
    store<V>(carry + j, out);
    write<F, V>(dy + j, out, count);
    if (daux) write<F, V>(daux + j, aux, count);
    if (du_row) write<F, V>(du_row + j, du, count);
    if (bend) {
      const V moved = Voltage ? s : k * du;
      write<F, V>(bend + j, read<F, V>(lam + j, count) * Act::slope(Dual<V>{phi, moved}).b, count);
    }
  });
}

template <class T, class Act, bool Voltage>
void leaky_forward_jvp_run(const LeakyForwardJvp<T>& p, RowRange range, const T* packed, T* scratch) {
  Tile<T> tile(p.s, range, scratch);
  if (!p.s.resume) {
    tile.copy_in(tile.carry, p.dy0);
    tile.copy_in(tile.state, p.ds0);
  }
  for (int64_t t = p.s.begin; t < p.s.end; ++t) {
    tile.prefetch(p.dpre, t);
    tile.prefetch(p.dy, t);
    tile.multiply(packed);
    for (int64_t r = 0; r < tile.rows; ++r) {
      if (t >= tile.length[r]) {
        zero_row(tile.at(p.dy, r, t), tile.n);
        zero_row(tile.at(p.daux, r, t), tile.n);
        zero_row(tile.at(p.du, r, t), tile.n);
        zero_row(tile.at(p.bend, r, t), tile.n);
        continue;
      }
      leaky_forward_jvp_step<T, Act, Voltage>(p, tile, r, t);
      if (t == tile.length[r] - 1) {
        T* ds_n = tile.batch(p.ds_n, r);
        for (int64_t i = 0; i < tile.n; ++i) ds_n[i] = tile.state[r * tile.ld + i];
      }
    }
  }
}

template <class T, class Act, bool Voltage>
RX_FN void leaky_backward_jvp_step(const LeakyBackwardJvp<T>& p, Tile<T>& tile, int64_t r, int64_t t, bool first) {
  using V = Vec<T>;
  using D = Dual<V>;
  const bool y_is_phi = Voltage || p.s.unit_leak;
  const T* dgy = tile.at_part(p.dgy, r, t, !p.part);
  const T* dgs_n = first ? tile.batch(p.dgs_n, r) : nullptr;
  const T* phi_row = tile.at(y_is_phi ? p.y : p.aux, r, t);
  const T* dphi_row = tile.at(y_is_phi ? p.dy : p.daux, r, t);
  const T* lam_row = tile.at(p.lam, r, t);
  // the primal adjoint of the state at t+1: lam (rate), delta / k (voltage)
  const T* next_row = first ? nullptr : tile.at(Voltage ? p.delta : p.lam, r, t + 1);
  const T* leak = tile.unit(p.leak, r);
  const T* dleak = tile.unit(p.dleak, r);
  const T* delta_row = Voltage && dleak ? tile.at(p.delta, r, t) : nullptr;
  T* ddelta = tile.at_part(p.ddelta, r, t, !p.part);
  T* dlam_row = tile.at(p.dlam, r, t);
  T* carry = tile.carry + r * tile.ld;
  T* state = tile.state + r * tile.ld;
  const T* product = tile.product + r * tile.ld;
  columns<T>(tile.n, [&](int64_t j, int count, auto full) __attribute__((always_inline)) {
    constexpr bool F = decltype(full)::value;
    const V leak_v = read<F, V>(leak + j, count);
    const D k{leak_v, dleak ? read<F, V>(dleak + j, count) : V{}};
    const D phi{read<F, V>(phi_row + j, count), read<F, V>(dphi_row + j, count)};
    V inverse = splat<V>(1);
    if (Voltage && dleak) inverse = inverse / positive(leak_v);
    D next{V{}, V{}};
    V moved{};
    if (!first) {
      next.b = load<V>(state + j);
      if (dleak) next.a = read<F, V>(next_row + j, count) * inverse;
      moved = load<V>(product + j);
    }
    V signal = read<F, V>(dgy + j, count) + moved;
    if (!Voltage && dgs_n) signal += read<F, V>(dgs_n + j, count);
    D lam{read<F, V>(lam_row + j, count), signal};
    V delta;
    if constexpr (Voltage) {
      D d = leaky_voltage_adjoint<Act>(phi, lam, next, k);
      if (dgs_n) d.b += read<F, V>(dgs_n + j, count);
      if (dleak) d.a = read<F, V>(delta_row + j, count) * inverse;
      delta = (k * d).b;
      store<V>(state + j, d.b);
    } else {
      const D rest = one_minus(k) * next;
      lam.b = signal + rest.b;
      delta = leaky_rate_delta<Act>(phi, lam, k).b;
      store<V>(state + j, lam.b);
    }
    store<V>(carry + j, delta);
    write<F, V>(ddelta + j, delta, count);
    if (dlam_row) write<F, V>(dlam_row + j, lam.b, count);
  });
}

template <class T, class Act, bool Voltage>
void leaky_backward_jvp_run(const LeakyBackwardJvp<T>& p, RowRange range, const T* packed, T* scratch) {
  using V = Vec<T>;
  Tile<T> tile(p.s, range, scratch);
  for (int64_t t = p.s.end - 1; t >= p.s.begin; --t) {
    if (!p.part) tile.prefetch(p.dgy, t);
    tile.prefetch(p.s.form == Form::Voltage || p.s.unit_leak ? p.dy : p.daux, t);
    tile.prefetch(p.ddelta, t, !p.part);
    if (t < p.s.T - 1) tile.multiply(packed);
    for (int64_t r = 0; r < tile.rows; ++r) {
      if (t >= tile.length[r]) {
        zero_row(tile.at_part(p.ddelta, r, t, !p.part), tile.n);
        zero_row(tile.at(p.dlam, r, t), tile.n);
        continue;
      }
      leaky_backward_jvp_step<T, Act, Voltage>(p, tile, r, t, t == tile.length[r] - 1);
    }
  }
  if (p.s.begin > 0 || !p.dgy0) return;
  tile.multiply(packed);
  for (int64_t r = 0; r < tile.rows; ++r) {
    const T* leak = tile.unit(p.leak, r);
    const T* dleak = tile.unit(p.dleak, r);
    const T* next_row = tile.at(Voltage ? p.delta : p.lam, r, 0);
    T* dgy0 = tile.batch(p.dgy0, r);
    T* dgs0 = tile.batch(p.dgs0, r);
    columns<T>(tile.n, [&](int64_t j, int count, auto full) __attribute__((always_inline)) {
      constexpr bool F = decltype(full)::value;
      const V k = read<F, V>(leak + j, count);
      V rest = one_minus(k) * load<V>(tile.state + r * tile.ld + j);
      if (dleak) {
        V next = read<F, V>(next_row + j, count);
        if (Voltage) next = next / positive(k);
        rest -= read<F, V>(dleak + j, count) * next;
      }
      write<F, V>(dgs0 + j, rest, count);
      write<F, V>(dgy0 + j, load<V>(tile.product + r * tile.ld + j), count);
    });
  }
}

template <class T>
void leaky_forward_jvp(const LeakyForwardJvp<T>& p, RowRange range, const T* packed, T* scratch) {
  with_activation(p.s.act, [&](auto act) {
    using Act = decltype(act);
    if (p.s.form == Form::Voltage) {
      leaky_forward_jvp_run<T, Act, true>(p, range, packed, scratch);
    } else {
      leaky_forward_jvp_run<T, Act, false>(p, range, packed, scratch);
    }
  });
}

template <class T>
void leaky_backward_jvp(const LeakyBackwardJvp<T>& p, RowRange range, const T* packed, T* scratch) {
  with_activation(p.s.act, [&](auto act) {
    using Act = decltype(act);
    if (p.s.form == Form::Voltage) {
      leaky_backward_jvp_run<T, Act, true>(p, range, packed, scratch);
    } else {
      leaky_backward_jvp_run<T, Act, false>(p, range, packed, scratch);
    }
  });
}

}  // namespace RX_NS
}  // namespace rx
