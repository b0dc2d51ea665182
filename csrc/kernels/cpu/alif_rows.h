// What the kernels of ALIF and LIF share on the CPU.
#pragma once
#include "cells/alif.h"
#include "kernels/alif.h"
#include "kernels/cpu/rows.h"
#include "kernels/cpu/spikes.h"

namespace rx {
namespace RX_NS {

template <class T>
AlifShared<Vec<T>> alif_shared(const AlifShape& s, double gamma, int64_t refractory) {
  using V = Vec<T>;
  return {splat<V>(static_cast<T>(s.v_th)),
          splat<V>(static_cast<T>(1 / s.v_th)),
          splat<V>(static_cast<T>(gamma / s.v_th)),
          splat<V>(static_cast<T>(3.14159265358979323846)),
          splat<V>(static_cast<T>(refractory + 1)),
          s.reset == Reset::Zero,
          refractory > 0};
}

// Where the parameters of row r lie.
template <class T, bool Adapts>
struct AlifRow {
  const T *alpha, *rho, *beta;
  bool scaling;

  template <class P>
  AlifRow(const P& p, const Rows<T>& at, int64_t r)
      : alpha(at.unit(p.alpha, r)), rho(at.unit(p.rho, r)), beta(at.unit(p.beta, r)), scaling(p.s.scaling) {}

  template <bool F>
  RX_FN AlifUnit<Vec<T>> units(int64_t j, int count) const {
    using V = Vec<T>;
    AlifUnit<V> out;
    out.alpha = read<F, V>(alpha + j, count);
    out.scale = scaling ? one_minus(out.alpha) : splat<V>(1);
    out.rho = Adapts ? read<F, V>(rho + j, count) : V{};
    out.beta = Adapts ? read<F, V>(beta + j, count) : V{};
    return out;
  }
};

}  // namespace RX_NS
}  // namespace rx
