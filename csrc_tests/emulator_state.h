// The emulator's state, its messages, and what TSan must be told. For emulator.cpp alone.
#pragma once
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <vector>

#include "emulator.h"
#include "emulator_fiber.h"

namespace rx::emulator {
namespace {

enum class State { Ready, Barrier, Warp, Exited };

struct Copy {
  void* to;
  const void* from;
  int bytes, valid;
};

struct Fiber {
  Thread thread;
  State state;
  Site site;                              // where it waits
  unsigned mask;                          // in a warp operation
  int predicate;                          // of a barrier
  std::vector<std::vector<Copy>> copies;  // the last group is not committed yet
  FiberStack stack;
};

// Lanes of a warp that exchange under one mask. Two sets of slots: a lane may start the next exchange while others still read.
struct Group {
  unsigned mask = 0, arrived = 0, generation = 0;
  Site site = {};
  Slot slots[2][32];
  char order[2];  // addresses for TSan
};

struct Shared {
  const void* key;
  void* p;
  size_t bytes;
};

struct Block {
  std::vector<std::vector<std::unique_ptr<Group>>> warps;
  std::vector<Shared> shared;  // each a heap block of its own, for ASan
  Shared dynamic = {};
  unsigned generation = 0;
  Votes votes = {};
  char order[2], shared_order;  // addresses for TSan
  ~Block() {
    for (const Shared& s : shared) std::free(s.p);
    std::free(dynamic.p);
  }
};

struct Kernel {
  const void* kernel;
  size_t max_dynamic_shared;
};

std::vector<std::unique_ptr<Fiber>> fibers;
std::unique_ptr<Block> block;
Launcher launcher;
Fiber* running = nullptr;
const std::function<void()>* body = nullptr;
const char* kernel_name = "";
int threads = 0;
bool failed = false;
uint64_t random_state = 1;
char start_order, end_order, fence_order;  // addresses for TSan
std::vector<Kernel> kernels;
char message[640], told[640];

#ifdef RX_EMULATOR_TSAN
void acquire(char& address) {
  __tsan_acquire(&address);
}
void release(char& address) {
  __tsan_release(&address);
}
// What the emulator itself does on a fiber's behalf, with the heap, counts as the launcher's.
struct AsLauncher {
  AsLauncher() { __tsan_switch_to_fiber(launcher.tsan, 1); }
  ~AsLauncher() { __tsan_switch_to_fiber(running->stack.tsan, 1); }
};
#else
void acquire(char&) {}
void release(char&) {}
struct AsLauncher {
  AsLauncher() {}
  ~AsLauncher() {}
};
#endif

bool same(Site a, Site b) {
  return a.line == b.line && (a.file == b.file || std::strcmp(a.file, b.file) == 0);
}

void report(const Fiber* fiber, Site site, const char* format, va_list arguments) {
  int at = std::snprintf(message, sizeof message, "kernel %s", kernel_name);
  const auto add = [&](const char* text, auto... values) {
    if (at < static_cast<int>(sizeof message)) at += std::snprintf(message + at, sizeof message - at, text, values...);
  };
  if (fiber) {
    const uint3 b = fiber->thread.block_index, t = fiber->thread.thread_index;
    add(", block (%u, %u, %u), thread (%u, %u, %u)", b.x, b.y, b.z, t.x, t.y, t.z);
  }
  if (site.file) add(", %s:%d", site.file, site.line);
  add("%s", ": ");
  if (at < static_cast<int>(sizeof message)) std::vsnprintf(message + at, sizeof message - at, format, arguments);
  failed = true;
  if (!options().abort_on_error) return;
  std::fprintf(stderr, "rx emulator: %s\n", message);
  std::fflush(stderr);
  std::abort();
}

__attribute__((format(printf, 2, 3))) void report(const Fiber& fiber, const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  report(&fiber, fiber.site, format, arguments);
  va_end(arguments);
}

// An error of the launch itself: nothing runs, last_error() tells.
__attribute__((format(printf, 2, 3))) bool refuse(const char* kind, const char* format, ...) {
  const int at = std::snprintf(message, sizeof message, "%s: kernel %s: ", kind, kernel_name);
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(message + at, sizeof message - at, format, arguments);
  va_end(arguments);
  return false;
}
constexpr const char* kConfiguration = "invalid configuration argument";
constexpr const char* kValue = "invalid argument";

}  // namespace
}  // namespace rx::emulator
