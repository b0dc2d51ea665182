// Prints a sum over conversions of many numbers to and from the half types: the emulator's and the CUDA headers' must be equal.
#include <cstdint>
#include <cstdio>
#include <cstring>

#ifdef RX_CUDA_ON_CPU
#include "emulator_types.h"
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#endif

static uint64_t sum = 14695981039346656037u;

template <class T>
static void add(T value) {
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof value);
  sum = (sum ^ bits) * 1099511628211u;
}

static void convert(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  add(__float2half_rn(value));
  add(__float2bfloat16_rn(value));
  add(__floats2bfloat162_rn(value, -value));
  add(__floats2half2_rn(value, 1.0f));
}

int main() {
  for (uint32_t i = 0; i < 65536; ++i) {
    const uint16_t bits = static_cast<uint16_t>(i);
    __half h;
    __nv_bfloat16 b;
    std::memcpy(&h, &bits, sizeof h);
    std::memcpy(&b, &bits, sizeof b);
    if ((bits & 0x7fff) <= 0x7c00) add(__half2float(h));
    if ((bits & 0x7fff) <= 0x7f80) add(__bfloat162float(b));
    for (uint32_t low = 0x7fff; low <= 0x8001; ++low) convert(i << 16 | low);  // ties of bfloat16
    // Ties of half, normal and subnormal: a half and the middle between it and the next, one unit of the float around it.
    const float value = __half2float(h);
    uint32_t u;
    std::memcpy(&u, &value, sizeof u);
    for (uint32_t bit = 12; bit < 23 && (bits & 0x7fff) < 0x7c00; ++bit)
      for (uint32_t d = 0; d < 3; ++d) convert(u + (1u << bit) + d - 1);
  }
  for (uint64_t u = 0; u < 0x100000000u; u += 8209) convert(static_cast<uint32_t>(u));
  std::printf("%016llx\n", static_cast<unsigned long long>(sum));
}
