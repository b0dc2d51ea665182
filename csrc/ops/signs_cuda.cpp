// Random signs as a PyTorch op on CUDA; emulated as leaky_cuda.cpp is.
#include "kernels/cuda/signs.h"
#include "ops/cuda_context.h"
#include "ops/signs.h"

namespace rx {
namespace {

struct OnCudaSigns {
  template <class T>
  static void run(const Signs<T>& p, const Tensor& like) {
    const Context context(like);
    check(cuda::random_signs(p, context.stream()));
  }
};

}  // namespace
}  // namespace rx

#ifdef RX_CUDA_ON_CPU
STABLE_TORCH_LIBRARY_FRAGMENT(rtrl_ext_emulated, m) {
  rx::define_signs(m);
}
#endif

STABLE_TORCH_LIBRARY_IMPL(RX_LIBRARY, RX_KEY, m) {
  m.impl("random_signs", TORCH_BOX(&rx::random_signs<rx::OnCudaSigns>));
}
