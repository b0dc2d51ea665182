// Runs CUDA kernel source on the CPU, for tests: block by block, one fiber per CUDA thread. The names are CUDA's, and those of
// csrc/kernels/cuda/portable.h, which includes this file. README.md says what is checked, how to build, and what is missing:
// a name that is missing here is an error at compile time.
#pragma once
#include <math.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <type_traits>
#include <utility>

#include "emulator_types.h"

#if defined(__has_feature)
#if __has_feature(memory_sanitizer)
#define RX_EMULATOR_MSAN
#include <sanitizer/msan_interface.h>
#endif
#endif

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(bytes) __attribute__((aligned(bytes)))

namespace rx::cuda {

// What launchers need to know of the device.
struct Limits {
  int major, minor;
  int64_t max_dynamic_shared;  // bytes per block, after set_max_dynamic_shared
  int sm_count;
  int threads_per_sm;
};
Limits limits();
// The error of the last calls, or null. Asking clears it, as cudaGetLastError does. The text lives until the next call.
const char* last_error();

}  // namespace rx::cuda

namespace rx::emulator {

enum class Order { Forward, Reversed, Random };

#ifdef __SANITIZE_THREAD__  // it sees a race in any order, and is thirty times slower
constexpr Order ORDERS[] = {Order::Random};
#else
constexpr Order ORDERS[] = {Order::Forward, Order::Reversed, Order::Random};
#endif

struct Options {
  Order order = Order::Random;  // of threads between two barriers, and of blocks
  uint64_t seed = 1;
  bool strict = true;          // threads that exit before a barrier, and barriers at different places, are errors
  bool abort_on_error = true;  // false: an error inside a kernel ends the launch, and last_error() tells it
  cuda::Limits limits = {8, 0, 163 << 10, 108, 2048};
};
Options& options();
// Sets options().limits to those of sm_80, 86, 89, 90, 100 or 120; false: the number is another one.
bool set_architecture(int sm);

// Where a kernel calls something, as a default argument.
struct Site {
  const char* file;
  int line;
  static constexpr Site here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) { return {file, line}; }
};

struct Thread {
  uint3 thread_index, block_index;
  dim3 block_size, grid_size;
  int number, lane, warp;  // number: within the block
};
extern Thread* current;

// Ends the kernel with an error.
[[noreturn]] __attribute__((format(printf, 2, 3))) void fail(Site site, const char* format, ...);

struct Votes {
  int count;
  bool all, any;
};
Votes barrier(Site site, int predicate);
void fence();

// What a lane shows to its warp. Reading goes through emulator.cpp, so that TSan does not take it for an access.
struct Slot {
  uint64_t word[4];
};
const Slot* exchange(Site site, unsigned mask, const Slot& mine, bool orders_memory);
Slot read(const Slot* slots, int lane);

void* static_shared(Site site, const void* key, size_t bytes);
void* dynamic_shared();

void copy_async(Site site, void* to, const void* from, int bytes, int valid);
void copy_commit();
void copy_wait(int keep);

bool set_max_dynamic_shared(const void* kernel, size_t bytes);
void launch(const char* name, const void* kernel, dim3 grid, dim3 block, size_t shared, const std::function<void()>& body);

template <class... Parameters, class... Arguments>
void launch(const char* name, void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared, const void* /* stream */,
            Arguments... arguments) {
  launch(name, reinterpret_cast<const void*>(kernel), grid, block, shared, [&] { kernel(arguments...); });
}

template <class T>
T shuffle(Site site, unsigned mask, T value, int source) {
  static_assert(sizeof(T) <= 8 && std::is_trivially_copyable_v<T>, "a shuffle moves at most 8 bytes");
  Slot slot = {};
  std::memcpy(&slot, &value, sizeof value);
  const Slot* slots = exchange(site, mask, slot, false);
  if (!((mask >> source) & 1u)) fail(site, "shuffle reads lane %d, which is not in the mask %08x", source, mask);
  slot = read(slots, source);
  std::memcpy(&value, &slot, sizeof value);
  return value;
}

// The lane to read from: `target` if it lies within the segment of `width` lanes, else the own one.
inline int within(int target, int width) {
  const int lane = current->lane, first = lane & ~(width - 1);
  return target >= first && target < first + width ? target : lane;
}

inline unsigned ballot(Site site, unsigned mask, int predicate) {
  const Slot* slots = exchange(site, mask, Slot{{predicate != 0}}, false);
  unsigned votes = 0;
  for (int lane = 0; lane < 32; ++lane)
    if ((mask >> lane) & 1u) votes |= static_cast<unsigned>(read(slots, lane).word[0]) << lane;
  return votes;
}

template <class T, class F>
T atomic(T* p, T value, F&& combine) {
#ifdef RX_EMULATOR_MSAN  // which takes the result of an atomic for initialised
  __msan_check_mem_is_initialized(&value, sizeof value);
  __msan_check_mem_is_initialized(p, sizeof *p);
#endif
  T before, after;
  __atomic_load(p, &before, __ATOMIC_RELAXED);
  do after = combine(before, value);
  while (!__atomic_compare_exchange(p, &before, &after, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
  return before;
}

// mma.sync.aligned.m16n8k16.row.col.f32.*.*.f32: the lane layout is that of the PTX manual. Sums in double, rounded once.
template <class Value>
void mma_m16n8k16(Site site, float* d, const uint32_t* a, const uint32_t* b, Value value) {
  Slot slot;
  std::memcpy(&slot.word[0], a, 16);
  std::memcpy(&slot.word[2], b, 8);
  slot.word[3] = 0;
  const Slot* slots = exchange(site, 0xffffffffu, slot, false);
  uint32_t all[32][8];
  for (int lane = 0; lane < 32; ++lane) {
    slot = read(slots, lane);
    std::memcpy(all[lane], &slot, sizeof slot);
  }
  const auto part = [&](int lane, int reg, int k) { return value(static_cast<uint16_t>(all[lane][reg] >> (k & 1 ? 16 : 0))); };
  const int group = current->lane >> 2, inner = current->lane & 3;
  for (int e = 0; e < 4; ++e) {
    const int high = e >= 2, column = inner * 2 + (e & 1);
    double sum = d[e];
    for (int k = 0; k < 16; ++k) {
      const int at = (k & 7) / 2, upper = k >= 8;
      sum += static_cast<double>(part(group * 4 + at, high + 2 * upper, k)) * part(column * 4 + at, 4 + upper, k);
    }
    d[e] = static_cast<float>(sum);
  }
}

template <class T>
using Plain = T;  // turns float[4][2] into one name, and keeps an argument out of deduction
template <class T>
struct Same {
  using type = T;
};

}  // namespace rx::emulator

#define threadIdx (::rx::emulator::current->thread_index)
#define blockIdx (::rx::emulator::current->block_index)
#define blockDim (::rx::emulator::current->block_size)
#define gridDim (::rx::emulator::current->grid_size)
#define warpSize 32

#define RX_SHARED(name, ...)                                                                    \
  static const char rx_shared_##name = 0;                                                       \
  auto& name = *static_cast<::rx::emulator::Plain<__VA_ARGS__>*>(::rx::emulator::static_shared( \
      ::rx::emulator::Site::here(), &rx_shared_##name, sizeof(::rx::emulator::Plain<__VA_ARGS__>)))
#define RX_DYNAMIC_SHARED(T, name) T* name = static_cast<T*>(::rx::emulator::dynamic_shared())
#define RX_LAUNCH(kernel, grid, block, shared, stream, ...) \
  ::rx::emulator::launch(#kernel, kernel, grid, block, shared, stream, ##__VA_ARGS__)

#define RX_SITE ::rx::emulator::Site site = ::rx::emulator::Site::here()

inline void __syncthreads(RX_SITE) {
  rx::emulator::barrier(site, 0);
}
inline int __syncthreads_count(int predicate, RX_SITE) {
  return rx::emulator::barrier(site, predicate).count;
}
inline int __syncthreads_and(int predicate, RX_SITE) {
  return rx::emulator::barrier(site, predicate).all;
}
inline int __syncthreads_or(int predicate, RX_SITE) {
  return rx::emulator::barrier(site, predicate).any;
}
inline void __syncwarp(unsigned mask = 0xffffffffu, RX_SITE) {
  rx::emulator::exchange(site, mask, {}, true);
}
[[noreturn]] inline void __trap(RX_SITE) {
  rx::emulator::fail(site, "trap");
}
inline void __threadfence() {
  rx::emulator::fence();
}
inline void __threadfence_block() {
  rx::emulator::fence();
}

template <class T>
T __shfl_sync(unsigned mask, T value, int lane, int width = 32, RX_SITE) {
  return rx::emulator::shuffle(site, mask, value, (rx::emulator::current->lane & ~(width - 1)) + (lane & (width - 1)));
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned by, int width = 32, RX_SITE) {
  const int target = rx::emulator::current->lane + static_cast<int>(by);
  return rx::emulator::shuffle(site, mask, value, rx::emulator::within(target, width));
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned by, int width = 32, RX_SITE) {
  const int target = rx::emulator::current->lane - static_cast<int>(by);
  return rx::emulator::shuffle(site, mask, value, rx::emulator::within(target, width));
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int with, int width = 32, RX_SITE) {
  const int lane = rx::emulator::current->lane, target = lane ^ with;
  const bool lower = target < (lane & ~(width - 1));  // an earlier segment may be read, a later one not
  return rx::emulator::shuffle(site, mask, value, lower ? target : rx::emulator::within(target, width));
}
inline unsigned __ballot_sync(unsigned mask, int predicate, RX_SITE) {
  return rx::emulator::ballot(site, mask, predicate);
}
inline int __any_sync(unsigned mask, int predicate, RX_SITE) {
  return rx::emulator::ballot(site, mask, predicate) != 0;
}
inline int __all_sync(unsigned mask, int predicate, RX_SITE) {
  return rx::emulator::ballot(site, mask, predicate) == mask;
}

#define RX_ATOMIC(name, expression)                                                  \
  template <class T>                                                                 \
  T name(T* p, typename rx::emulator::Same<T>::type value) {                         \
    return rx::emulator::atomic(p, value, [](T a, T b) -> T { return expression; }); \
  }
RX_ATOMIC(atomicAdd, a + b)
RX_ATOMIC(atomicSub, a - b)
RX_ATOMIC(atomicMax, a < b ? b : a)
RX_ATOMIC(atomicMin, b < a ? b : a)
RX_ATOMIC(atomicAnd, (a & b))
RX_ATOMIC(atomicOr, (a | b))
RX_ATOMIC(atomicExch, ((void)a, b))
#undef RX_ATOMIC
template <class T>
T atomicCAS(T* p, typename rx::emulator::Same<T>::type expected, typename rx::emulator::Same<T>::type value) {
  return rx::emulator::atomic(p, value, [expected](T a, T b) -> T { return a == expected ? b : a; });
}

using std::max;
using std::min;
#define RX_CACHE_HINT(load, store) \
  template <class T>               \
  T load(const T* p) {             \
    return *p;                     \
  }                                \
  template <class T>               \
  void store(T* p, T value) {      \
    *p = value;                    \
  }
RX_CACHE_HINT(__ldcg, __stcg)
RX_CACHE_HINT(__ldcs, __stcs)
#undef RX_CACHE_HINT
template <class T>
T __ldg(const T* p) {
  return *p;
}
inline float __expf(float x) {
  return expf(x);
}
inline float __logf(float x) {
  return logf(x);
}
inline float __fdividef(float a, float b) {
  return a / b;
}
inline float __fmaf_rn(float a, float b, float c) {
  return fmaf(a, b, c);
}
inline int __popc(unsigned x) {
  return __builtin_popcount(x);
}
inline int __clz(int x) {
  return x ? __builtin_clz(static_cast<unsigned>(x)) : 32;
}
inline int __ffs(int x) {
  return __builtin_ffs(x);
}
#if !defined(__GLIBC_PREREQ) || !__GLIBC_PREREQ(2, 42)  // which declares them itself
inline float rsqrtf(float x) {
  return 1.0f / sqrtf(x);
}
inline double rsqrt(double x) {
  return 1.0 / sqrt(x);
}
#endif

namespace rx::cuda {

template <class R, class... P>
bool set_max_dynamic_shared(R (*kernel)(P...), size_t bytes) {
  return emulator::set_max_dynamic_shared(reinterpret_cast<const void*>(kernel), bytes);
}
inline void zero(void* p, size_t bytes, void* /* stream */) {
  if (bytes > 0) std::memset(p, 0, bytes);
}

template <int kBytes>
void copy_async(void* to, const void* from, int valid = kBytes, RX_SITE) {
  static_assert(kBytes == 4 || kBytes == 8 || kBytes == 16, "cp.async copies 4, 8 or 16 bytes");
  emulator::copy_async(site, to, from, kBytes, valid);
}
inline void copy_commit() {
  emulator::copy_commit();
}
template <int kKeep>
void copy_wait() {
  emulator::copy_wait(kKeep);
}
inline void mma_bf16(float* d, const uint32_t* a, const uint32_t* b, RX_SITE) {
  emulator::mma_m16n8k16(site, d, a, b, emulator::bfloat16_value);
}
inline void mma_f16(float* d, const uint32_t* a, const uint32_t* b, RX_SITE) {
  emulator::mma_m16n8k16(site, d, a, b, emulator::half_value);
}

}  // namespace rx::cuda
#undef RX_SITE
