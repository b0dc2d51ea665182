// GRU and LSTM recurrences as PyTorch ops on the CPU.
#include "ops/gated.h"

#include "ops/gated_jvp.h"
#include "ops/gated_schemas.h"
#include "ops/leaky_run.h"

namespace rx {
namespace {

struct OnCpu {
  template <class F>
  static void with_dtype(ScalarType dtype, F&& f) {
    rx::with_dtype(dtype, f);
  }
  template <class T>
  static void run(const GatedForward<T>& p, const Tensor&, const Tensor& w) {
    forward(p, w, gated_kernels<T>().forward);
  }
  template <class T>
  static void run(const GatedBackward<T>& p, const Tensor&, const OptionalTensor& w) {
    const bool full = p.transport == Transport::Full;
    backward(p, full ? p.w : In<T>{nullptr, p.w.lead}, w ? w->size(0) : 0, gated_kernels<T>().backward);
  }
  template <class T>
  static void run(const GatedForwardJvp<T>& p, const Tensor&, const Tensor& w) {
    forward(p, w, gated_kernels<T>().forward_jvp);
  }
  template <class T>
  static void run(const GatedBackwardJvp<T>& p, const Tensor&, const Tensor& w) {
    backward(p, p.w, w.size(0), gated_kernels<T>().backward_jvp);
  }

 private:
  template <class T>
  static int64_t scratch(int64_t n) {
    return gated_kernels<T>().scratch_size(kTileRowsMax, n);
  }
  template <class T, template <class, class> class P>
  static void forward(const P<T, T>& p, const Tensor& w, void (*kernel)(const P<T, T>&, RowRange, const T*, T*)) {
    const int64_t n = p.s.n;
    Tiles<T>(p.s.L, p.s.B, p.w, w.size(0), n, gates(p.cell) * n, true, scratch<T>(n), false).run(p, kernel);
  }
  template <class T, template <class, class> class P>
  static void backward(const P<T, T>& p, const In<T>& matrix, int64_t matrices,
                       void (*kernel)(const P<T, T>&, RowRange, const T*, T*)) {
    const int64_t n = p.s.n;
    Tiles<T>(p.s.L, p.s.B, matrix, matrices, gates(p.cell) * n, n, false, scratch<T>(n), false).run(p, kernel);
  }
};

}  // namespace
}  // namespace rx

STABLE_TORCH_LIBRARY_FRAGMENT(rtrl_ext, m) {
  rx::define_gated(m);
}

STABLE_TORCH_LIBRARY_IMPL(rtrl_ext, CPU, m) {
  m.impl("gru_forward", TORCH_BOX(&rx::gru_forward<rx::OnCpu>));
  m.impl("gru_backward", TORCH_BOX(&rx::gru_backward<rx::OnCpu>));
  m.impl("gru_forward_jvp", TORCH_BOX(&rx::gru_forward_jvp<rx::OnCpu>));
  m.impl("gru_backward_jvp", TORCH_BOX(&rx::gru_backward_jvp<rx::OnCpu>));
  m.impl("lstm_forward", TORCH_BOX(&rx::lstm_forward<rx::OnCpu>));
  m.impl("lstm_backward", TORCH_BOX(&rx::lstm_backward<rx::OnCpu>));
  m.impl("lstm_forward_jvp", TORCH_BOX(&rx::lstm_forward_jvp<rx::OnCpu>));
  m.impl("lstm_backward_jvp", TORCH_BOX(&rx::lstm_backward_jvp<rx::OnCpu>));
}
