// Host side of a recurrence: grids, shared memory, the loop over steps. Included by the .cu files.
#pragma once
#include <string>

#include "kernels/cuda/launch.h"
#include "kernels/cuda/recurrence.h"

namespace rx {
namespace cuda {

// The message of an error in a kernel's launch, or null; kept until the thread's next one.
inline const char* error_of(const char* name, const char* error) {
  static thread_local std::string message;
  if (error == nullptr) return nullptr;
  message = std::string(name) + ": " + error;
  // of a device whose architecture wasn't compiled for
  for (const char* unknown : {"no kernel image", "invalid device function"}) {
    if (message.find(unknown) == std::string::npos) continue;
    message += "; `rtrl-ext info` names the architectures that this build has, RTRL_EXT_CUDA_ARCHITECTURES sets them";
    break;
  }
  return message.c_str();
}

// Whether all arrays can be read 16 bytes at a time.
template <class... P>
bool whole_words(int64_t n, const P*... arrays) {
  return n % kColumns == 0 && ((reinterpret_cast<uintptr_t>(arrays) % 16 == 0) && ...);
}

template <class Step, int Rows>
const char* run_persistent(const char* name, const typename Step::Params& p, const Launch<typename Step::Element>& launch,
                           bool vec) {
  using E = typename Step::Element;
  Grid g{p.w.lead ? p.s.L : 1, p.w.lead ? p.s.B : p.s.L * p.s.B, 0, vec};
  g.tiles = (g.rows + Rows - 1) / Rows;
  const Sizes sizes{p.s.n, Step::kCarries * Step::kProducts, Step::kCarries, sizeof(E), sizeof(typename Step::T)};
  const int64_t bytes = persistent_bytes(sizes, Rows), blocks = g.groups * g.tiles;
  if (blocks > 0x7fffffff) return error_of(name, "more blocks than a grid can have");
  // The card's maximum, not this call's need: the limit is the kernel's, and other threads may launch it too.
  if (!set_max_dynamic_shared(persistent<Step, Rows>, static_cast<size_t>(launch.card.shared))) {
    return error_of(name, last_error());
  }
  RX_LAUNCH((persistent<Step, Rows>), dim3(static_cast<unsigned>(blocks)),
            dim3(static_cast<unsigned>(persistent_threads(p.s.n))), static_cast<size_t>(bytes), launch.stream, p, g);
  return error_of(name, last_error());
}

constexpr int kPointThreads = 256;

template <class P>
bool pointwise_grid(const P& p, dim3& grid) {
  const int64_t threads = p.s.L * p.s.B * ((p.s.n + kColumns - 1) / kColumns);
  const int64_t blocks = (threads + kPointThreads - 1) / kPointThreads;
  grid = dim3(static_cast<unsigned>(blocks));
  return blocks <= 0x7fffffff;
}

template <class Step>
const char* run_columns(const char* name, const typename Step::Params& p, const Launch<typename Step::Element>& launch,
                        bool vec) {
  dim3 grid;
  if (!pointwise_grid(p, grid)) return error_of(name, "more blocks than a grid can have");
  RX_LAUNCH((columns<Step>), grid, dim3(kPointThreads), 0, launch.stream, p, vec);
  return error_of(name, last_error());
}

template <class Step>
const char* run_stepwise(const char* name, const typename Step::Params& p, const Launch<typename Step::Element>& launch,
                         bool vec) {
  dim3 grid;
  if (!pointwise_grid(p, grid)) return error_of(name, "more blocks than a grid can have");
  const Between<typename Step::Element> kept{launch.state, launch.extra, launch.product, launch.carry};
  vec = vec && whole_words(p.s.n, kept.state, kept.extra, kept.carry, kept.product);
  RX_LAUNCH((pointwise<Step, Part::Begin>), grid, dim3(kPointThreads), 0, launch.stream, p, kept, int64_t(0), vec);
  for (int64_t step = 0; step < p.s.T; ++step) {
    launch.multiply(launch.context);
    const int64_t t = Step::kBackwards ? p.s.T - 1 - step : step;
    RX_LAUNCH((pointwise<Step, Part::Run>), grid, dim3(kPointThreads), 0, launch.stream, p, kept, t, vec);
    if (const char* error = last_error()) return error_of(name, error);
  }
  if constexpr (Step::kFinishes) {
    launch.multiply(launch.context);
    RX_LAUNCH((pointwise<Step, Part::Finish>), grid, dim3(kPointThreads), 0, launch.stream, p, kept, int64_t(0), vec);
  }
  return error_of(name, last_error());
}

template <class Step>
const char* run(const char* name, const typename Step::Params& p, const Launch<typename Step::Element>& launch, bool vec) {
  if (const char* error = last_error()) return error_of("a CUDA call before this one", error);
  if (launch.strategy == Strategy::Stepwise) return run_stepwise<Step>(name, p, launch, vec);
  constexpr int64_t weight = sizeof(typename Step::Element);
  if constexpr (fixed_tile(weight) != 0) {
    return run_persistent<Step, fixed_tile(weight)>(name, p, launch, vec);
  } else {
    if (tile_rows(launch.card, weight, p.s.L * p.s.B) == kRowsMin) return run_persistent<Step, kRowsMin>(name, p, launch, vec);
    return run_persistent<Step, kRowsMax>(name, p, launch, vec);
  }
}

}  // namespace cuda
}  // namespace rx
