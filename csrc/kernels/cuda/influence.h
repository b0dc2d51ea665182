// How operations start the steps of RTRL and SnAp on CUDA. No torch and no CUDA header here. Small products J M are a kernel's:
// a block has a panel of columns of one batch row in shared memory. Large ones are the vendor's, some columns at a time, so
// that they are still in the cache when a kernel adds the immediate term and writes them into the influence. Each batch row's
// share of the gradient goes to `partial`, and another launch adds these up in order.
#pragma once
#include "kernels/influence.h"

namespace rx {
namespace cuda {

// The vendor's product of a step: out (B, S n, columns) = the Jacobian (B, S n, S n) of step k times `columns` columns of the
// influence from `first` on, at most `most`. `multiply` starts it on the stream.
struct Products {
  void* out;
  int64_t most;
  void (*multiply)(void* context, int64_t k, int64_t first, int64_t columns);
  void* context;
};

// Each starts its work on the stream and returns null, or the message of an error. T: float, double.
// partial: (signals, B, R Q); products: null for the kernel's own.
template <class T>
const char* rtrl_step(const RtrlStep<T>& p, const Products* products, T* partial, void* stream);
// partial: (signals, B, G columns of all owners); most_units: of the owner that reaches most.
template <class T>
const char* snap_step(const SnapStep<T>& p, int64_t most_units, T* partial, void* stream);

}  // namespace cuda
}  // namespace rx
