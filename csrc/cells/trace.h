// Eligibility traces: how a unit's states depend on one parameter, E_t = D_t E_{t-1} + psi_t pre_t (Bellec et al. 2020; Murray
// 2019). Each operation is rounded where it is written, so that every kernel gives the same bits.
#pragma once
#include "kernels/primitives.h"

namespace rx {
namespace RX_NS {

// e (S): the traces of a unit's S states. d (S, S): d[s S + from] = d state s / d state `from` one step before; f (S): psi.
template <int S, class V>
RX_FN void trace_advance(const V* d, const V* f, V pre, V* e) {
  V next[S];
  for (int s = 0; s < S; ++s) {
    next[s] = f[s] * pre;
    for (int from = 0; from < S; ++from) next[s] = fused(d[s * S + from], e[from], next[s]);
  }
  for (int s = 0; s < S; ++s) e[s] = next[s];
}

// sum + the gradient of one parameter; signal (S): dE / d state.
template <int S, class V>
RX_FN V trace_contract(const V* signal, const V* e, V sum) {
  for (int s = 0; s < S; ++s) sum = fused(signal[s], e[s], sum);
  return sum;
}

// Where traces are the same for all rows up to psi: z_t = decay z_{t-1} + pre_t.
template <class V>
RX_FN V trace_filter(V decay, V z, V pre) {
  return fused(decay, z, pre);
}

}  // namespace RX_NS
}  // namespace rx
