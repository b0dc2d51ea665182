// How operations start the CUDA recurrences. No torch and no CUDA header here: the operations are compiled by the host's
// compiler alone.
#pragma once
#include "kernels/cuda/strategy.h"
#include "kernels/leaky.h"

namespace rx {
namespace cuda {

// The current device; null, or the runtime's message.
const char* describe(Card& card);

template <class T>
struct Launch {
  void* stream;
  Strategy strategy;  // not Automatic
  Card card;
  // Stepwise only: what steps keep, (rows, n) each, rows = L B; and product = carry times the recurrent matrix, on `stream`.
  T *state, *extra, *carry, *product;
  void (*multiply)(void* context);
  void* context;
};

// Each starts its work on the stream and returns null, or the message of an error with the kernel's name.
template <class T>
const char* forward(const LeakyForward<T>& p, const Launch<T>& launch);
template <class T>
const char* backward(const LeakyBackward<T>& p, const Launch<T>& launch);
template <class T>
const char* forward_jvp(const LeakyForwardJvp<T>& p, const Launch<T>& launch);
template <class T>
const char* backward_jvp(const LeakyBackwardJvp<T>& p, const Launch<T>& launch);

}  // namespace cuda
}  // namespace rx
