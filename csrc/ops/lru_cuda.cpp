// The LRU's scans as PyTorch ops on CUDA; emulated as leaky_cuda.cpp is.
#include "kernels/cuda/lru.h"
#include "ops/cuda_context.h"
#include "ops/lru.h"

namespace rx {
namespace {

struct OnCudaLru {
  template <class T>
  static void run(const LruScan<T>& p, const Tensor& like) {
    const Context context(like);
    const Tensor between = make(like, {cuda::lru_between(p.s)});
    check(cuda::lru_scan(p, out<T>(between), context.stream()));
  }
  template <class T>
  static void run(const LruBackward<T>& p, const Tensor& like, T* glam) {
    const Context context(like);
    const Tensor between = make(like, {cuda::lru_between(p.s)}), sums = make(like, {glam ? cuda::lru_between(p.s) : 0});
    check(cuda::lru_backward(p, out<T>(between), out<T>(sums), glam, context.stream()));
  }
};

}  // namespace
}  // namespace rx

#ifdef RX_CUDA_ON_CPU
STABLE_TORCH_LIBRARY_FRAGMENT(rtrl_ext_emulated, m) {
  rx::define_lru(m);
}
#endif

STABLE_TORCH_LIBRARY_IMPL(RX_LIBRARY, RX_KEY, m) {
  m.impl("lru_scan", TORCH_BOX(&rx::lru_scan<rx::OnCudaLru>));
  m.impl("lru_backward", TORCH_BOX(&rx::lru_backward<rx::OnCudaLru>));
}
