// How operations start the CUDA recurrences. No torch and no CUDA header here: the operations are compiled by the host's
// compiler alone.
#pragma once
#include "kernels/alif.h"
#include "kernels/cuda/strategy.h"
#include "kernels/gated.h"
#include "kernels/leaky.h"

namespace rx {
namespace cuda {

// The current device; null, or the runtime's message.
const char* describe(Card& card);

template <class E>
struct Launch {
  void* stream;
  Strategy strategy;  // not Automatic
  Card card;
  // Stepwise only: what steps keep, (rows, widths n) with rows = L B; and product = carry times the recurrent matrix, on
  // `stream`. Of `gates` gates, a forward pass has 1 carry and `gates` products a unit, a backward pass the reverse.
  ComputeOf<E>*state, *extra, *product;
  E* carry;
  void (*multiply)(void* context);
  void* context;
};

// Each starts its work on the stream and returns null, or the message of an error with the kernel's name. E: float, double,
// BFloat16, Float16.
template <class E>
const char* forward(const LeakyForward<ComputeOf<E>, E>& p, const Launch<E>& launch);
template <class E>
const char* backward(const LeakyBackward<ComputeOf<E>, E>& p, const Launch<E>& launch);
template <class E>
const char* forward_jvp(const LeakyForwardJvp<ComputeOf<E>, E>& p, const Launch<E>& launch);
template <class E>
const char* backward_jvp(const LeakyBackwardJvp<ComputeOf<E>, E>& p, const Launch<E>& launch);
template <class E>
const char* gated_forward(const GatedForward<ComputeOf<E>, E>& p, const Launch<E>& launch);
template <class E>
const char* gated_backward(const GatedBackward<ComputeOf<E>, E>& p, const Launch<E>& launch);
template <class E>
const char* gated_forward_jvp(const GatedForwardJvp<ComputeOf<E>, E>& p, const Launch<E>& launch);
template <class E>
const char* gated_backward_jvp(const GatedBackwardJvp<ComputeOf<E>, E>& p, const Launch<E>& launch);
// float and double alone
template <class T>
const char* alif_forward(const AlifForward<T>& p, const Launch<T>& launch);
template <class T>
const char* alif_backward(const AlifBackward<T>& p, const Launch<T>& launch);

}  // namespace cuda
}  // namespace rx
