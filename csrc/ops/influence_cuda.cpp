// Steps of RTRL and SnAp as PyTorch ops on CUDA; emulated as leaky_cuda.cpp is.
#include "kernels/cuda/influence.h"
#include "ops/cuda_context.h"
#include "ops/influence.h"

namespace rx {
namespace {

struct OnCudaInfluence {
  template <class T>
  static void run(const RtrlStep<T>& p, const Tensor& influence) {
    const Context context(influence);
    const Tensor partial = make(influence, {p.s.signals * p.s.B * p.s.R * p.s.Q});
    check(cuda::rtrl_step(p, out<T>(partial), context.stream()));
  }
  template <class T>
  static void run(const SnapStep<T>& p, const Tensor& influence, int64_t most_units) {
    const Context context(influence);
    const Tensor partial = make(influence, {p.s.signals * p.s.B * p.s.R / p.s.n * p.pattern.columns_all});
    check(cuda::snap_step(p, most_units, out<T>(partial), context.stream()));
  }
};

}  // namespace
}  // namespace rx

#ifdef RX_CUDA_ON_CPU
STABLE_TORCH_LIBRARY_FRAGMENT(rtrl_ext_emulated, m) {
  rx::define_influence(m);
}
#endif

STABLE_TORCH_LIBRARY_IMPL(RX_LIBRARY, RX_KEY, m) {
  m.impl("rtrl_step", TORCH_BOX(&rx::rtrl_step<rx::OnCudaInfluence>));
  m.impl("snap_step", TORCH_BOX(&rx::snap_step<rx::OnCudaInfluence>));
}
