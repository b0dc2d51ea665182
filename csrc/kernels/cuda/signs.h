// How an operation draws random signs on CUDA. No torch and no CUDA header here.
#pragma once
#include "kernels/philox.h"

namespace rx {
namespace cuda {

// Starts its work on the stream and returns null, or the message of an error. T: float, double.
template <class T>
const char* random_signs(const Signs<T>& p, void* stream);

}  // namespace cuda
}  // namespace rx
