// ALIF and LIF recurrences as PyTorch ops on the CPU.
#include "ops/alif.h"

#include "ops/leaky_run.h"

namespace rx {
namespace {

struct OnCpu {
  template <class F>
  static void with_dtype(ScalarType dtype, F&& f) {
    rx::with_dtype(dtype, f);
  }
  template <class T>
  static void run(const AlifForward<T>& p, const Tensor&, const Tensor& w) {
    tiles<T>(p.s, p.w, w.size(0), true).run(p, alif_kernels<T>().forward);
  }
  template <class T>
  static void run(const AlifBackward<T>& p, const Tensor&, const OptionalTensor& w) {
    const In<T> matrix = multiplies(p.transport) ? p.w : In<T>{nullptr, p.w.lead};
    tiles<T>(p.s, matrix, w ? w->size(0) : 0, false).run(p, alif_kernels<T>().backward);
  }

 private:
  template <class T>
  static Tiles<T> tiles(const AlifShape& s, const In<T>& matrix, int64_t matrices, bool transpose) {
    return {s.L, s.B, matrix, matrices, s.n, s.n, transpose, alif_kernels<T>().scratch_size(kTileRowsMax, s.n), false};
  }
};

}  // namespace
}  // namespace rx

STABLE_TORCH_LIBRARY_FRAGMENT(rtrl_ext, m) {
  rx::define_alif(m);
}

STABLE_TORCH_LIBRARY_IMPL(rtrl_ext, CPU, m) {
  m.impl("alif_forward", TORCH_BOX(&rx::alif_forward<rx::OnCpu>));
  m.impl("alif_backward", TORCH_BOX(&rx::alif_backward<rx::OnCpu>));
}
