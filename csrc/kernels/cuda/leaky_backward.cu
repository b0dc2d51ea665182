// LeakyRNN backward under every transport policy on CUDA.
#include "kernels/cuda/leaky_steps.h"
#include "kernels/cuda/run.h"

namespace rx {
namespace cuda {
namespace {

template <class E, bool Voltage>
const char* by_policy(const LeakyBackward<ComputeOf<E>, E>& p, const Launch<E>& launch, bool vec) {
  const char* name = "leaky_backward";
  switch (p.transport) {
    case Transport::Local:
      return run_columns<BackwardStep<E, Voltage, Transport::Local>>(name, p, launch, vec);
    case Transport::Diagonal:
      return run_columns<BackwardStep<E, Voltage, Transport::Diagonal>>(name, p, launch, vec);
    case Transport::Hop:
      return run<BackwardStep<E, Voltage, Transport::Hop>>(name, p, launch, vec);
    case Transport::State:
      return run<BackwardStep<E, Voltage, Transport::State>>(name, p, launch, vec);
    default:
      return run<BackwardStep<E, Voltage, Transport::Full>>(name, p, launch, vec);
  }
}

}  // namespace

template <class E>
const char* backward(const LeakyBackward<ComputeOf<E>, E>& p, const Launch<E>& launch) {
  const bool vec = whole_words(p.s.n, p.gy.p, p.gaux.p, p.gs_n.p, p.y.p, p.aux.p, p.leak.p, p.delta, p.gy0, p.gs0, p.lam);
  return p.s.form == Form::Voltage ? by_policy<E, true>(p, launch, vec) : by_policy<E, false>(p, launch, vec);
}

template const char* backward(const LeakyBackward<float, float>&, const Launch<float>&);
template const char* backward(const LeakyBackward<double, double>&, const Launch<double>&);
template const char* backward(const LeakyBackward<float, BFloat16>&, const Launch<BFloat16>&);
template const char* backward(const LeakyBackward<float, Float16>&, const Launch<Float16>&);

}  // namespace cuda
}  // namespace rx
