// A gated cell in a layer (what its members mean is in layer_run.h), and what the ops on whole GRU and LSTM layers share.
#pragma once
#include "kernels/gated.h"
#include "ops/layer.h"
#include "ops/layer_run.h"

namespace rx {

// Which columns of `delta` belong to the recurrent matrix: GRU's delta is r, z, q, m, and m is the matrix's third product.
struct GatedRuns {
  Run runs[2];
  int64_t count;
  GatedRuns(GatedCell cell, int64_t n) : runs{{0, 0, 2 * n}, {3 * n, 2 * n, n}}, count(2) {
    if (cell == GatedCell::Gru) return;
    runs[0].count = 4 * n;
    count = 1;
  }
};

template <class T>
struct GatedLayerCell {
  using Forward = GatedForward<T>;
  using Backward = GatedBackward<T>;
  static constexpr bool spikes = false;
  int64_t n, rows, delta, pre_row, kept;
  Run runs[2];
  int64_t run_count;

  GatedLayerCell(GatedCell cell, int64_t units)
      : n(units), rows(gates(cell) * n), delta(4 * n), pre_row(kept_values(cell) * n), kept(pre_row + n) {
    const GatedRuns all(cell, n);
    std::copy(all.runs, all.runs + 2, runs);
    run_count = all.count;
  }
  // An odd number of cache lines, so that rows don't share sets of the L1 cache.
  int64_t part_row() const {
    constexpr int64_t line = 64 / sizeof(T);
    return ((delta + line - 1) / line | 1) * line;
  }
  int64_t scratch(int64_t tile_rows) const { return gated_kernels<T>().scratch_size(tile_rows, n); }
  void forward(const Forward& p, RowRange range, const T* packed, T* scratch) const {
    gated_kernels<T>().forward(p, range, packed, scratch);
  }
  void backward(const Backward& p, RowRange range, const T* packed, T* scratch) const {
    gated_kernels<T>().backward(p, range, packed, scratch);
  }
};

// Sizes of a layer's call.
struct GatedSizes {
  GatedCell cell;
  int64_t T, B, m, n, G, A;  // gates, values kept
  ScalarType dtype;
  bool lstm;

  GatedSizes(int64_t which, const Tensor& x, const Tensor& w_ih, const OptionalTensor& lengths) : dtype(x.scalar_type()) {
    expect(which == 0 || which == 1, "cell must be 0 (GRU) or 1 (LSTM)");
    expect(x.dim() == 3 && w_ih.dim() == 2, "x must be (T, B, m) and w_ih (gates * n, m)");
    cell = static_cast<GatedCell>(which);
    lstm = cell == GatedCell::Lstm;
    G = gates(cell);
    A = kept_values(cell);
    T = x.size(0);
    B = x.size(1);
    m = x.size(2);
    n = w_ih.size(0) / G;
    check_like(w_ih, "w_ih", dtype, {G * n, m});
    check_lengths(lengths, B);
  }
  void check(const OptionalTensor& x, const char* name, std::initializer_list<int64_t> sizes) const {
    check_like(x, name, dtype, sizes);
  }
  GatedShape shape(int64_t L, const OptionalTensor& lengths) const { return {L, T, B, n, pointer(lengths), 0, T, false}; }
};

}  // namespace rx
