// The LeakyRNN recurrence as PyTorch ops on CUDA. The same source makes the emulated operations of the tests
// (RX_CUDA_ON_CPU), which take CPU tensors under a namespace of their own.
#include <torch/csrc/stable/accelerator.h>

#include <array>
#include <atomic>

#include "kernels/cuda/launch.h"
#include "ops/leaky.h"
#include "ops/leaky_jvp.h"
#include "ops/leaky_schemas.h"

namespace rx {
namespace {

// The strategy that was asked for, for the whole process.
std::atomic<int64_t> asked{static_cast<int64_t>(cuda::Strategy::Automatic)};

void check(const char* error) {
  STD_TORCH_CHECK(error == nullptr, std::string("rtrl_ext, CUDA: ") + error);
}

#ifdef RX_CUDA_ON_CPU
struct Context {
  explicit Context(const Tensor&) {}
  void* stream() const { return nullptr; }
};
#else
// The tensor's device and the caller's stream on it.
class Context {
 public:
  explicit Context(const Tensor& x)
      : guard_(x.get_device_index()), stream_(torch::stable::accelerator::getCurrentStream(x.get_device_index())) {}
  void* stream() const { return stream_.nativeHandle(); }

 private:
  torch::stable::accelerator::DeviceGuard guard_;
  torch::stable::accelerator::Stream stream_;
};
#endif

// The recurrent product of one step by the vendor's library: product = carry times the matrix or its transpose, for rows
// (L, B, n) under one matrix or one each. Called boxed: the stable interface has no matrix product of its own.
struct Multiply {
  Tensor product, carry, matrix;
  bool batched;

  static void call(void* context) {
    const Multiply& m = *static_cast<const Multiply*>(context);
    using torch::stable::detail::from;
    std::array<StableIValue, 3> stack{from(m.carry), from(m.matrix), from(m.product)};
    STABLE_TORCH_ERROR_CODE_CHECK(
        torch_call_dispatcher(m.batched ? "aten::bmm" : "aten::mm", "out", stack.data(), TORCH_ABI_VERSION));
    torch::stable::detail::to<Tensor>(stack[0]);
  }
};

struct OnCuda {
  template <class T, class P>
  static void run(const P& p, const Tensor& like, const OptionalTensor& w, bool transpose,
                  const char* (*start)(const P&, const cuda::Launch<T>&)) {
    const Context context(like);
    cuda::Launch<T> launch{};
    const int64_t n = p.s.n, L = p.s.L, B = p.s.B;
    bool fits = false;
    if (w) {  // without a product the card doesn't matter
      check(cuda::describe(launch.card));
      fits = cuda::persistent_fits(launch.card, n, 1, sizeof(T), sizeof(T));
    }
    launch.stream = context.stream();
    launch.strategy = cuda::choose(static_cast<cuda::Strategy>(asked.load()), w.has_value(), fits);
    STD_TORCH_CHECK(launch.strategy != cuda::Strategy::Automatic,
                    "rtrl_ext, CUDA: the persistent strategy was asked for, but n = " + std::to_string(n) + " needs " +
                        std::to_string(cuda::persistent_bytes(n, 1, sizeof(T), sizeof(T), cuda::kRowsMax)) +
                        " bytes of shared memory and a block has " + std::to_string(launch.card.shared));
    if (launch.strategy != cuda::Strategy::Stepwise) return check(start(p, launch));
    const bool batched = p.w.lead;
    auto rows = [&] { return batched ? make(like, {L, B, n}) : make(like, {L * B, n}); };
    const Tensor state = rows(), extra = rows(), carry = rows(), product = rows();
    const Tensor one = batched ? *w : torch::stable::select(*w, 0, 0);
    Multiply multiply{product, carry, transpose ? torch::stable::transpose(one, -1, -2) : one, batched};
    launch.state = out<T>(state);
    launch.extra = out<T>(extra);
    launch.carry = out<T>(carry);
    launch.product = out<T>(product);
    launch.multiply = &Multiply::call;
    launch.context = &multiply;
    check(start(p, launch));
  }
  template <class T>
  static void run(const LeakyForward<T>& p, const Tensor& like, const OptionalTensor& w) {
    run<T>(p, like, w, true, &cuda::forward<T>);
  }
  template <class T>
  static void run(const LeakyBackward<T>& p, const Tensor& like, const OptionalTensor& w) {
    run<T>(p, like, multiplies(p.transport) ? w : OptionalTensor(), false, &cuda::backward<T>);
  }
  template <class T>
  static void run(const LeakyForwardJvp<T>& p, const Tensor& like, const OptionalTensor& w) {
    run<T>(p, like, w, true, &cuda::forward_jvp<T>);
  }
  template <class T>
  static void run(const LeakyBackwardJvp<T>& p, const Tensor& like, const OptionalTensor& w) {
    run<T>(p, like, w, false, &cuda::backward_jvp<T>);
  }
};

// The strategy of all calls from now on; returns the one before.
int64_t set_strategy(int64_t strategy) {
  STD_TORCH_CHECK(strategy >= 0 && strategy <= 2, "strategy must be 0 (by size), 1 (persistent) or 2 (stepwise)");
  return asked.exchange(strategy);
}

}  // namespace
}  // namespace rx

#ifdef RX_CUDA_ON_CPU
#define RX_LIBRARY rtrl_ext_emulated
#define RX_KEY CPU
STABLE_TORCH_LIBRARY_FRAGMENT(rtrl_ext_emulated, m) {
  rx::define_leaky(m);
}
#else
#define RX_LIBRARY rtrl_ext
#define RX_KEY CUDA
#endif

STABLE_TORCH_LIBRARY_FRAGMENT(RX_LIBRARY, m) {
  m.def("cuda_strategy(int strategy) -> int");
}
STABLE_TORCH_LIBRARY_IMPL(RX_LIBRARY, CompositeExplicitAutograd, m) {
  m.impl("cuda_strategy", TORCH_BOX(&rx::set_strategy));
}
STABLE_TORCH_LIBRARY_IMPL(RX_LIBRARY, RX_KEY, m) {
  m.impl("leaky_forward", TORCH_BOX(&rx::leaky_forward<rx::OnCuda>));
  m.impl("leaky_backward", TORCH_BOX(&rx::leaky_backward<rx::OnCuda>));
  m.impl("leaky_forward_jvp", TORCH_BOX(&rx::leaky_forward_jvp<rx::OnCuda>));
  m.impl("leaky_backward_jvp", TORCH_BOX(&rx::leaky_backward_jvp<rx::OnCuda>));
}
