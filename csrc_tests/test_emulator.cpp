// Kernels that are right, and kernels with one planted bug each, to test the emulator itself:
//   test_emulator CASE [forward|reversed|random [SEED]]
// Exit status 0: the numbers are right, 1: they are wrong; an error that the emulator or a sanitizer notices ends it otherwise.
// python_tests/cuda/test_emulator.py says which build must notice which bug.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "kernels/cuda/portable.h"

namespace {

enum class Bug { None, SharedWrite, MissingBarrier, Uninitialised, MissingWait, Misaligned, Divergent, Exit, Lane, Blocks };

// y = reversed x within each block, *total = sum of x. A block of 64 threads per 64 numbers.
template <Bug bug>
__global__ void __launch_bounds__(64) reverse(const float* x, float* y, float* total) {
  RX_SHARED(tile, float[64]);
  RX_SHARED(parts, float[2]);
  const int t = threadIdx.x, lane = t % 32;
  const int at = blockIdx.x * blockDim.x + t;
  float sum = x[at];
  if (bug == Bug::SharedWrite)
    tile[t + 1] = sum;
  else if (bug != Bug::Uninitialised || t != 5)
    tile[t] = sum;
  if (bug != Bug::Lane || t < 40)
    for (int by = 16; by > 0; by /= 2) sum += __shfl_down_sync(0xffffffffu, sum, by);
  if (lane == 0) parts[t / 32] = sum;
  if (bug == Bug::Exit && t == 7) return;
  if (bug == Bug::Divergent && t >= 32)
    __syncthreads();
  else if (bug != Bug::MissingBarrier)
    RX_BARRIER(1);
  y[at] = tile[bug == Bug::SharedWrite ? 64 - t : 63 - t];
  if (t == 0 && bug == Bug::Blocks)
    *total += parts[0] + parts[1];
  else if (t == 0)
    atomicAdd(total, parts[0] + parts[1]);
}

// Every four numbers times 2.
template <Bug bug>
__global__ void twice(const float* x, float* y, int n) {
  const int at = (blockIdx.x * blockDim.x + threadIdx.x) * 4 + (bug == Bug::Misaligned ? 1 : 0);
  if (!RX_BOUND(1, at + 4 <= n)) return;
  const float4 v = *reinterpret_cast<const float4*>(x + at);
  *reinterpret_cast<float4*>(y + at) = make_float4(2 * v.x, 2 * v.y, 2 * v.z, 2 * v.w);
}

// d (16, 8) = a (16, k) b (8, k)^T by one warp, with two stages in dynamic shared memory.
template <class T, Bug bug>
__global__ void product(const T* a, const T* b, float* d, int k) {
  RX_DYNAMIC_SHARED(T, tiles);  // (2, 16 + 8, 16)
  const int lane = threadIdx.x, group = lane / 4, inner = lane % 4;
  const auto fetch = [&](int k0) {
    T* stage = tiles + k0 / 16 % 2 * 384;
    const int row = lane / 2, column = lane % 2 * 8;
    rx::cuda::copy_async<16>(stage + row * 16 + column, a + row * k + k0 + column);
    if (row < 8) rx::cuda::copy_async<16>(stage + 256 + row * 16 + column, b + row * k + k0 + column);
    rx::cuda::copy_commit();
  };
  const auto pair = [&](const T* stage, int row, int column) {
    uint32_t two;
    memcpy(&two, stage + row * 16 + column, 4);
    return two;
  };
  float sum[4] = {};
  fetch(0);
  for (int k0 = 0; k0 < k; k0 += 16) {
    if (k0 + 16 < k) fetch(k0 + 16);
    if (k0 + 16 >= k)
      rx::cuda::copy_wait<0>();
    else if (bug != Bug::MissingWait)
      rx::cuda::copy_wait<1>();
    __syncwarp();
    const T* stage = tiles + k0 / 16 % 2 * 384;
    const uint32_t left[4] = {pair(stage, group, inner * 2), pair(stage, group + 8, inner * 2),
                              pair(stage, group, inner * 2 + 8), pair(stage, group + 8, inner * 2 + 8)};
    const uint32_t right[2] = {pair(stage + 256, group, inner * 2), pair(stage + 256, group, inner * 2 + 8)};
    if (std::is_same<T, __half>::value)
      rx::cuda::mma_f16(sum, left, right);
    else
      rx::cuda::mma_bf16(sum, left, right);
    __syncwarp();
  }
  for (int e = 0; e < 4; ++e) d[(group + e / 2 * 8) * 8 + inner * 2 + e % 2] = sum[e];
}

// One number per thread and collective; 48 threads, so that the second warp is a half one.
__global__ void collectives(int* out) {
  const int t = threadIdx.x + blockDim.x * threadIdx.y, lane = t % 32;
  const unsigned mask = t < 32 ? 0xffffffffu : 0x0000ffffu;
  int* mine = out + t * 8;
  mine[0] = __syncthreads_count(t % 3 == 0);
  mine[1] = __syncthreads_and(t < 47) + 2 * __syncthreads_or(t == 47);
  mine[2] = static_cast<int>(__ballot_sync(mask, lane % 2));
  mine[3] = __any_sync(mask, t == 5) + 2 * __all_sync(mask, t < 32);
  mine[4] = __shfl_sync(mask, t, 3, 8);
  mine[5] = __shfl_up_sync(mask, t, 2, 16);
  mine[6] = __shfl_xor_sync(mask, t, 5);
  mine[7] = __shfl_down_sync(mask, t, 9, 16);
  atomicMax(out + 48 * 8, t);
  atomicCAS(out + 48 * 8 + 1, 0, 7);
}

template <Bug bug>
__global__ void fill(float* out, int n) {
  RX_DYNAMIC_SHARED(float, shared);
  const int t = threadIdx.x;
  shared[t] = static_cast<float>(t);
  if (bug == Bug::SharedWrite) shared[t + 1] = 0;
  if (t < n) out[t] = shared[t];
}

__global__ void much_static(float* out) {
  RX_SHARED(first, float[8192]);
  RX_SHARED(second, float[4097]);
  first[0] = second[0] = 1;
  *out = first[0] + second[0];
}

bool check(bool right, const char* what) {
  if (!right) std::printf("WRONG: %s\n", what);
  return right;
}

float number(int i) {
  return static_cast<float>((i * 37 + 11) % 61 - 30) / 16;
}

template <Bug bug>
bool run_reverse() {
  const int n = 256;
  std::vector<float> x(n), y(n, -1);
  float total = 0, sum = 0;
  for (int i = 0; i < n; ++i) sum += x[i] = number(i);
  RX_LAUNCH(reverse<bug>, dim3(n / 64), dim3(64), 0, nullptr, x.data(), y.data(), &total);
  bool right = check(total == sum, "total");
  for (int i = 0; i < n; ++i) right = right && check(y[i] == x[i / 64 * 64 + 63 - i % 64], "reversed");
  return right;
}

template <Bug bug>
bool run_twice() {
  alignas(16) float x[80], y[80];
  for (int i = 0; i < 80; ++i) x[i] = number(i);
  RX_LAUNCH(twice<bug>, 3, 8, 0, nullptr, x, y, 80);
  bool right = true;
  for (int i = 0; i < 80; ++i) right = right && check(y[i] == 2 * x[i], "twice");
  return right;
}

template <class T, Bug bug>
bool run_product() {
  const int k = 64;
  std::vector<T> a(16 * k), b(8 * k);
  std::vector<float> d(16 * 8);
  for (int i = 0; i < 16 * k; ++i) a[i] = T(number(i));
  for (int i = 0; i < 8 * k; ++i) b[i] = T(number(i + 5));
  RX_LAUNCH((product<T, bug>), 1, 32, 2 * 384 * sizeof(T), nullptr, a.data(), b.data(), d.data(), k);
  bool right = true;
  for (int i = 0; i < 16; ++i)
    for (int j = 0; j < 8; ++j) {
      float sum = 0;
      for (int e = 0; e < k; ++e) sum += number(i * k + e) * number(j * k + e + 5);  // exact
      right = right && check(d[i * 8 + j] == sum, "product");
    }
  return right;
}

bool run_collectives() {
  std::vector<int> out(48 * 8 + 2);
  RX_LAUNCH(collectives, dim3(1), dim3(16, 3), 0, nullptr, out.data());
  bool right = check(out[48 * 8] == 47 && out[48 * 8 + 1] == 7, "atomics");
  for (int t = 0; t < 48; ++t) {
    const int* o = out.data() + t * 8;
    const int up = t % 16 >= 2 ? t - 2 : t, down = t % 16 + 9 < 16 ? t + 9 : t;
    right = check(o[0] == 16 && o[1] == 2, "reductions at a barrier") && right;
    right = check(o[2] == static_cast<int>(t < 32 ? 0xaaaaaaaau : 0xaaaau), "ballot") && right;
    right = check(o[3] == (t < 32 ? 3 : 0), "any and all") && right;
    right = check(o[4] == t / 8 * 8 + 3 && o[5] == up && o[6] == (t ^ 5) && o[7] == down, "shuffles") && right;
  }
  return right;
}

// Whether a launch is refused with this error, or accepted where it is null.
bool refused(const char* expected, dim3 grid, dim3 block, size_t shared) {
  std::vector<float> out(1);
  RX_LAUNCH(fill<Bug::None>, grid, block, shared, nullptr, out.data(), 1);
  const char* error = rx::cuda::last_error();
  std::printf("%s\n", error ? error : "accepted");
  const bool right = expected ? error && std::strncmp(error, expected, std::strlen(expected)) == 0 : !error;
  return check(right, "status of the launch") && check(!rx::cuda::last_error(), "asking clears the error");
}

bool run_limits() {
  const char *configuration = "invalid configuration argument", *value = "invalid argument";
  bool right = refused(nullptr, 1, 1024, 4096) && refused(configuration, 1, 1025, 4096) &&
               refused(configuration, 1, dim3(1, 1, 65), 4096) && refused(configuration, 1, 0, 4096) &&
               refused(configuration, 0, 1, 4096) && refused(configuration, dim3(1, 65536), 1, 4096) &&
               refused(configuration, dim3(1, 1, 65536), 1, 4096) && refused(configuration, 0x80000000u, 1, 4096) &&
               refused(value, 1, 32, (48 << 10) + 1);
  const int known[][2] = {{80, 163}, {90, 227}, {100, 227}, {120, 99}};
  for (const auto& [sm, kib] : known) {
    right =
        right && rx::emulator::set_architecture(sm) && check(rx::cuda::limits().max_dynamic_shared == kib << 10, "limits") &&
        check(!rx::cuda::set_max_dynamic_shared(fill<Bug::None>, (kib << 10) + 1) && rx::cuda::last_error(),
              "more than the limit") &&
        check(rx::cuda::set_max_dynamic_shared(fill<Bug::None>, kib << 10) && !rx::cuda::last_error(), "the limit itself") &&
        refused(nullptr, 1, 32, kib << 10) && refused(value, 1, 32, (kib << 10) + 1);
  }
  return right && check(!rx::emulator::set_architecture(70), "unknown architecture");
}

// With abort_on_error off, an error inside a kernel is a status, and the next launch works.
bool run_status() {
  rx::emulator::options().abort_on_error = false;
  float out = 0;
  for (int again = 0; again < 2; ++again) {
    RX_LAUNCH(much_static, 1, 1, 0, nullptr, &out);
    const char* error = rx::cuda::last_error();
    if (!check(error && std::strstr(error, "49156 bytes of static shared memory"), "status of static memory")) return false;
    RX_LAUNCH(reverse<Bug::Exit>, 1, 64, 0, nullptr, std::vector<float>(64).data(), std::vector<float>(64).data(), &out);
    error = rx::cuda::last_error();
    if (!check(error && std::strstr(error, "have exited"), "status of a barrier")) return false;
    if (!run_reverse<Bug::None>() || !check(!rx::cuda::last_error(), "a good launch after an error")) return false;
  }
  return true;
}

bool run_large_block() {  // a launcher that does not look at the status finds its results missing
  float out = -1;
  RX_LAUNCH(fill<Bug::None>, 1, 2048, 8192, nullptr, &out, 1);
  return check(out == 0, rx::cuda::last_error());
}

bool run_dynamic_write() {
  float out[32];
  RX_LAUNCH(fill<Bug::SharedWrite>, 1, 32, 32 * sizeof(float), nullptr, out, 32);
  return true;
}

const struct {
  const char* name;
  bool (*run)();
} kCases[] = {
    {"reverse", run_reverse<Bug::None>},
    {"twice", run_twice<Bug::None>},
    {"product_bf16", run_product<__nv_bfloat16, Bug::None>},
    {"product_f16", run_product<__half, Bug::None>},
    {"collectives", run_collectives},
    {"limits", run_limits},
    {"status", run_status},
    {"shared_write", run_reverse<Bug::SharedWrite>},
    {"dynamic_write", run_dynamic_write},
    {"missing_barrier", run_reverse<Bug::MissingBarrier>},
    {"uninitialised", run_reverse<Bug::Uninitialised>},
    {"missing_wait", run_product<__nv_bfloat16, Bug::MissingWait>},
    {"misaligned", run_twice<Bug::Misaligned>},
    {"divergent_barrier", run_reverse<Bug::Divergent>},
    {"exit_before_barrier", run_reverse<Bug::Exit>},
    {"missing_lane", run_reverse<Bug::Lane>},
    {"race_between_blocks", run_reverse<Bug::Blocks>},
    {"large_block", run_large_block},
};

}  // namespace

int main(int count, char** arguments) {
  const char* name = count > 1 ? arguments[1] : "";
  const char* order = count > 2 ? arguments[2] : "random";
  rx::emulator::Options& options = rx::emulator::options();
  options.order = !std::strcmp(order, "forward")    ? rx::emulator::Order::Forward
                  : !std::strcmp(order, "reversed") ? rx::emulator::Order::Reversed
                                                    : rx::emulator::Order::Random;
  if (count > 3) options.seed = std::strtoull(arguments[3], nullptr, 10);
  for (const auto& c : kCases)
    if (!std::strcmp(c.name, name)) return c.run() ? 0 : 1;
  std::fprintf(stderr, "no case '%s'\n", name);
  return 2;
}
