// The LeakyRNN recurrence as PyTorch ops on CUDA. The same source makes the emulated operations of the tests
// (RX_CUDA_ON_CPU), which take CPU tensors under a namespace of their own.
#include <array>
#include <atomic>

#include "kernels/cuda/launch.h"
#include "ops/cuda_context.h"
#include "ops/leaky.h"
#include "ops/leaky_jvp.h"
#include "ops/leaky_schemas.h"

namespace rx {
namespace {

// The strategy that was asked for, for the whole process.
std::atomic<int64_t> asked{static_cast<int64_t>(cuda::Strategy::Automatic)};

// The recurrent product of one step by the vendor's library: product = carry times the matrix or its transpose, for rows
// (L, B, n) under one matrix or one each. Called boxed: the stable interface has no matrix product of its own.
struct Multiply {
  Tensor product, carry, matrix;
  bool batched;

  static void call(void* context) {
    const Multiply& m = *static_cast<const Multiply*>(context);
    if (m.carry.scalar_type() == m.product.scalar_type()) return m.run(m.carry, m.matrix);
#ifdef RX_CUDA_ON_CPU  // torch's products of half precision into float are for CUDA alone
    m.run(torch::stable::to(m.carry, m.product.scalar_type()), torch::stable::to(m.matrix, m.product.scalar_type()));
#else
    using torch::stable::detail::from;
    std::array<StableIValue, 4> stack{from(m.carry), from(m.matrix), from(m.product.scalar_type()), from(m.product)};
    m.dispatch("dtype_out", stack.data());
#endif
  }
  void run(const Tensor& left, const Tensor& right) const {
    using torch::stable::detail::from;
    std::array<StableIValue, 3> stack{from(left), from(right), from(product)};
    dispatch("out", stack.data());
  }
  void dispatch(const char* overload, StableIValue* stack) const {
    STABLE_TORCH_ERROR_CODE_CHECK(
        torch_call_dispatcher(batched ? "aten::bmm" : "aten::mm", overload, stack, TORCH_ABI_VERSION));
    torch::stable::detail::to<Tensor>(stack[0]);
  }
};

struct OnCuda {
  template <class F>
  static void with_dtype(ScalarType dtype, F&& f) {
    if (dtype == ScalarType::BFloat16) return f(BFloat16{});
    if (dtype == ScalarType::Half) return f(Float16{});
    rx::with_dtype(dtype, f);
  }
  template <class E, class P>
  static void run(const P& p, const Tensor& like, const OptionalTensor& w, bool transpose,
                  const char* (*start)(const P&, const cuda::Launch<E>&)) {
    using T = ComputeOf<E>;
    const Context context(like);
    cuda::Launch<E> launch{};
    const int64_t n = p.s.n, L = p.s.L, B = p.s.B;
    bool fits = false;
    if (w) {  // without a product the card doesn't matter
      check(cuda::describe(launch.card));
      fits = cuda::persistent_fits(launch.card, n, 1, sizeof(E), sizeof(T));
    }
    launch.stream = context.stream();
    launch.strategy = cuda::choose(static_cast<cuda::Strategy>(asked.load()), w.has_value(), fits);
    STD_TORCH_CHECK(launch.strategy != cuda::Strategy::Automatic,
                    "rtrl_ext, CUDA: the persistent strategy was asked for, but n = " + std::to_string(n) + " needs " +
                        std::to_string(cuda::persistent_bytes(n, 1, sizeof(E), sizeof(T), cuda::kRowsMax)) +
                        " bytes of shared memory and a block has " + std::to_string(launch.card.shared));
    if (launch.strategy != cuda::Strategy::Stepwise) return check(start(p, launch));
    const bool batched = p.w.lead;
    auto rows = [&](auto&& make_one) { return batched ? make_one(like, {L, B, n}) : make_one(like, {L * B, n}); };
    const Tensor state = rows(make_computed), extra = rows(make_computed), product = rows(make_computed), carry = rows(make);
    const Tensor one = batched ? *w : torch::stable::select(*w, 0, 0);
    Multiply multiply{product, carry, transpose ? torch::stable::transpose(one, -1, -2) : one, batched};
    launch.state = out<T>(state);
    launch.extra = out<T>(extra);
    launch.carry = out<E>(carry);
    launch.product = out<T>(product);
    launch.multiply = &Multiply::call;
    launch.context = &multiply;
    check(start(p, launch));
  }
  template <class E>
  static void run(const LeakyForward<ComputeOf<E>, E>& p, const Tensor& like, const OptionalTensor& w) {
    run<E>(p, like, w, true, &cuda::forward<E>);
  }
  template <class E>
  static void run(const LeakyBackward<ComputeOf<E>, E>& p, const Tensor& like, const OptionalTensor& w) {
    run<E>(p, like, multiplies(p.transport) ? w : OptionalTensor(), false, &cuda::backward<E>);
  }
  template <class E>
  static void run(const LeakyForwardJvp<ComputeOf<E>, E>& p, const Tensor& like, const OptionalTensor& w) {
    run<E>(p, like, w, true, &cuda::forward_jvp<E>);
  }
  template <class E>
  static void run(const LeakyBackwardJvp<ComputeOf<E>, E>& p, const Tensor& like, const OptionalTensor& w) {
    run<E>(p, like, w, false, &cuda::backward_jvp<E>);
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
