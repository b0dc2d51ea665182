// How operations start the steps of RTRL and SnAp on CUDA. No torch and no CUDA header here. A block has a panel of columns of
// one batch row in shared memory; each batch row's share of the gradient goes to `partial`, and a second launch adds these up
// in order.
#pragma once
#include "kernels/influence.h"

namespace rx {
namespace cuda {

// Each starts its work on the stream and returns null, or the message of an error. T: float, double.
// partial: (signals, B, R Q).
template <class T>
const char* rtrl_step(const RtrlStep<T>& p, T* partial, void* stream);
// partial: (signals, B, G columns of all owners); most_units: of the owner that reaches most.
template <class T>
const char* snap_step(const SnapStep<T>& p, int64_t most_units, T* partial, void* stream);

}  // namespace cuda
}  // namespace rx
