// Tangents of the LeakyRNN recurrence on CUDA: forward, and backward under the exact rule.
#include "kernels/cuda/leaky_tangent_steps.h"
#include "kernels/cuda/run.h"

namespace rx {
namespace cuda {

template <class E>
const char* forward_jvp(const LeakyForwardJvp<ComputeOf<E>, E>& p, const Launch<E>& launch) {
  const char* name = "leaky_forward_jvp";
  const bool vec =
      whole_words(p.s.n, p.dpre.p, p.dy0.p, p.ds0.p, p.dleak.p, p.y.p, p.aux.p, p.s0.p, p.leak.p, p.dy, p.daux, p.ds_n, p.du);
  if (p.s.form == Form::Voltage) return run<ForwardJvpStep<E, true>>(name, p, launch, vec);
  return run<ForwardJvpStep<E, false>>(name, p, launch, vec);
}

template <class E>
const char* backward_jvp(const LeakyBackwardJvp<ComputeOf<E>, E>& p, const Launch<E>& launch) {
  const char* name = "leaky_backward_jvp";
  const bool vec = whole_words(p.s.n, p.dgy.p, p.dgs_n.p, p.dleak.p, p.dy.p, p.daux.p, p.y.p, p.aux.p, p.lam.p, p.delta.p,
                               p.leak.p, p.ddelta, p.dgy0, p.dgs0, p.dlam);
  if (p.s.form == Form::Voltage) return run<BackwardJvpStep<E, true>>(name, p, launch, vec);
  return run<BackwardJvpStep<E, false>>(name, p, launch, vec);
}

template const char* forward_jvp(const LeakyForwardJvp<float, float>&, const Launch<float>&);
template const char* forward_jvp(const LeakyForwardJvp<double, double>&, const Launch<double>&);
template const char* forward_jvp(const LeakyForwardJvp<float, BFloat16>&, const Launch<BFloat16>&);
template const char* forward_jvp(const LeakyForwardJvp<float, Float16>&, const Launch<Float16>&);
template const char* backward_jvp(const LeakyBackwardJvp<float, float>&, const Launch<float>&);
template const char* backward_jvp(const LeakyBackwardJvp<double, double>&, const Launch<double>&);
template const char* backward_jvp(const LeakyBackwardJvp<float, BFloat16>&, const Launch<BFloat16>&);
template const char* backward_jvp(const LeakyBackwardJvp<float, Float16>&, const Launch<Float16>&);

}  // namespace cuda
}  // namespace rx
