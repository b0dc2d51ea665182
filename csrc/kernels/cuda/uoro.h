// How an operation starts a step of UORO on CUDA. No torch and no CUDA header here. All sums are in a fixed order.
#pragma once
#include "kernels/config.h"
#include "kernels/uoro.h"

namespace rx {
namespace cuda {

// Columns of theta that one warp has, and how many warps a row takes: `sums` is (B, R, parts of a row).
constexpr int64_t kUoroColumns = 128;
RX_BOTH constexpr int64_t uoro_parts(int64_t Q) {
  return (Q + kUoroColumns - 1) / kUoroColumns;
}

// Starts its work on the stream and returns null, or the message of an error. known: whether `norm` holds the norm.
// T: float, double.
template <class T>
const char* uoro_step(const Uoro<T>& p, bool known, void* stream);

}  // namespace cuda
}  // namespace rx
