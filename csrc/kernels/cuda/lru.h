// How operations start the LRU's scans on CUDA. No torch and no CUDA header here. Time is cut into chunks that run side by
// side: each from nothing, then what they hand over is carried from chunk to chunk, then each once more from what it got. A
// product by lambda's power takes a chunk's place, so the carrying is short, and all sums are in a fixed order.
#pragma once
#include "kernels/lru.h"

namespace rx {
namespace cuda {

struct Chunks {
  int64_t steps, count;  // a power of two, and how many cover T
};

// Short enough chunks for the threads of a card to have something to do, each at least 32 steps.
inline Chunks lru_chunks(const LruShape& s) {
  constexpr int64_t kEnough = 1 << 17;
  const int64_t across = s.L * s.B * ((s.n + 3) / 4);
  int64_t steps = 32;
  while (steps < s.T && across * ((s.T + 2 * steps - 1) / (2 * steps)) >= kEnough) steps *= 2;
  return {steps, (s.T + steps - 1) / steps};
}

// Numbers of device memory that `between` (and `sums`, without which lambda gets no gradient) point to.
inline int64_t lru_between(const LruShape& s) {
  return s.L * s.B * lru_chunks(s).count * 2 * s.n;
}

// Each starts its work on the stream and returns null, or the message of an error. T: float, double.
// between, sums: (L * B, chunks, 2, n); glam: (L, 2, n), null without sums. LruBackward's own `sums` isn't used.
template <class T>
const char* lru_scan(const LruScan<T>& p, T* between, void* stream);
template <class T>
const char* lru_backward(const LruBackward<T>& p, T* between, T* sums, T* glam, void* stream);

}  // namespace cuda
}  // namespace rx
