// Steps of RTRL and SnAp as PyTorch ops: checks of what would crash, and parameters; `Target` says where they run. Arguments
// are checked for users in rtrl_ext/functional/.
#pragma once
#include <torch/csrc/stable/library.h>

#include <string>

#include "kernels/influence.h"
#include "ops/tensors.h"

namespace rx {

// Collects the arguments of a step: dtype, device and exact shapes; keeps contiguous copies alive.
class StepArguments {
 public:
  explicit StepArguments(const Tensor& like) : dtype_(like.scalar_type()), device_(like.device()) {}

  void check(const Tensor& x, const char* name, std::initializer_list<int64_t> sizes) const {
    STD_TORCH_CHECK(x.scalar_type() == dtype_, std::string(name) + " has another dtype than influence");
    check_place(x, name, sizes);
  }
  template <class T>
  const T* in(const Tensor& x, const char* name, std::initializer_list<int64_t> sizes) {
    check(x, name, sizes);
    return kept<T>(x);
  }
  const int32_t* places(const Tensor& x, const char* name) {
    STD_TORCH_CHECK(x.scalar_type() == ScalarType::Int, std::string(name) + " must be int32");
    check_place(x, name, {x.numel()});
    return kept<int32_t>(x);
  }
  const int64_t* offsets(const Tensor& x, const char* name, int64_t size) {
    STD_TORCH_CHECK(x.scalar_type() == ScalarType::Long, std::string(name) + " must be int64");
    check_place(x, name, {size});
    return kept<int64_t>(x);
  }

 private:
  void check_place(const Tensor& x, const char* name, std::initializer_list<int64_t> sizes) const {
    STD_TORCH_CHECK(x.device() == device_, std::string(name) + " is on another device than influence");
    bool good = x.dim() == static_cast<int64_t>(sizes.size());
    int64_t d = 0;
    for (int64_t size : sizes) {
      good = good && x.size(d) == size;
      ++d;
    }
    STD_TORCH_CHECK(good, std::string(name) + " has the wrong shape");
  }
  template <class T>
  const T* kept(const Tensor& x) {
    kept_.push_back(x.is_contiguous() ? x : torch::stable::contiguous(x));
    return static_cast<const T*>(kept_.back().const_data_ptr());
  }

  ScalarType dtype_;
  torch::stable::Device device_;
  std::vector<Tensor> kept_;
};

// Sizes from jacobian (K, B, S n, S n), psi (K, B, S, R) and pre (K, B, Q).
inline InfluenceShape influence_shape(const Tensor& jacobian, const Tensor& psi, const Tensor& pre,
                                      const OptionalTensor& signal, const OptionalTensor& grad) {
  STD_TORCH_CHECK(jacobian.dim() == 4, "jacobian must have 4 dimensions (K, B, S n, S n)");
  STD_TORCH_CHECK(psi.dim() == 4, "psi must have 4 dimensions (K, B, S, R)");
  STD_TORCH_CHECK(pre.dim() == 3, "pre must have 3 dimensions (K, B, Q)");
  STD_TORCH_CHECK(signal.has_value() == grad.has_value(), "signal and grad go together");
  const int64_t K = jacobian.size(0), S = psi.size(2);
  STD_TORCH_CHECK(S > 0 && jacobian.size(3) % S == 0, "jacobian's last size must be S times n");
  const int64_t n = jacobian.size(3) / S, R = psi.size(3);
  STD_TORCH_CHECK(n > 0 && R % n == 0, "psi's last size must be G times n");
  const int64_t signals = signal ? signal->size(0) : 0;
  STD_TORCH_CHECK(signals <= K || (K == 0 && signals == 1), "signal has more steps than there are");
  return {K, signals, jacobian.size(1), S, n, R, pre.size(2)};
}

template <class T>
InfluenceSteps<T> influence_steps(StepArguments& args, const InfluenceShape& s, const Tensor& jacobian, const Tensor& psi,
                                  const Tensor& pre, const OptionalTensor& signal, const OptionalTensor& grad) {
  const int64_t N = s.S * s.n;
  InfluenceSteps<T> steps{args.in<T>(jacobian, "jacobian", {s.K, s.B, N, N}), args.in<T>(psi, "psi", {s.K, s.B, s.S, s.R}),
                          args.in<T>(pre, "pre", {s.K, s.B, s.Q}),
                          signal ? args.in<T>(*signal, "signal", {s.signals, s.B, s.S, s.n}) : nullptr, nullptr};
  if (grad) {
    args.check(*grad, "grad", {s.R, s.Q});
    STD_TORCH_CHECK(grad->is_contiguous(), "grad must be contiguous");
    if (s.signals > 0) steps.grad = out<T>(*grad);
  }
  return steps;
}

template <class Target>
void rtrl_step(const Tensor& influence, const Tensor& jacobian, const Tensor& psi, const Tensor& pre,
               const OptionalTensor& signal, const OptionalTensor& grad) {
  const InfluenceShape s = influence_shape(jacobian, psi, pre, signal, grad);
  const int64_t N = s.S * s.n;
  with_dtype(influence.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    StepArguments args(influence);
    args.check(influence, "influence", {s.B, N, s.R, s.Q});
    STD_TORCH_CHECK((influence.stride(3) == 1 || s.Q <= 1) && (influence.stride(2) == s.Q || s.R <= 1),
                    "influence must be contiguous in its last two dimensions");
    const InfluenceSteps<T> steps = influence_steps<T>(args, s, jacobian, psi, pre, signal, grad);
    if (influence.numel() == 0 || (s.K == 0 && s.signals == 0)) return;
    const RtrlStep<T> p{s, steps, out<T>(influence), influence.stride(0), influence.stride(1)};
    Target::run(p, influence, jacobian);
  });
}

template <class Target>
void snap_step(const Tensor& influence, const Tensor& jacobian, const Tensor& psi, const Tensor& pre, const Tensor& units,
               const Tensor& unit_at, const Tensor& columns, const Tensor& column_at, const Tensor& links,
               const Tensor& link_at, const Tensor& link_pairs, const Tensor& pairs, const Tensor& at, int64_t size,
               int64_t most_units, const OptionalTensor& signal, const OptionalTensor& grad) {
  const InfluenceShape s = influence_shape(jacobian, psi, pre, signal, grad);
  with_dtype(influence.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    StepArguments args(influence);
    args.check(influence, "influence", {s.B, size});
    STD_TORCH_CHECK(influence.stride(1) == 1 || size <= 1, "influence must be contiguous in its last dimension");
    const SnapPattern pattern{args.places(units, "units"),
                              args.offsets(unit_at, "unit_at", s.n + 1),
                              args.places(columns, "columns"),
                              args.offsets(column_at, "column_at", s.n + 1),
                              args.places(links, "links"),
                              args.offsets(link_at, "link_at", units.numel() + 1),
                              args.places(link_pairs, "link_pairs"),
                              args.places(pairs, "pairs"),
                              args.offsets(at, "at", s.n + 1),
                              units.numel(),
                              columns.numel(),
                              pairs.numel() / 2};
    const InfluenceSteps<T> steps = influence_steps<T>(args, s, jacobian, psi, pre, signal, grad);
    if (influence.numel() == 0 || (s.K == 0 && s.signals == 0)) return;
    const SnapStep<T> p{s, steps, pattern, out<T>(influence), influence.stride(0), nullptr};
    Target::run(p, influence, most_units);
  });
}

inline void define_influence(torch::stable::detail::StableLibrary& m) {
  m.def("rtrl_step(Tensor(a!) influence, Tensor jacobian, Tensor psi, Tensor pre, Tensor? signal, Tensor(b!)? grad) -> ()");
  m.def(
      "snap_step(Tensor(a!) influence, Tensor jacobian, Tensor psi, Tensor pre, Tensor units, Tensor unit_at, "
      "Tensor columns, Tensor column_at, Tensor links, Tensor link_at, Tensor link_pairs, Tensor pairs, Tensor at, "
      "int size, int most_units, "
      "Tensor? signal, Tensor(b!)? grad) -> ()");
}

}  // namespace rx
