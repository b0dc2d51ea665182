// Splits a LeakyRNN call into tiles of rows and runs a kernel on them in parallel.
#pragma once
#include <algorithm>

#include "ops/tensors.h"

namespace rx {

constexpr int64_t kTileRowsMax = 64;

// P: one of the parameter structs. `weight` (L|1, n, n) is packed once per leading index, or null where no product is needed.
template <class T, class P>
void run_tiles(const P& p, const In<T>& weight, int64_t weights, bool transpose,
               void (*kernel)(const P&, RowRange, const T*, T*)) {
  const LeakyKernels<T>& k = leaky_kernels<T>();
  const int64_t n = p.s.n;
  const int64_t size = k.packed_size(n);
  Scratch<T> packed(weight.p ? size * weights : 1);
  if (weight.p) {
    torch::stable::parallel_for(0, weights, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) k.pack(weight.p + i * n * n, n, transpose, packed.get() + i * size);
    });
  }
  // Rows under one recurrent matrix may share a tile; with a matrix per leading index they may not.
  const int64_t groups = weight.p && weight.lead ? p.s.L : 1;
  const int64_t group_rows = p.s.L * p.s.B / groups;
  const int64_t threads = std::max<int64_t>(1, torch::stable::get_num_threads());
  const int64_t shares = std::max<int64_t>(1, (threads + groups - 1) / groups);
  const int64_t tiles = std::max((group_rows + kTileRowsMax - 1) / kTileRowsMax, std::min(shares, group_rows));
  torch::stable::parallel_for(0, groups * tiles, 1, [&](int64_t begin, int64_t end) {
    Scratch<T> scratch(k.scratch_size(kTileRowsMax, n));
    for (int64_t i = begin; i < end; ++i) {
      const int64_t group = i / tiles, tile = i % tiles;
      const RowRange rows{group * group_rows + group_rows * tile / tiles, group * group_rows + group_rows * (tile + 1) / tiles};
      kernel(p, rows, packed.get() + (groups > 1 ? group * size : 0), scratch.get());
    }
  });
}

template <class F>
void with_dtype(ScalarType dtype, F&& f) {
  if (dtype == ScalarType::Float) return f(float{});
  if (dtype == ScalarType::Double) return f(double{});
  STD_TORCH_CHECK(false, "the LeakyRNN kernels take float32 or float64 on the CPU");
}

inline LeakyShape leaky_shape(const Tensor& sequence, int64_t L, int64_t form, int64_t act, bool unit_leak) {
  STD_TORCH_CHECK(form == 0 || form == 1, "form must be 0 (rate) or 1 (voltage)");
  STD_TORCH_CHECK(act >= 0 && act <= 3, "act must be 0 to 3");
  STD_TORCH_CHECK(!(unit_leak && form == 1), "unit_leak is for the rate form");
  return {
      L,         sequence.size(1), sequence.size(2), sequence.size(3), static_cast<Form>(form), static_cast<Activation>(act),
      unit_leak, nullptr};
}

}  // namespace rx
