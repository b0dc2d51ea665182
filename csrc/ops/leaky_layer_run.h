// A leaky cell in a layer; what its members mean is in layer_run.h.
#pragma once
#include "ops/layer_run.h"

namespace rx {

template <class T>
struct LeakyCell {
  using Forward = LeakyForward<T>;
  using Backward = LeakyBackward<T>;
  static constexpr int64_t run_count = 1;
  static constexpr bool spikes = false;
  int64_t rows, delta, pre_row, kept;
  Run runs[1];

  LeakyCell(int64_t n, bool aux) : rows(n), delta(n), pre_row(n), kept(aux ? 2 * n : n), runs{{0, 0, n}} {}
  int64_t part_row() const { return delta; }
  int64_t scratch(int64_t tile_rows) const { return leaky_kernels<T>().scratch_size(tile_rows, rows); }
  void forward(const Forward& p, RowRange range, const T* packed, T* scratch) const {
    leaky_kernels<T>().forward(p, range, packed, scratch);
  }
  void backward(const Backward& p, RowRange range, const T* packed, T* scratch) const {
    leaky_kernels<T>().backward(p, range, packed, scratch);
  }
};

}  // namespace rx
