// The LeakyRNN recurrence as PyTorch ops on the CPU.
#include "ops/leaky.h"

#include "ops/leaky_jvp.h"
#include "ops/leaky_run.h"
#include "ops/leaky_schemas.h"

namespace rx {
namespace {

struct OnCpu {
  template <class F>
  static void with_dtype(ScalarType dtype, F&& f) {
    rx::with_dtype(dtype, f);
  }
  template <class T>
  static void run(const LeakyForward<T>& p, const Tensor&, const Tensor& w) {
    run_tiles<T>(p, p.w, w.size(0), true, leaky_kernels<T>().forward);
  }
  template <class T>
  static void run(const LeakyBackward<T>& p, const Tensor&, const OptionalTensor& w) {
    run_tiles<T>(p, p.w, w ? w->size(0) : 0, false, leaky_kernels<T>().backward);
  }
  template <class T>
  static void run(const LeakyForwardJvp<T>& p, const Tensor&, const Tensor& w) {
    run_tiles<T>(p, p.w, w.size(0), true, leaky_kernels<T>().forward_jvp);
  }
  template <class T>
  static void run(const LeakyBackwardJvp<T>& p, const Tensor&, const Tensor& w) {
    run_tiles<T>(p, p.w, w.size(0), false, leaky_kernels<T>().backward_jvp);
  }
};

}  // namespace
}  // namespace rx

STABLE_TORCH_LIBRARY_FRAGMENT(rtrl_ext, m) {
  rx::define_leaky(m);
}

STABLE_TORCH_LIBRARY_IMPL(rtrl_ext, CPU, m) {
  m.impl("leaky_forward", TORCH_BOX(&rx::leaky_forward<rx::OnCpu>));
  m.impl("leaky_backward", TORCH_BOX(&rx::leaky_backward<rx::OnCpu>));
  m.impl("leaky_forward_jvp", TORCH_BOX(&rx::leaky_forward_jvp<rx::OnCpu>));
  m.impl("leaky_backward_jvp", TORCH_BOX(&rx::leaky_backward_jvp<rx::OnCpu>));
}
