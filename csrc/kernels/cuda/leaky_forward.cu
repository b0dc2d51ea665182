// LeakyRNN forward on CUDA.
#include "kernels/cuda/leaky_steps.h"
#include "kernels/cuda/run.h"

namespace rx {
namespace cuda {

const char* describe(Card& card) {
  const Limits found = limits();
  if (found.major == 0) return error_of("device query", last_error());
  card = {found.max_dynamic_shared, found.sm_count};
  return nullptr;
}

template <class T>
const char* forward(const LeakyForward<T>& p, const Launch<T>& launch) {
  const char* name = "leaky_forward";
  const bool vec = whole_words(p.s.n, p.pre.p, p.y0.p, p.s0.p, p.leak.p, p.y, p.aux, p.s_n);
  if (p.s.form == Form::Voltage) return run<ForwardStep<T, true, false>>(name, p, launch, vec);
  if (p.s.unit_leak) return run<ForwardStep<T, false, true>>(name, p, launch, vec);
  return run<ForwardStep<T, false, false>>(name, p, launch, vec);
}

template const char* forward(const LeakyForward<float>&, const Launch<float>&);
template const char* forward(const LeakyForward<double>&, const Launch<double>&);

}  // namespace cuda
}  // namespace rx
