// ALIF and LIF forward on CUDA.
#include "kernels/cuda/alif_steps.h"
#include "kernels/cuda/run.h"

namespace rx {
namespace cuda {

template <class T>
const char* alif_forward(const AlifForward<T>& p, const Launch<T>& launch) {
  const bool vec = whole_words(p.s.n, p.pre.p, p.z0.p, p.v0.p, p.a0.p, p.count0.p, p.alpha.p, p.rho.p, p.beta.p, p.z, p.psi,
                               p.v, p.a, p.v_n, p.a_n, p.count_n);
  const WithShared<AlifForward<T>, T> with{p, alif_shared<T>(p.s, p.gamma, p.refractory)};
  if (p.beta.p) return run<AlifForwardStep<T, true>>("alif_forward", with, launch, vec);
  return run<AlifForwardStep<T, false>>("lif_forward", with, launch, vec);
}

template const char* alif_forward(const AlifForward<float>&, const Launch<float>&);
template const char* alif_forward(const AlifForward<double>&, const Launch<double>&);

}  // namespace cuda
}  // namespace rx
