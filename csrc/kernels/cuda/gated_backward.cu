// GRU and LSTM backward under every transport policy on CUDA.
#include "kernels/cuda/gated_steps.h"
#include "kernels/cuda/run.h"

namespace rx {
namespace cuda {
namespace {

template <class E, class Cell>
const char* by_policy(const char* name, const GatedBackward<ComputeOf<E>, E>& p, const Launch<E>& launch, bool vec) {
  switch (p.transport) {
    case Transport::Local:
      return run_columns<GatedBackwardStep<E, Cell, Transport::Local>>(name, p, launch, vec);
    case Transport::Diagonal:
      return run_columns<GatedBackwardStep<E, Cell, Transport::Diagonal>>(name, p, launch, vec);
    default:
      return run<GatedBackwardStep<E, Cell, Transport::Full>>(name, p, launch, vec);
  }
}

}  // namespace

template <class E>
const char* gated_backward(const GatedBackward<ComputeOf<E>, E>& p, const Launch<E>& launch) {
  const bool vec =
      whole_words(p.s.n, p.gy.p, p.gh_n.p, p.gc_n.p, p.y.p, p.aux.p, p.before.p, p.delta, p.gh0, p.gc0, p.lam, p.to_c);
  if (p.cell == GatedCell::Gru) return by_policy<E, Gru>("gru_backward", p, launch, vec);
  return by_policy<E, Lstm>("lstm_backward", p, launch, vec);
}

template const char* gated_backward(const GatedBackward<float, float>&, const Launch<float>&);
template const char* gated_backward(const GatedBackward<double, double>&, const Launch<double>&);
template const char* gated_backward(const GatedBackward<float, BFloat16>&, const Launch<BFloat16>&);
template const char* gated_backward(const GatedBackward<float, Float16>&, const Launch<Float16>&);

}  // namespace cuda
}  // namespace rx
