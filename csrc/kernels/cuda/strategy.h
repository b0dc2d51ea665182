// Which of the two ways a recurrence goes on a CUDA device. Plain C++: tested without a device.
//   persistent: one block carries a tile of rows through all steps, its recurrent matrix in shared memory, one launch in all.
//   stepwise:   per step a matrix product by the vendor's library and one pointwise kernel.
//   columns:    nothing passes between units (rules without transport): one thread per few columns, one launch in all.
#pragma once
#include <cstdint>

#include "kernels/config.h"

namespace rx {
namespace cuda {

enum class Strategy : int64_t { Automatic = 0, Persistent = 1, Stepwise = 2, Columns = 3 };

// What the rule asks of a device.
struct Card {
  int64_t shared = 0;  // bytes of dynamic shared memory that a block may ask for
  int processors = 0;  // streaming multiprocessors
};

constexpr int kColumns = 4;  // columns of one thread
constexpr int kSlices = 4;   // parts of the sum over k within a warp
constexpr int kWarpColumns = 32;
constexpr int kRowsMax = 8;           // rows of a block's tile
constexpr int kRowsMin = 4;           // where few rows would leave processors without work, and in double (registers)
constexpr int64_t kThreadsMax = 256;  // 8 warps of 32 columns

// Columns and sums padded so that no thread has to ask where they end.
RX_BOTH constexpr int64_t padded_columns(int64_t n) {
  return (n + kWarpColumns - 1) / kWarpColumns * kWarpColumns;
}
RX_BOTH constexpr int64_t padded_sum(int64_t n) {
  return (n + kSlices - 1) / kSlices * kSlices;
}

// Half numbers from one row of the carry to the next: 64 bytes more than a multiple of 128, so that the lanes of a 16-byte
// access read from different banks.
RX_BOTH constexpr int64_t carry_stride(int64_t n, int64_t carries) {
  return carries * padded_columns(n) + (carries * padded_columns(n) % 64 == 0 ? 32 : 0);
}

// What a recurrence asks of shared memory.
struct Sizes {
  int64_t n, gates;
  int64_t carries;  // numbers of a unit that the matrix is applied to: 1 in forward passes, `gates` in backward ones
  int64_t weight;   // bytes of a weight
  int64_t number;   // bytes of a number of the computation
};

// Dynamic shared memory of a persistent block: the matrices of all gates and two copies of the carry. In float and double, per
// gate, (n, padded columns) numbers of `weight` bytes and, per carry, (n, rows) of `number` bytes; in half precision, for
// tensor cores, (padded columns, padded columns) and (8, carry_stride), both of 2 bytes.
constexpr int64_t persistent_bytes(const Sizes& s, int64_t rows) {
  const int64_t columns = padded_columns(s.n);
  if (s.weight == 2) return columns * s.gates * columns * 2 + 2 * kRowsMax * carry_stride(s.n, s.carries) * 2;
  return padded_sum(s.n) * (s.gates * columns * s.weight + 2 * rows * s.carries * s.number);
}

constexpr int64_t persistent_threads(int64_t n) {
  return padded_columns(n);
}

// Whether the persistent way is there for these sizes.
constexpr bool persistent_fits(const Card& card, const Sizes& s) {
  return persistent_threads(s.n) <= kThreadsMax && persistent_bytes(s, kRowsMax) <= card.shared;
}

// Rows of every tile for weights of `weight` bytes, or 0 where the number of rows decides: in half precision as tensor cores
// have it, in double as registers allow.
constexpr int fixed_tile(int64_t weight) {
  return weight == 2 ? kRowsMax : weight == 8 ? kRowsMin : 0;
}
constexpr int tile_rows(const Card& card, int64_t weight, int64_t rows) {
  if (fixed_tile(weight)) return fixed_tile(weight);
  return rows > static_cast<int64_t>(kRowsMin) * card.processors ? kRowsMax : kRowsMin;
}

// The rule: persistent wherever it fits, unless `asked` says otherwise. What was asked for and isn't there: Automatic.
constexpr Strategy choose(Strategy asked, bool multiplies, bool fits) {
  if (!multiplies) return Strategy::Columns;
  if (asked == Strategy::Persistent) return fits ? Strategy::Persistent : Strategy::Automatic;
  if (asked == Strategy::Stepwise) return Strategy::Stepwise;
  return fits ? Strategy::Persistent : Strategy::Stepwise;
}

}  // namespace cuda
}  // namespace rx
