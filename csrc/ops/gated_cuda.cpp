// The GRU and LSTM recurrences as PyTorch ops on CUDA.
#include "ops/cuda.h"
#include "ops/gated.h"
#include "ops/gated_jvp.h"
#include "ops/gated_schemas.h"

namespace rx {
namespace {

struct OnCuda {
  template <class F>
  static void with_dtype(ScalarType dtype, F&& f) {
    with_cuda_dtype(dtype, f);
  }
  template <class E>
  static void run(const GatedForward<ComputeOf<E>, E>& p, const Tensor& like, const OptionalTensor& w) {
    run_on_cuda<E>(p, like, w, gates(p.cell), true, &cuda::gated_forward<E>);
  }
  template <class E>
  static void run(const GatedBackward<ComputeOf<E>, E>& p, const Tensor& like, const OptionalTensor& w) {
    const OptionalTensor matrix = multiplies(p.transport) ? w : OptionalTensor();
    run_on_cuda<E>(p, like, matrix, gates(p.cell), false, &cuda::gated_backward<E>);
  }
  template <class E>
  static void run(const GatedForwardJvp<ComputeOf<E>, E>& p, const Tensor& like, const OptionalTensor& w) {
    run_on_cuda<E>(p, like, w, gates(p.cell), true, &cuda::gated_forward_jvp<E>);
  }
  template <class E>
  static void run(const GatedBackwardJvp<ComputeOf<E>, E>& p, const Tensor& like, const OptionalTensor& w) {
    run_on_cuda<E>(p, like, w, gates(p.cell), false, &cuda::gated_backward_jvp<E>);
  }
};

}  // namespace
}  // namespace rx

#ifdef RX_CUDA_ON_CPU
STABLE_TORCH_LIBRARY_FRAGMENT(rtrl_ext_emulated, m) {
  rx::define_gated(m);
}
#endif

STABLE_TORCH_LIBRARY_IMPL(RX_LIBRARY, RX_KEY, m) {
  m.impl("gru_forward", TORCH_BOX(&rx::gru_forward<rx::OnCuda>));
  m.impl("gru_backward", TORCH_BOX(&rx::gru_backward<rx::OnCuda>));
  m.impl("gru_forward_jvp", TORCH_BOX(&rx::gru_forward_jvp<rx::OnCuda>));
  m.impl("gru_backward_jvp", TORCH_BOX(&rx::gru_backward_jvp<rx::OnCuda>));
  m.impl("lstm_forward", TORCH_BOX(&rx::lstm_forward<rx::OnCuda>));
  m.impl("lstm_backward", TORCH_BOX(&rx::lstm_backward<rx::OnCuda>));
  m.impl("lstm_forward_jvp", TORCH_BOX(&rx::lstm_forward_jvp<rx::OnCuda>));
  m.impl("lstm_backward_jvp", TORCH_BOX(&rx::lstm_backward_jvp<rx::OnCuda>));
}
