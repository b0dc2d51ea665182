// Tangents of the GRU and LSTM recurrences on CUDA: forward, and backward under the exact rule.
#include "kernels/cuda/gated_tangent_steps.h"
#include "kernels/cuda/run.h"

namespace rx {
namespace cuda {

template <class E>
const char* gated_forward_jvp(const GatedForwardJvp<ComputeOf<E>, E>& p, const Launch<E>& launch) {
  const bool vec = whole_words(p.s.n, p.du.p, p.dh0.p, p.dc0.p, p.y.p, p.aux.p, p.before.p, p.dy, p.daux, p.dh_n, p.dc_n);
  if (p.cell == GatedCell::Gru) return run<GatedForwardJvpStep<E, Gru>>("gru_forward_jvp", p, launch, vec);
  return run<GatedForwardJvpStep<E, Lstm>>("lstm_forward_jvp", p, launch, vec);
}

template <class E>
const char* gated_backward_jvp(const GatedBackwardJvp<ComputeOf<E>, E>& p, const Launch<E>& launch) {
  const bool vec = whole_words(p.s.n, p.dgy.p, p.dgh_n.p, p.dgc_n.p, p.y.p, p.dy.p, p.aux.p, p.daux.p, p.before.p, p.dbefore.p,
                               p.lam.p, p.to_c.p, p.ddelta, p.dgh0, p.dgc0);
  if (p.cell == GatedCell::Gru) return run<GatedBackwardJvpStep<E, Gru>>("gru_backward_jvp", p, launch, vec);
  return run<GatedBackwardJvpStep<E, Lstm>>("lstm_backward_jvp", p, launch, vec);
}

template const char* gated_forward_jvp(const GatedForwardJvp<float, float>&, const Launch<float>&);
template const char* gated_forward_jvp(const GatedForwardJvp<double, double>&, const Launch<double>&);
template const char* gated_forward_jvp(const GatedForwardJvp<float, BFloat16>&, const Launch<BFloat16>&);
template const char* gated_forward_jvp(const GatedForwardJvp<float, Float16>&, const Launch<Float16>&);
template const char* gated_backward_jvp(const GatedBackwardJvp<float, float>&, const Launch<float>&);
template const char* gated_backward_jvp(const GatedBackwardJvp<double, double>&, const Launch<double>&);
template const char* gated_backward_jvp(const GatedBackwardJvp<float, BFloat16>&, const Launch<BFloat16>&);
template const char* gated_backward_jvp(const GatedBackwardJvp<float, Float16>&, const Launch<Float16>&);

}  // namespace cuda
}  // namespace rx
