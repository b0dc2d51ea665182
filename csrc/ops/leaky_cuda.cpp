// The LeakyRNN recurrence as PyTorch ops on CUDA.
#include "ops/cuda.h"
#include "ops/leaky.h"
#include "ops/leaky_jvp.h"
#include "ops/leaky_schemas.h"

namespace rx {
namespace {

struct OnCuda {
  template <class F>
  static void with_dtype(ScalarType dtype, F&& f) {
    with_cuda_dtype(dtype, f);
  }
  template <class E>
  static void run(const LeakyForward<ComputeOf<E>, E>& p, const Tensor& like, const OptionalTensor& w) {
    run_on_cuda<E>(p, like, w, 1, true, &cuda::forward<E>);
  }
  template <class E>
  static void run(const LeakyBackward<ComputeOf<E>, E>& p, const Tensor& like, const OptionalTensor& w) {
    run_on_cuda<E>(p, like, multiplies(p.transport) ? w : OptionalTensor(), 1, false, &cuda::backward<E>);
  }
  template <class E>
  static void run(const LeakyForwardJvp<ComputeOf<E>, E>& p, const Tensor& like, const OptionalTensor& w) {
    run_on_cuda<E>(p, like, w, 1, true, &cuda::forward_jvp<E>);
  }
  template <class E>
  static void run(const LeakyBackwardJvp<ComputeOf<E>, E>& p, const Tensor& like, const OptionalTensor& w) {
    run_on_cuda<E>(p, like, w, 1, false, &cuda::backward_jvp<E>);
  }
};

// The strategy of all calls from now on; returns the one before.
int64_t set_strategy(int64_t strategy) {
  STD_TORCH_CHECK(strategy >= 0 && strategy <= 2, "strategy must be 0 (by size), 1 (persistent) or 2 (stepwise)");
  return asked.exchange(strategy);
}

}  // namespace
}  // namespace rx

#ifdef RX_CUDA_ON_CPU
STABLE_TORCH_LIBRARY_FRAGMENT(rtrl_ext_emulated, m) {
  rx::define_leaky(m);
}
#endif

STABLE_TORCH_LIBRARY_FRAGMENT(RX_LIBRARY, m) {
  m.def("cuda_strategy(int strategy) -> int");
}
STABLE_TORCH_LIBRARY_IMPL(RX_LIBRARY, CompositeExplicitAutograd, m) {
  m.impl("cuda_strategy", TORCH_BOX(&rx::set_strategy));
}
STABLE_TORCH_LIBRARY_IMPL(RX_LIBRARY, RX_KEY, m) {
  m.impl("leaky_forward", TORCH_BOX(&rx::leaky_forward<rx::OnCuda>));
  m.impl("leaky_backward", TORCH_BOX(&rx::leaky_backward<rx::OnCuda>));
  m.impl("leaky_forward_jvp", TORCH_BOX(&rx::leaky_forward_jvp<rx::OnCuda>));
  m.impl("leaky_backward_jvp", TORCH_BOX(&rx::leaky_backward_jvp<rx::OnCuda>));
}
