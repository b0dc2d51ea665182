// What the ops on whole LeakyRNN layers share.
#pragma once
#include "ops/layer.h"

namespace rx {

inline void check_layer(const Tensor& x, const Tensor& w, const Tensor& leak, const OptionalTensor& lengths) {
  expect(x.dim() == 3 && w.dim() == 2 && leak.dim() == 1, "x must be (T, B, m), w (n, n), leak (n,)");
  expect(w.size(0) == w.size(1) && leak.size(0) == w.size(0), "w must be square and leak of its size");
  check_lengths(lengths, x.size(1));
}

}  // namespace rx
