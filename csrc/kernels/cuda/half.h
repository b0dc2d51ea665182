// From half precision to float and back (nearest, ties to even), one way of writing for all element types.
#pragma once
#include "kernels/config.h"
#include "kernels/cuda/portable.h"
#include "kernels/half.h"

namespace rx {
namespace cuda {

template <class T>
RX_FN T widen(T x) {
  return x;
}
RX_FN float widen(BFloat16 x) {
  return __bfloat162float(__ushort_as_bfloat16(x.bits));
}
RX_FN float widen(Float16 x) {
  return __half2float(__ushort_as_half(x.bits));
}

template <class E>
RX_FN E narrow(ComputeOf<E> x) {
  return x;
}
template <>
RX_FN BFloat16 narrow<BFloat16>(float x) {
  return {__bfloat16_as_ushort(__float2bfloat16_rn(x))};
}
template <>
RX_FN Float16 narrow<Float16>(float x) {
  return {__half_as_ushort(__float2half_rn(x))};
}

// d (16 x 8 floats of a warp) += a (16 x 16) b (16 x 8), two numbers of E a register.
template <class E>
__device__ __forceinline__ void mma(float* d, const uint32_t* a, const uint32_t* b);
template <>
__device__ __forceinline__ void mma<BFloat16>(float* d, const uint32_t* a, const uint32_t* b) {
  mma_bf16(d, a, b);
}
template <>
__device__ __forceinline__ void mma<Float16>(float* d, const uint32_t* a, const uint32_t* b) {
  mma_f16(d, a, b);
}

}  // namespace cuda
}  // namespace rx
