// Steps of UORO as a PyTorch op: checks, memory and parameters; `Target` says where it runs.
#pragma once
#include <vector>

#include "kernels/uoro.h"
#include "ops/tensors.h"

namespace rx {

using TensorList = std::vector<Tensor>;

// The operands of one call: sizes, dtype and device are checked, contiguous copies of what is read are kept.
class Operands {
 public:
  explicit Operands(const Tensor& like) : like_(like) {}

  template <class T>
  const T* read(const Tensor& x, const std::string& name, std::initializer_list<int64_t> sizes) {
    expect(x, name, sizes);
    kept_.push_back(x.is_contiguous() ? x : torch::stable::contiguous(x));
    return static_cast<const T*>(kept_.back().const_data_ptr());
  }
  template <class T>
  T* write(const Tensor& x, const std::string& name, std::initializer_list<int64_t> sizes) const {
    expect(x, name, sizes);
    STD_TORCH_CHECK(x.is_contiguous(), name + " must be contiguous");
    return out<T>(x);
  }
  const bool* flags(const std::optional<Tensor>& x, const std::string& name, int64_t count) {
    if (!x) return nullptr;
    STD_TORCH_CHECK(
        x->scalar_type() == ScalarType::Bool && x->dim() == 1 && x->size(0) == count && x->device() == like_.device(),
        name + " must be a bool tensor of shape (" + std::to_string(count) + ",) on the device of the rest");
    kept_.push_back(x->is_contiguous() ? *x : torch::stable::contiguous(*x));
    return static_cast<const bool*>(kept_.back().const_data_ptr());
  }

 private:
  void expect(const Tensor& x, const std::string& name, std::initializer_list<int64_t> sizes) const {
    STD_TORCH_CHECK(x.scalar_type() == like_.scalar_type(), name + " has another dtype than s");
    STD_TORCH_CHECK(x.device() == like_.device(), name + " is on another device than s");
    bool good = x.dim() == static_cast<int64_t>(sizes.size());
    std::string wanted;
    int64_t i = 0;
    for (const int64_t size : sizes) {
      good = good && x.size(i) == size;
      wanted += (i++ ? ", " : "") + std::to_string(size);
    }
    STD_TORCH_CHECK(good, name + " has the wrong shape: expected (" + wanted + ")");
  }

  Tensor like_;
  std::vector<Tensor> kept_;
};

// A call's K steps: where the first one's operands lie, and how far apart those of the next are.
template <class T>
struct UoroCall {
  Uoro<T> step;
  std::vector<UoroBlock<T>> blocks;
  int64_t K, signals;  // signals: how many steps at the end have one
  bool known;          // whether `norm` holds the norm already

  // The operands of step k, in `step` and `blocks`.
  void at(int64_t k, const UoroCall& first) {
    const int64_t states = step.S * step.n, signal = k - (K - signals);
    step.jacobian = first.step.jacobian + k * step.B * states * states;
    step.signs = first.step.signs + k * step.B * states;
    step.signal = signal >= 0 ? first.step.signal + signal * step.B * states : nullptr;
    step.keep = k == 0 ? first.step.keep : nullptr;
    for (size_t i = 0; i < blocks.size(); ++i) {
      blocks[i].psi = first.blocks[i].psi + k * step.B * step.S * blocks[i].R;
      blocks[i].pre = first.blocks[i].pre + k * step.B * blocks[i].Q;
    }
  }
};

template <class Target>
void uoro_step(const Tensor& s, TensorList theta, const Tensor& norm, bool known, const Tensor& jacobian, TensorList psi,
               TensorList pre, const Tensor& signs, const OptionalTensor& keep, const OptionalTensor& signal, TensorList grad) {
  STD_TORCH_CHECK(s.dim() == 2 && signs.dim() == 3, "s must have 2 dimensions (B, S n) and signs 3 (K, B, S n)");
  STD_TORCH_CHECK(!theta.empty() && psi.size() == theta.size() && pre.size() == theta.size() &&
                      (grad.empty() || grad.size() == theta.size()),
                  "theta, psi, pre and grad must have one tensor for each block");
  STD_TORCH_CHECK(static_cast<int64_t>(theta.size()) <= kUoroBlocks, "a call takes at most 16 blocks");
  STD_TORCH_CHECK(psi[0].dim() == 4 && psi[0].size(2) > 0 && s.size(1) % psi[0].size(2) == 0,
                  "psi must have 4 dimensions (K, B, S, R), and S must divide the states of s");
  const int64_t K = signs.size(0), B = s.size(0), states = s.size(1), S = psi[0].size(2), n = states / S;
  const int64_t signals = signal && signal->dim() > 0 ? signal->size(0) : 0;
  STD_TORCH_CHECK(signals <= K, "signal has more steps than signs");
  with_dtype(s.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    Operands args(s);
    std::vector<UoroBlock<T>> blocks;
    int64_t size = B * (states + 2);  // of scratch: moved, scale, weight; a, sums and padded of all blocks
    for (size_t i = 0; i < theta.size(); ++i) {
      STD_TORCH_CHECK(theta[i].dim() == 3, "theta must have 3 dimensions (B, R, Q)");
      const int64_t R = theta[i].size(1), Q = theta[i].size(2);
      STD_TORCH_CHECK(n > 0 ? R % n == 0 : R == 0, "rows of theta must be a multiple of the units");
      UoroBlock<T> block{R,
                         Q,
                         args.read<T>(psi[i], "psi", {K, B, S, R}),
                         args.read<T>(pre[i], "pre", {K, B, Q}),
                         args.write<T>(theta[i], "theta", {B, R, Q}),
                         grad.empty() ? nullptr : args.write<T>(grad[i], "grad", {R, Q}),
                         nullptr,
                         nullptr,
                         nullptr};
      if (R * Q == 0) continue;
      size += B * (R + Target::template parts<T>(R, Q) + Target::padded(Q));
      blocks.push_back(block);
    }
    UoroCall<T> call{
        {B, S, n, args.read<T>(jacobian, "jacobian", {K, B, states, states}), args.read<T>(signs, "signs", {K, B, states}),
         signal ? args.read<T>(*signal, "signal", {signals, B, states}) : nullptr, args.flags(keep, "keep", B),
         args.write<T>(s, "s", {B, states}), args.write<T>(norm, "norm", {B}), nullptr, nullptr, nullptr, nullptr,
         static_cast<int64_t>(blocks.size())},
        std::move(blocks),
        K,
        signals,
        known};
    if (B == 0 || states == 0 || K == 0) return;
    const Tensor scratch = make(s, {size});
    T* next = out<T>(scratch);
    for (UoroBlock<T>& block : call.blocks) {
      block.a = next;
      block.sums = next + B * block.R;
      block.padded = block.sums + B * Target::template parts<T>(block.R, block.Q);
      next = block.padded + B * Target::padded(block.Q);
    }
    call.step.moved = next;
    call.step.scale = next + B * states;
    call.step.weight = call.step.scale + B;
    call.step.blocks = call.blocks.data();
    Target::run(call, s);
  });
}

inline void define_uoro(torch::stable::detail::StableLibrary& m) {
  m.def(
      "uoro_step(Tensor(a!) s, Tensor(b!)[] theta, Tensor(c!) norm, bool known, Tensor jacobian, Tensor[] psi, Tensor[] pre, "
      "Tensor signs, Tensor? keep, Tensor? signal, Tensor(d!)[] grad) -> ()");
}

}  // namespace rx
