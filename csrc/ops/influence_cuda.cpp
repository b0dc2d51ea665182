// Steps of RTRL and SnAp as PyTorch ops on CUDA; emulated as leaky_cuda.cpp is.
#include "kernels/cuda/influence.h"
#include "ops/cuda.h"
#include "ops/influence.h"

#include <torch/csrc/inductor/aoti_torch/c/shim.h>

#include <algorithm>
#include <array>

namespace rx {
namespace {

// From so many states on, products are the vendor's.
constexpr int64_t kVendor = 32;
// Of one product: little enough to stay in the cache until it has been used.
constexpr int64_t kProductBytes = int64_t{32} << 20;

// A view (B, rows, columns) of `x`, from `offset` numbers past its first on.
inline Tensor matrices(const Tensor& x, int64_t offset, std::array<int64_t, 3> sizes, std::array<int64_t, 3> strides) {
  AtenTensorHandle view = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch__reinterpret_tensor(x.get(), 3, sizes.data(), strides.data(), offset, &view));
  return Tensor(view);
}

// J M for some columns of M, by torch's batched product.
struct Batched {
  const Tensor &influence, &jacobian, &out;
  int64_t B, N;

  static void multiply(void* context, int64_t k, int64_t first, int64_t columns) {
    const Batched& m = *static_cast<const Batched*>(context);
    const Tensor product = matrices(m.out, 0, {m.B, m.N, columns}, {m.N * columns, columns, 1});
    const Tensor left = matrices(m.jacobian, k * m.B * m.N * m.N, {m.B, m.N, m.N}, {m.N * m.N, m.N, 1});
    const Tensor right = matrices(m.influence, first, {m.B, m.N, columns}, {m.influence.stride(0), m.influence.stride(1), 1});
    Multiply{product, left, right, true}.run(left, right);
  }
};

struct OnCudaInfluence {
  template <class T>
  static void run(const RtrlStep<T>& p, const Tensor& influence, const Tensor& jacobian) {
    const Context context(influence);
    const InfluenceShape& s = p.s;
    const int64_t N = s.S * s.n, all = s.R * s.Q;
    const Tensor partial = make(influence, {s.signals * s.B * all});
    if (N < kVendor || s.K == 0) return check(cuda::rtrl_step<T>(p, nullptr, out<T>(partial), context.stream()));
    const int64_t fits = std::max<int64_t>(kProductBytes / (s.B * N * static_cast<int64_t>(sizeof(T))), 64);
    const int64_t parts = (all + fits - 1) / fits, each = (all + parts - 1) / parts;
    const int64_t most = std::min(all, (each + 31) / 32 * 32);
    const Tensor product = make(influence, {s.B * N * most});
    const Tensor dense = jacobian.is_contiguous() ? jacobian : torch::stable::contiguous(jacobian);
    Batched batched{influence, dense, product, s.B, N};
    const cuda::Products products{out<T>(product), most, &Batched::multiply, &batched};
    check(cuda::rtrl_step(p, &products, out<T>(partial), context.stream()));
  }
  template <class T>
  static void run(const SnapStep<T>& p, const Tensor& influence, int64_t most_units) {
    const Context context(influence);
    const Tensor partial = make(influence, {p.s.signals * p.s.B * p.s.R / p.s.n * p.pattern.columns_all});
    check(cuda::snap_step(p, most_units, out<T>(partial), context.stream()));
  }
};

}  // namespace
}  // namespace rx

#ifdef RX_CUDA_ON_CPU
STABLE_TORCH_LIBRARY_FRAGMENT(rtrl_ext_emulated, m) {
  rx::define_influence(m);
}
#endif

STABLE_TORCH_LIBRARY_IMPL(RX_LIBRARY, RX_KEY, m) {
  m.impl("rtrl_step", TORCH_BOX(&rx::rtrl_step<rx::OnCudaInfluence>));
  m.impl("snap_step", TORCH_BOX(&rx::snap_step<rx::OnCudaInfluence>));
}
