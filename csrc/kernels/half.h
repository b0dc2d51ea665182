// Half-precision numbers as they lie in memory, for code that includes no CUDA header; kernels/cuda/half.h computes with them.
#pragma once
#include <cstdint>

namespace rx {

struct alignas(2) BFloat16 {
  uint16_t bits;
};
struct alignas(2) Float16 {
  uint16_t bits;
};

// The type in which arrays of E are computed, summed and kept as state.
template <class E>
struct Compute {
  using Type = E;
};
template <>
struct Compute<BFloat16> {
  using Type = float;
};
template <>
struct Compute<Float16> {
  using Type = float;
};
template <class E>
using ComputeOf = typename Compute<E>::Type;

}  // namespace rx
