// The ALIF and LIF recurrences as PyTorch ops on CUDA.
#include "ops/alif.h"
#include "ops/cuda.h"

namespace rx {
namespace {

struct OnCudaAlif {
  template <class F>
  static void with_dtype(ScalarType dtype, F&& f) {
    STD_TORCH_CHECK(dtype == ScalarType::Float || dtype == ScalarType::Double,
                    "the kernels of ALIF and LIF take float32 or float64; the modules compute half precision in float32");
    rx::with_dtype(dtype, f);
  }
  template <class T>
  static void run(const AlifForward<T>& p, const Tensor& like, const OptionalTensor& w) {
    run_on_cuda<T>(p, like, w, 1, true, &cuda::alif_forward<T>, 2);
  }
  template <class T>
  static void run(const AlifBackward<T>& p, const Tensor& like, const OptionalTensor& w) {
    const OptionalTensor matrix = multiplies(p.transport) ? w : OptionalTensor();
    run_on_cuda<T>(p, like, matrix, 1, false, &cuda::alif_backward<T>, 1);
  }
};

}  // namespace
}  // namespace rx

#ifdef RX_CUDA_ON_CPU
STABLE_TORCH_LIBRARY_FRAGMENT(rtrl_ext_emulated, m) {
  rx::define_alif(m);
}
#endif

STABLE_TORCH_LIBRARY_IMPL(RX_LIBRARY, RX_KEY, m) {
  m.impl("alif_forward", TORCH_BOX(&rx::alif_forward<rx::OnCudaAlif>));
  m.impl("alif_backward", TORCH_BOX(&rx::alif_backward<rx::OnCudaAlif>));
}
