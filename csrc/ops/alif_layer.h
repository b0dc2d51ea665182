// ALIF and LIF in a layer; what the members of the cell mean is in layer_run.h.
#pragma once
#include <limits>

#include "kernels/alif.h"
#include "ops/layer.h"
#include "ops/layer_run.h"

namespace rx {

template <class T>
struct AlifLayerCell {
  using Forward = AlifForward<T>;
  using Backward = AlifBackward<T>;
  static constexpr int64_t run_count = 1;
  static constexpr bool spikes = true;
  int64_t rows, delta, pre_row, kept, units;
  Run runs[1];

  // `values` per unit and step are kept: z, psi and, where they are needed, v and a.
  AlifLayerCell(int64_t n, int64_t values) : rows(n), delta(n), pre_row(n), kept(values * n), units(3 * n), runs{{0, 0, n}} {}
  // An odd number of cache lines, so that rows don't share sets of the L1 cache.
  int64_t part_row() const {
    constexpr int64_t line = 64 / sizeof(T);
    return ((delta + line - 1) / line | 1) * line;
  }
  int64_t scratch(int64_t tile_rows) const { return alif_kernels<T>().scratch_size(tile_rows, rows); }
  void forward(const Forward& p, RowRange range, const T* packed, T* scratch) const {
    alif_kernels<T>().forward(p, range, packed, scratch);
  }
  void backward(const Backward& p, RowRange range, const T* packed, T* scratch) const {
    alif_kernels<T>().backward(p, range, packed, scratch);
  }
  void outer(const Outer<T>& p, T* scratch) const { alif_kernels<T>().outer(p, scratch); }
};

// Sizes and settings of a layer's call.
struct AlifLayerCall {
  int64_t T, B, m, n;
  ScalarType dtype;
  double v_th;
  bool scaling, adapts;
  Reset reset;

  AlifLayerCall(const Tensor& x, const Tensor& w_ih, const Tensor& alpha, const OptionalTensor& rho, const OptionalTensor& beta,
                const OptionalTensor& lengths, double threshold, bool scaled, int64_t which_reset)
      : dtype(x.scalar_type()), v_th(threshold), scaling(scaled), adapts(beta.has_value()) {
    expect(x.dim() == 3 && w_ih.dim() == 2, "x must be (T, B, m) and w_ih (n, m)");
    expect(v_th > 0 && v_th <= std::numeric_limits<double>::max(), "v_th must be a positive number");
    expect(which_reset == 0 || which_reset == 1, "reset must be 0 (subtract) or 1 (zero)");
    expect(rho.has_value() == adapts, "rho and beta must both be given (ALIF) or both be absent (LIF)");
    reset = static_cast<Reset>(which_reset);
    T = x.size(0);
    B = x.size(1);
    m = x.size(2);
    n = w_ih.size(0);
    check(w_ih, "w_ih", {n, m});
    check(alpha, "alpha", {n});
    check(rho, "rho", {n});
    check(beta, "beta", {n});
    check_lengths(lengths, B);
  }
  void check(const OptionalTensor& x, const char* name, std::initializer_list<int64_t> sizes) const {
    check_like(x, name, dtype, sizes);
  }
  AlifShape shape(const OptionalTensor& lengths) const { return {1, T, B, n, 0, T, pointer(lengths), v_th, scaling, reset}; }
};

}  // namespace rx
