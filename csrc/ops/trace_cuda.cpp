// Trace updates as PyTorch ops on CUDA; emulated as leaky_cuda.cpp is.
#include "kernels/cuda/trace.h"
#include "ops/cuda_context.h"
#include "ops/trace.h"

namespace rx {
namespace {

struct OnCudaTrace {
  template <class T>
  static void run(const TraceStep<T>& p, const Tensor& like) {
    const Context context(like);
    check(cuda::trace_step(p, context.stream()));
  }
  template <class T>
  static void run(const RankOneStep<T>& p, const Tensor& like) {
    const Context context(like);
    check(cuda::rank1_trace_step(p, context.stream()));
  }
};

}  // namespace
}  // namespace rx

#ifdef RX_CUDA_ON_CPU
STABLE_TORCH_LIBRARY_FRAGMENT(rtrl_ext_emulated, m) {
  rx::define_trace(m);
}
#endif

STABLE_TORCH_LIBRARY_IMPL(RX_LIBRARY, RX_KEY, m) {
  m.impl("trace_step", TORCH_BOX(&rx::trace_step<rx::OnCudaTrace>));
  m.impl("rank1_trace_step", TORCH_BOX(&rx::rank1_trace_step<rx::OnCudaTrace>));
}
