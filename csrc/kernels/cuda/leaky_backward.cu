// LeakyRNN backward under every transport policy on CUDA.
#include "kernels/cuda/leaky_steps.h"
#include "kernels/cuda/run.h"

namespace rx {
namespace cuda {
namespace {

template <class T, bool Voltage>
const char* by_policy(const LeakyBackward<T>& p, const Launch<T>& launch, bool vec) {
  const char* name = "leaky_backward";
  switch (p.transport) {
    case Transport::Local:
      return run_columns<BackwardStep<T, Voltage, Transport::Local>>(name, p, launch, vec);
    case Transport::Diagonal:
      return run_columns<BackwardStep<T, Voltage, Transport::Diagonal>>(name, p, launch, vec);
    case Transport::Hop:
      return run<BackwardStep<T, Voltage, Transport::Hop>>(name, p, launch, vec);
    case Transport::State:
      return run<BackwardStep<T, Voltage, Transport::State>>(name, p, launch, vec);
    default:
      return run<BackwardStep<T, Voltage, Transport::Full>>(name, p, launch, vec);
  }
}

}  // namespace

template <class T>
const char* backward(const LeakyBackward<T>& p, const Launch<T>& launch) {
  const bool vec = whole_words(p.s.n, p.gy.p, p.gaux.p, p.gs_n.p, p.y.p, p.aux.p, p.leak.p, p.delta, p.gy0, p.gs0, p.lam);
  return p.s.form == Form::Voltage ? by_policy<T, true>(p, launch, vec) : by_policy<T, false>(p, launch, vec);
}

template const char* backward(const LeakyBackward<float>&, const Launch<float>&);
template const char* backward(const LeakyBackward<double>&, const Launch<double>&);

}  // namespace cuda
}  // namespace rx
