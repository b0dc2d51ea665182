// LeakyRNN forward on CUDA.
#include "kernels/cuda/leaky_steps.h"
#include "kernels/cuda/run.h"

namespace rx {
namespace cuda {

template <class E>
const char* forward(const LeakyForward<ComputeOf<E>, E>& p, const Launch<E>& launch) {
  const char* name = "leaky_forward";
  const bool vec = whole_words(p.s.n, p.pre.p, p.y0.p, p.s0.p, p.leak.p, p.y, p.aux, p.s_n);
  if (p.s.form == Form::Voltage) return run<ForwardStep<E, true, false>>(name, p, launch, vec);
  if (p.s.unit_leak) return run<ForwardStep<E, false, true>>(name, p, launch, vec);
  return run<ForwardStep<E, false, false>>(name, p, launch, vec);
}

template const char* forward(const LeakyForward<float, float>&, const Launch<float>&);
template const char* forward(const LeakyForward<double, double>&, const Launch<double>&);
template const char* forward(const LeakyForward<float, BFloat16>&, const Launch<BFloat16>&);
template const char* forward(const LeakyForward<float, Float16>&, const Launch<Float16>&);

}  // namespace cuda
}  // namespace rx
