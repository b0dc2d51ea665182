// Random signs as a PyTorch op: checks and parameters; `Target` says where it runs.
#pragma once
#include "kernels/philox.h"
#include "ops/tensors.h"

namespace rx {

template <class Target>
void random_signs(const Tensor& to, int64_t seed, const Tensor& first, int64_t stream) {
  STD_TORCH_CHECK(to.dim() == 3 && to.is_contiguous(), "out must be contiguous, of 3 dimensions (K, B, count)");
  STD_TORCH_CHECK(first.dim() == 1 && first.size(0) == to.size(1) && first.scalar_type() == ScalarType::Long &&
                      first.is_contiguous() && first.device() == to.device(),
                  "first must be a contiguous int64 tensor (B,) on the device of out");
  if (to.numel() == 0) return;
  with_dtype(to.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    const Signs<T> p{to.size(0), to.size(1), to.size(2), seed, stream, static_cast<const int64_t*>(first.const_data_ptr()),
                     out<T>(to)};
    Target::run(p, to);
  });
}

inline void define_signs(torch::stable::detail::StableLibrary& m) {
  m.def("random_signs(Tensor(a!) out, int seed, Tensor first, int stream) -> ()");
}

}  // namespace rx
