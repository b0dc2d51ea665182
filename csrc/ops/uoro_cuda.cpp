// Steps of UORO as a PyTorch op on CUDA; emulated as leaky_cuda.cpp is.
#include "kernels/cuda/uoro.h"
#include "ops/cuda_context.h"
#include "ops/uoro.h"

namespace rx {
namespace {

struct OnCudaUoro {
  template <class T>
  static int64_t parts(int64_t R, int64_t Q) {
    return R * cuda::uoro_parts(Q);
  }
  static int64_t padded(int64_t) { return 0; }
  template <class T>
  static void run(UoroCall<T>& call, const Tensor& like) {
    const Context context(like);
    const UoroCall<T> first = call;
    for (int64_t k = 0; k < call.K; ++k) {
      call.at(k, first);
      check(cuda::uoro_step(call.step, call.known || k > 0, context.stream()));
    }
  }
};

}  // namespace
}  // namespace rx

#ifdef RX_CUDA_ON_CPU
STABLE_TORCH_LIBRARY_FRAGMENT(rtrl_ext_emulated, m) {
  rx::define_uoro(m);
}
#endif

STABLE_TORCH_LIBRARY_IMPL(RX_LIBRARY, RX_KEY, m) {
  m.impl("uoro_step", TORCH_BOX(&rx::uoro_step<rx::OnCudaUoro>));
}
