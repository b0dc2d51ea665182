// ALIF and LIF backward under every transport policy on CUDA.
#include "kernels/cuda/alif_steps.h"
#include "kernels/cuda/run.h"

namespace rx {
namespace cuda {
namespace {

template <class T, bool Adapts>
const char* by_policy(const char* name, const WithShared<AlifBackward<T>, T>& p, const Launch<T>& launch, bool vec) {
  switch (p.transport) {
    case Transport::Local:
      return run_columns<AlifBackwardStep<T, Adapts, Transport::Local>>(name, p, launch, vec);
    case Transport::Diagonal:
      return run_columns<AlifBackwardStep<T, Adapts, Transport::Diagonal>>(name, p, launch, vec);
    default:
      return run<AlifBackwardStep<T, Adapts, Transport::Full>>(name, p, launch, vec);
  }
}

}  // namespace

template <class T>
const char* alif_backward(const AlifBackward<T>& p, const Launch<T>& launch) {
  const bool vec = whole_words(p.s.n, p.gz.p, p.gv_n.p, p.ga_n.p, p.z.p, p.v.p, p.psi.p, p.z0.p, p.v0.p, p.alpha.p, p.rho.p,
                               p.beta.p, p.delta, p.gz0, p.gv0, p.ga0, p.dv, p.da, p.dx);
  const WithShared<AlifBackward<T>, T> with{p, alif_shared<T>(p.s, 0, 0)};
  if (p.beta.p) return by_policy<T, true>("alif_backward", with, launch, vec);
  return by_policy<T, false>("lif_backward", with, launch, vec);
}

template const char* alif_backward(const AlifBackward<float>&, const Launch<float>&);
template const char* alif_backward(const AlifBackward<double>&, const Launch<double>&);

}  // namespace cuda
}  // namespace rx
