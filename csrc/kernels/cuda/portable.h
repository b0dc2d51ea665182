// One source for two compilers: nvcc, and the host compiler with the emulator of csrc_tests/ (RX_CUDA_ON_CPU), which runs a
// kernel block by block with one fiber per thread. Both give the same names:
//   RX_SHARED(name, T[N])              static shared memory, 16-byte aligned
//   RX_DYNAMIC_SHARED(T, name)         dynamic shared memory as numbers of type T, 16-byte aligned
//   RX_LAUNCH(kernel, grid, block, shared, stream, ...)   a template's instance in parentheses: (kernel<float, 4>)
//   RX_BARRIER(number), RX_BOUND(number, condition)       see below
// and in rx::cuda, on the device: copy_async<4, 8 or 16>(to, from, valid bytes), copy_commit(), copy_wait<groups kept>(),
// mma_bf16(d, a, b), mma_f16(d, a, b) (m16n8k16, d: 4 floats, a: 4 and b: 2 registers of two numbers); on the host: limits(),
// set_max_dynamic_shared(kernel, bytes), zero(p, bytes, stream), last_error(). A stream is a void*.
#pragma once
#include <cstddef>
#include <cstdint>

#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#define RX_SHARED(name, ...) __shared__ __align__(16) rx::cuda::Plain<__VA_ARGS__> name
#define RX_DYNAMIC_SHARED(T, name)                             \
  extern __shared__ __align__(16) unsigned char rx_dynamic_[]; \
  T* name = reinterpret_cast<T*>(rx_dynamic_)
#define RX_LAUNCH(kernel, grid, block, shared, stream, ...) \
  kernel<<<(grid), (block), (shared), static_cast<cudaStream_t>(stream)>>>(__VA_ARGS__)

namespace rx {
namespace cuda {

template <class T>
using Plain = T;  // turns float[4][2] into one name

// What launchers need to know of the current device; `major` is 0 where there is none, and last_error() says why.
struct Limits {
  int major, minor;
  int64_t max_dynamic_shared;  // bytes per block, after set_max_dynamic_shared
  int sm_count;
  int threads_per_sm;
};
inline Limits limits() {
  int device = 0, shared = 0;
  Limits l = {};
  if (cudaGetDevice(&device) == cudaSuccess &&
      cudaDeviceGetAttribute(&shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, device) == cudaSuccess &&
      cudaDeviceGetAttribute(&l.sm_count, cudaDevAttrMultiProcessorCount, device) == cudaSuccess &&
      cudaDeviceGetAttribute(&l.threads_per_sm, cudaDevAttrMaxThreadsPerMultiProcessor, device) == cudaSuccess &&
      cudaDeviceGetAttribute(&l.minor, cudaDevAttrComputeCapabilityMinor, device) == cudaSuccess)
    cudaDeviceGetAttribute(&l.major, cudaDevAttrComputeCapabilityMajor, device);
  l.max_dynamic_shared = shared;
  return l;
}

// Allows a kernel more dynamic shared memory than 48 KiB on the current device. False: see last_error().
template <class R, class... P>
bool set_max_dynamic_shared(R (*kernel)(P...), size_t bytes) {
  return cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                              static_cast<int>(bytes)) == cudaSuccess;
}

inline void zero(void* p, size_t bytes, void* stream) {
  if (bytes > 0) static_cast<void>(cudaMemsetAsync(p, 0, bytes, static_cast<cudaStream_t>(stream)));
}

// The error of the last calls, or null. Asking clears it.
inline const char* last_error() {
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

// Copies from global to shared memory in the background; what lies beyond the valid bytes becomes zero.
template <int kBytes>
__device__ __forceinline__ void copy_async(void* to, const void* from, int valid = kBytes) {
  static_assert(kBytes == 4 || kBytes == 8 || kBytes == 16, "cp.async copies 4, 8 or 16 bytes");
  const unsigned at = static_cast<unsigned>(__cvta_generic_to_shared(to));
  if constexpr (kBytes == 16)
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(at), "l"(from), "r"(valid) : "memory");
  else
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(at), "l"(from), "n"(kBytes), "r"(valid) : "memory");
}
__device__ __forceinline__ void copy_commit() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
template <int kKeep>
__device__ __forceinline__ void copy_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kKeep) : "memory");
}

#define RX_MMA(name, type)                                                               \
  __device__ __forceinline__ void name(float* d, const uint32_t* a, const uint32_t* b) { \
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." type "." type                  \
                 ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"  \
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                        \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));    \
  }
RX_MMA(mma_bf16, "bf16")
RX_MMA(mma_f16, "f16")
#undef RX_MMA

}  // namespace cuda
}  // namespace rx
#elif defined(RX_CUDA_ON_CPU)
#include "emulator.h"
#else
#error "a CUDA kernel is compiled by nvcc, or for the emulator with RX_CUDA_ON_CPU"
#endif

// Barriers and bound checks carry a number, so that the mutation test can take out one at a time (RX_MUTATE).
#ifdef RX_MUTATE
#define RX_BARRIER(number)                      \
  do {                                          \
    if ((number) != RX_MUTATE) __syncthreads(); \
  } while (0)
#define RX_BOUND(number, condition) ((number) == RX_MUTATE || (condition))
#else
#define RX_BARRIER(number) __syncthreads()
#define RX_BOUND(number, condition) (condition)
#endif
