// The LRU's scans as PyTorch ops: checks, memory and parameters; `Target` says where they run.
#pragma once
#include <torch/csrc/stable/library.h>

#include "kernels/lru.h"
#include "ops/tensors.h"

namespace rx {

template <class Target>
std::tuple<Tensor, Tensor> lru_scan(const Tensor& lam, const Tensor& u, const Tensor& s0, const OptionalTensor& lengths,
                                    int64_t window) {
  STD_TORCH_CHECK(u.dim() == 5, "u must have 5 dimensions (L, T, B, 2, n)");
  STD_TORCH_CHECK(window >= 0, "window must be at least 0");
  const int64_t T_ = u.size(1), B = u.size(2), n = u.size(4);
  Arguments args(u);
  args.add(u, "u", {T_, B, 2, n});
  args.add(lam, "lam", {2, n});
  args.add(s0, "s0", {B, 2, n});
  const int64_t L = args.L();
  Tensor states = make(u, {L, T_, B, 2, n}), s_n = make(u, {L, B, 2, n});
  if (lengths || T_ == 0) torch::stable::zero_(s_n);  // of rows whose length is out of range
  if (s_n.numel() == 0 || T_ == 0) return {states, s_n};
  const LruShape shape{L, T_, B, n, 0, T_, args.lengths(lengths, B)};
  with_dtype(u.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    const LruScan<T> p{shape, args.in<T>(lam), args.in<T>(u), args.in<T>(s0), out<T>(states), out<T>(s_n)};
    Target::run(p, u);
  });
  return {states, s_n};
}

template <class Target>
std::tuple<Tensor, Tensor, Tensor> lru_backward(const OptionalTensor& gs, const OptionalTensor& gs_n, const Tensor& lam,
                                                const Tensor& states, const Tensor& s0, const OptionalTensor& lengths,
                                                int64_t window, bool want_lam) {
  STD_TORCH_CHECK(states.dim() == 5, "states must have 5 dimensions (L, T, B, 2, n)");
  STD_TORCH_CHECK(window >= 0, "window must be at least 0");
  const int64_t T_ = states.size(1), B = states.size(2), n = states.size(4);
  Arguments args(states);
  args.add(states, "states", {T_, B, 2, n});
  args.add(gs, "gs", {T_, B, 2, n});
  args.add(gs_n, "gs_n", {B, 2, n});
  args.add(lam, "lam", {2, n});
  args.add(s0, "s0", {B, 2, n});
  const int64_t L = args.L();
  Tensor a = make(states, {L, T_, B, 2, n}), gs0 = make(states, {L, B, 2, n});
  Tensor glam = want_lam ? make(states, {L, 2, n}) : make(states, {0});
  if (gs0.numel() == 0 || T_ == 0) {
    torch::stable::zero_(gs0);
    torch::stable::zero_(glam);
    return {a, gs0, glam};
  }
  const LruShape shape{L, T_, B, n, 0, T_, args.lengths(lengths, B)};
  with_dtype(states.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    LruBackward<T> p{shape,          window,    args.in<T>(lam), args.in<T>(gs), args.in<T>(gs_n), args.in<T>(states),
                     args.in<T>(s0), out<T>(a), out<T>(gs0),     nullptr};
    Target::run(p, states, want_lam ? out<T>(glam) : nullptr);
  });
  return {a, gs0, glam};
}

inline void define_lru(torch::stable::detail::StableLibrary& m) {
  m.def("lru_scan(Tensor lam, Tensor u, Tensor s0, Tensor? lengths, int window) -> (Tensor, Tensor)");
  m.def(
      "lru_backward(Tensor? gs, Tensor? gs_n, Tensor lam, Tensor states, Tensor s0, Tensor? lengths, int window, "
      "bool want_lam) -> (Tensor, Tensor, Tensor)");
}

}  // namespace rx
