// Learning rules as transport policies: what the backward recursion carries from t+1 to t across units.
#pragma once
#include <cstdint>

#include "kernels/config.h"

namespace rx {

enum class Transport : int64_t { Full = 0, Local = 1, Diagonal = 2, Hop = 3, State = 4 };

// Whether a policy multiplies what it carries by a matrix at every step.
RX_BOTH constexpr bool multiplies(Transport p) {
  return p == Transport::Full || p == Transport::Hop || p == Transport::State;
}

}  // namespace rx
