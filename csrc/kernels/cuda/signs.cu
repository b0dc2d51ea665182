// Random signs on CUDA: a thread makes one sign, which costs less than sharing a draw of 128 would, since writes stay together.
#include "kernels/cuda/signs.h"

#include "kernels/cuda/run.h"

namespace rx {
namespace cuda {
namespace {

constexpr int kThreads = 256;

template <class T>
__global__ void __launch_bounds__(kThreads) draw(Signs<T> p, int64_t threads) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= threads) return;
  const int64_t j = i % p.count, row = i / p.count % p.B, step = i / p.count / p.B;
  const RX_NS::RandomWords words = RX_NS::draw_signs(p, step, row, j / RX_NS::kSignsPerDraw);
  const int k = static_cast<int>(j % RX_NS::kSignsPerDraw);
  const uint32_t low = k < 32 ? words.w[0] : words.w[1], high = k < 96 ? words.w[2] : words.w[3];
  p.out[i] = ((k < 64 ? low : high) >> (k % 32)) & 1u ? T(1) : T(-1);
}

}  // namespace

template <class T>
const char* random_signs(const Signs<T>& p, void* stream) {
  const char* name = "random_signs";
  if (const char* error = last_error()) return error_of("a CUDA call before this one", error);
  const int64_t threads = p.steps * p.B * p.count, blocks = (threads + kThreads - 1) / kThreads;
  if (blocks > 0x7fffffff) return error_of(name, "more blocks than a grid can have");
  RX_LAUNCH((draw<T>), dim3(static_cast<unsigned>(blocks)), dim3(kThreads), 0, stream, p, threads);
  return error_of(name, last_error());
}

template const char* random_signs(const Signs<float>&, void*);
template const char* random_signs(const Signs<double>&, void*);

}  // namespace cuda
}  // namespace rx
