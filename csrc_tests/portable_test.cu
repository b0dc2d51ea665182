// Uses every name of csrc/kernels/cuda/portable.h once: nvcc must compile it without a warning, and the emulator too.
#include "kernels/cuda/portable.h"

template <class T, int kWidth>
__global__ void every_name(const uint32_t* from, float* to, T value, int n) {
  RX_SHARED(fixed, uint32_t[2][16]);
  RX_DYNAMIC_SHARED(T, dynamic);
  const int t = static_cast<int>(threadIdx.x);
  if (RX_BOUND(1, t < 8)) rx::cuda::copy_async<16>(&fixed[t / 4][t % 4 * 4], from + t * 4);
  rx::cuda::copy_async<4>(dynamic + t, from + t, t < n ? 4 : 0);
  rx::cuda::copy_async<8>(dynamic + 32 + 2 * t, from + 2 * t);
  rx::cuda::copy_commit();
  rx::cuda::copy_wait<0>();
  RX_BARRIER(1);
  const uint32_t a[4] = {fixed[0][t % 16], fixed[1][t % 16], 0, 0}, b[2] = {1, 2};
  float d[4] = {};
  rx::cuda::mma_bf16(d, a, b);
  rx::cuda::mma_f16(d, a, b);
  const float sum = __shfl_xor_sync(0xffffffffu, d[0], 1) + __half2float(__float2half_rn(d[1])) +
                    __bfloat162float(__float2bfloat16_rn(d[2])) + static_cast<float>(dynamic[t] + value);
  if (t < kWidth) atomicAdd(to, sum);
}

const char* launch_every_name(const uint32_t* from, float* to, void* stream) {
  const rx::cuda::Limits limits = rx::cuda::limits();
  if (limits.major < 8 || limits.max_dynamic_shared < (64 << 10) || limits.sm_count < 1 || limits.threads_per_sm < 1024)
    return "device";
  if (!rx::cuda::set_max_dynamic_shared(every_name<float, 4>, 64 << 10)) return rx::cuda::last_error();
  rx::cuda::zero(to, sizeof *to, stream);
  RX_LAUNCH((every_name<float, 4>), dim3(2, 1), dim3(32), 64 << 10, stream, from, to, 1.0f, 5);
  return rx::cuda::last_error();
}
