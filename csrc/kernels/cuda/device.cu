// What launchers ask of the current device.
#include <cstdio>

#include "kernels/cuda/run.h"

namespace rx {
namespace cuda {

const char* describe(Card& card) {
  const Limits found = limits();
  if (found.major == 0) return error_of("device query", last_error());
  if (found.major < 8) {
    static thread_local char message[96];
    std::snprintf(message, sizeof message, "compute capability %d.%d is not supported, the kernels need 8.0 or newer",
                  found.major, found.minor);
    return message;
  }
  card = {found.max_dynamic_shared, found.sm_count};
  return nullptr;
}

}  // namespace cuda
}  // namespace rx
