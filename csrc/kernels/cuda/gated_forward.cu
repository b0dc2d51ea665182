// GRU and LSTM forward on CUDA.
#include "kernels/cuda/gated_steps.h"
#include "kernels/cuda/run.h"

namespace rx {
namespace cuda {

template <class E>
const char* gated_forward(const GatedForward<ComputeOf<E>, E>& p, const Launch<E>& launch) {
  const bool vec = whole_words(p.s.n, p.pre.p, p.h0.p, p.c0.p, p.bias.p, p.y, p.aux, p.h_n, p.c_n);
  if (p.cell == GatedCell::Gru) return run<GatedForwardStep<E, Gru>>("gru_forward", p, launch, vec);
  return run<GatedForwardStep<E, Lstm>>("lstm_forward", p, launch, vec);
}

template const char* gated_forward(const GatedForward<float, float>&, const Launch<float>&);
template const char* gated_forward(const GatedForward<double, double>&, const Launch<double>&);
template const char* gated_forward(const GatedForward<float, BFloat16>&, const Launch<BFloat16>&);
template const char* gated_forward(const GatedForward<float, Float16>&, const Launch<Float16>&);

}  // namespace cuda
}  // namespace rx
