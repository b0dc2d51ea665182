// Forward pass of a tile of rows through all T steps.
#pragma once
#include "kernels/cpu/leaky_rows.h"

namespace rx {
namespace RX_NS {

template <class T, class Act, bool Voltage, bool Unit>
RX_FN void leaky_forward_step(const LeakyForward<T>& p, Tile<T>& tile, int64_t r, int64_t t) {
  using V = Vec<T>;
  const T* pre = tile.at(p.pre, r, t);
  const T* leak = tile.unit(p.leak, r);
  const T* drive = tile.at(p.drive, r, t);
  const T* bias = p.bias;
  T* y = tile.at(p.y, r, t);
  T* aux = tile.at(p.aux, r, t);
  T* carry = tile.carry + r * tile.ld;
  T* state = tile.state + r * tile.ld;
  const T* product = tile.product + r * tile.ld;
  columns<T>(tile.n, [&](int64_t j, int count, auto full) __attribute__((always_inline)) {
    constexpr bool F = decltype(full)::value;
    V u = read<F, V>(pre + j, count) + load<V>(product + j);
    if (drive) u += read<F, V>(drive + j, count);
    if (bias) u += read<F, V>(bias + j, count);
    if constexpr (Unit) {
      const V phi = Act::value(u);
      write<F, V>(y + j, phi, count);
      store<V>(carry + j, phi);
    } else {
      const LeakyValue<V> out = leaky_value<Act, Voltage>(u, load<V>(state + j), read<F, V>(leak + j, count));
      write<F, V>(aux + j, out.aux, count);
      write<F, V>(y + j, out.y, count);
      store<V>(state + j, out.state);
      store<V>(carry + j, out.y);
    }
  });
}

template <class T, class Act, bool Voltage, bool Unit>
void leaky_forward_run(const LeakyForward<T>& p, RowRange range, const T* packed, T* scratch) {
  Tile<T> tile(p.s, range, scratch);
  if (!p.s.resume) {
    tile.copy_in(tile.carry, p.y0);
    tile.copy_in(tile.state, p.s0);
  }
  for (int64_t t = p.s.begin; t < p.s.end; ++t) {
    tile.prefetch(p.pre, t);
    tile.prefetch(p.drive, t);
    tile.prefetch(p.y, t);
    tile.multiply(packed);
    for (int64_t r = 0; r < tile.rows; ++r) {
      if (t >= tile.length[r]) {
        zero_row(tile.at(p.y, r, t), tile.n);
        zero_row(tile.at(p.aux, r, t), tile.n);
        continue;
      }
      leaky_forward_step<T, Act, Voltage, Unit>(p, tile, r, t);
      if (t == tile.length[r] - 1) {
        T* s_n = tile.batch(p.s_n, r);
        const T* state = (Unit ? tile.carry : tile.state) + r * tile.ld;
        for (int64_t i = 0; i < tile.n; ++i) s_n[i] = state[i];
      }
    }
  }
}

template <class T>
void leaky_forward(const LeakyForward<T>& p, RowRange range, const T* packed, T* scratch) {
  with_activation(p.s.act, [&](auto act) {
    using Act = decltype(act);
    if (p.s.form == Form::Voltage) {
      leaky_forward_run<T, Act, true, false>(p, range, packed, scratch);
    } else if (p.s.unit_leak) {
      leaky_forward_run<T, Act, false, true>(p, range, packed, scratch);
    } else {
      leaky_forward_run<T, Act, false, false>(p, range, packed, scratch);
    }
  });
}

}  // namespace RX_NS
}  // namespace rx
