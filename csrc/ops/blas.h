// The vendor's matrix products through torch, into memory that is already there. The C shims are used because the boxed
// dispatcher of the stable interface can't pass the Scalar arguments of addmm.
#pragma once
#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cpu.h>

#include "ops/tensors.h"

namespace rx {

// out = a b, all 2-D.
inline void mm_out(const Tensor& out, const Tensor& a, const Tensor& b) {
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_mm_out(out.get(), a.get(), b.get()));
}

// out = base + a b; `out` may be `base`.
inline void addmm_out(const Tensor& out, const Tensor& base, const Tensor& a, const Tensor& b) {
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_addmm_out(out.get(), base.get(), a.get(), b.get(), 1.0, 1.0));
}

// `rows` of a 2-D tensor from `first` on; its transpose.
inline Tensor rows_of(Tensor x, int64_t first, int64_t rows) {
  return torch::stable::narrow(x, 0, first, rows);
}
inline Tensor transposed(const Tensor& x) {
  return torch::stable::transpose(x, 0, 1);
}
inline Tensor as_rows(const Tensor& x, int64_t columns) {
  return torch::stable::view(x, {-1, columns});
}

}  // namespace rx
