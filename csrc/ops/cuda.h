// What recurrences share as PyTorch ops on CUDA: the strategy, memory of a stepwise run and its products.
#pragma once
#include <array>
#include <atomic>

#include "kernels/cuda/launch.h"
#include "ops/cuda_context.h"

namespace rx {

// The strategy that was asked for, for the whole process.
inline std::atomic<int64_t> asked{static_cast<int64_t>(cuda::Strategy::Automatic)};

// The recurrent product of one step by the vendor's library: product = carry times the matrix or its transpose, for rows
// (L, B, width) under one matrix or one each. Called boxed: the stable interface has no matrix product of its own.
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

template <class F>
void with_cuda_dtype(ScalarType dtype, F&& f) {
  if (dtype == ScalarType::BFloat16) return f(BFloat16{});
  if (dtype == ScalarType::Half) return f(Float16{});
  with_dtype(dtype, f);
}

// Starts a kernel for tensors like `like`. `w` (L|1, gates n, n): the matrix of its recurrent product, none without one; a
// forward pass multiplies with its transpose. `extras`: quads that the kernel's steps keep beside state and carry.
template <class E, class P>
void run_on_cuda(const P& p, const Tensor& like, const OptionalTensor& w, int64_t gates, bool forward,
                 const char* (*start)(const P&, const cuda::Launch<E>&), int64_t extras = 1) {
  using T = ComputeOf<E>;
  const Context context(like);
  cuda::Launch<E> launch{};
  const int64_t n = p.s.n, L = p.s.L, B = p.s.B, carries = forward ? 1 : gates, products = forward ? gates : 1;
  const cuda::Sizes sizes{n, gates, carries, sizeof(E), sizeof(T)};
  bool fits = false;
  if (w) {  // without a product the card doesn't matter
    check(cuda::describe(launch.card));
    fits = cuda::persistent_fits(launch.card, sizes);
  }
  launch.stream = context.stream();
  launch.strategy = cuda::choose(static_cast<cuda::Strategy>(asked.load()), w.has_value(), fits);
  STD_TORCH_CHECK(launch.strategy != cuda::Strategy::Automatic,
                  "rtrl_ext, CUDA: the persistent strategy was asked for, but n = " + std::to_string(n) + " needs " +
                      std::to_string(cuda::persistent_bytes(sizes, cuda::kRowsMax)) +
                      " bytes of shared memory and a block has " + std::to_string(launch.card.shared));
  if (launch.strategy != cuda::Strategy::Stepwise) return check(start(p, launch));
  const bool batched = p.w.lead;
  auto rows = [&](auto&& make_one, int64_t width) {
    return batched ? make_one(like, {L, B, width}) : make_one(like, {L * B, width});
  };
  const Tensor state = rows(make_computed, n), extra = rows(make_computed, extras * n),
               product = rows(make_computed, products * n), carry = rows(make, carries * n);
  const Tensor one = batched ? *w : torch::stable::select(*w, 0, 0);
  Multiply multiply{product, carry, forward ? torch::stable::transpose(one, -1, -2) : one, batched};
  launch.state = out<T>(state);
  launch.extra = out<T>(extra);
  launch.carry = out<E>(carry);
  launch.product = out<T>(product);
  launch.multiply = &Multiply::call;
  launch.context = &multiply;
  check(start(p, launch));
}

}  // namespace rx
