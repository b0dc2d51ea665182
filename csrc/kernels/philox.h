// Counter-based random signs: Philox-4x32-10 (Salmon et al. 2011), the same numbers as rtrl_ext/_random.py on any device.
#pragma once
#include <cstdint>

#include "kernels/config.h"

namespace rx {

// Signs of `steps` steps, of which each batch row has its own number of the first.
template <class T>
struct Signs {
  int64_t steps, B, count;
  int64_t seed, stream;
  const int64_t* first;  // (B,)
  T* out;                // (steps, B, count)
};

namespace RX_NS {

struct RandomWords {
  uint32_t w[4];
};

RX_FN RandomWords philox(RandomWords c, uint32_t k0, uint32_t k1) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = static_cast<uint64_t>(c.w[0]) * 0xD2511F53u, p1 = static_cast<uint64_t>(c.w[2]) * 0xCD9E8D57u;
    c = {{static_cast<uint32_t>(p1 >> 32) ^ c.w[1] ^ k0, static_cast<uint32_t>(p1),
          static_cast<uint32_t>(p0 >> 32) ^ c.w[3] ^ k1, static_cast<uint32_t>(p0)}};
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return c;
}

constexpr int kSignsPerDraw = 128;

// The draw that holds the signs [128 block, 128 block + 128): sign i is + where bit i mod 32 of word i / 32 is set. The top bit
// of the stream keeps them apart from the deviates that share the seed.
template <class T>
RX_FN RandomWords draw_signs(const Signs<T>& p, int64_t step, int64_t row, int64_t block) {
  const uint32_t at = static_cast<uint32_t>(static_cast<uint64_t>(p.first[row]) + static_cast<uint64_t>(step));
  const RandomWords counter = {
      {static_cast<uint32_t>(block), static_cast<uint32_t>(row), at, static_cast<uint32_t>(p.stream) | 0x80000000u}};
  return philox(counter, static_cast<uint32_t>(p.seed), static_cast<uint32_t>(static_cast<uint64_t>(p.seed) >> 32));
}

}  // namespace RX_NS
}  // namespace rx
