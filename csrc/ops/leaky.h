// The LeakyRNN recurrence as PyTorch ops, forward and backward: checks, memory and parameters; `Target` says where it runs.
#pragma once
#include "ops/tensors.h"

namespace rx {

template <class Target>
std::tuple<Tensor, Tensor, Tensor> leaky_forward(const Tensor& pre, const Tensor& y0, const Tensor& s0, const Tensor& w,
                                                 const Tensor& leak, const OptionalTensor& lengths, int64_t form, int64_t act,
                                                 bool unit_leak) {
  STD_TORCH_CHECK(pre.dim() == 4, "pre must have 4 dimensions (L, T, B, n)");
  const int64_t T_ = pre.size(1), B = pre.size(2), n = pre.size(3);
  Arguments args(pre);
  args.add(pre, "pre", {T_, B, n});
  args.add(y0, "y0", {B, n});
  args.add(s0, "s0", {B, n});
  args.add(w, "w", {n, n});
  args.add_computed(leak, "leak", {n});
  const int64_t L = args.L();
  Tensor y = make(pre, {L, T_, B, n});
  Tensor aux = unit_leak ? make_computed(pre, {0}) : make_computed(pre, {L, T_, B, n});
  Tensor s_n = make(pre, {L, B, n});
  if (lengths) torch::stable::zero_(s_n);  // of rows whose length is out of range
  if (s_n.numel() == 0 || T_ == 0) return {y, aux, s_n};
  LeakyShape shape = leaky_shape(L, T_, B, n, form, act, unit_leak);
  shape.lengths = args.lengths(lengths, B);
  Target::with_dtype(pre.scalar_type(), [&](auto zero) {
    using E = decltype(zero);
    using T = ComputeOf<E>;
    LeakyForward<T, E> p{shape,   args.in<E>(pre), args.in<E>(y0), args.in<E>(s0), args.in<E>(w), args.in<T>(leak),
                         In<E>{}, nullptr,         out<E>(y),      out<T>(aux),    out<E>(s_n)};
    Target::run(p, pre, w);
  });
  return {y, aux, s_n};
}

template <class Target>
std::tuple<Tensor, Tensor, Tensor, Tensor> leaky_backward(const OptionalTensor& gy, const OptionalTensor& gaux,
                                                          const OptionalTensor& gs_n, const Tensor& y, const Tensor& aux,
                                                          const OptionalTensor& w, const Tensor& leak,
                                                          const OptionalTensor& lengths, int64_t form, int64_t act,
                                                          bool unit_leak, int64_t policy, double mu, int64_t window,
                                                          double decay, bool want_lam) {
  STD_TORCH_CHECK(y.dim() == 4, "y must have 4 dimensions (L, T, B, n)");
  STD_TORCH_CHECK(policy >= 0 && policy <= 4, "policy must be 0 to 4");
  STD_TORCH_CHECK(policy == 1 || w, "w is needed by every policy but 1");
  STD_TORCH_CHECK(window >= 0, "window must be at least 0");
  const int64_t T_ = y.size(1), B = y.size(2), n = y.size(3);
  const Transport transport = static_cast<Transport>(policy);
  const OptionalTensor no_weight;
  const OptionalTensor& weight = transport == Transport::Local ? no_weight : w;
  Arguments args(y);
  args.add(y, "y", {T_, B, n});
  if (!unit_leak) args.add_computed(aux, "aux", {T_, B, n});
  args.add(gy, "gy", {T_, B, n});
  args.add_computed(gaux, "gaux", {T_, B, n});
  args.add(gs_n, "gs_n", {B, n});
  args.add(weight, "w", {n, n});
  args.add_computed(leak, "leak", {n});
  const int64_t L = args.L();
  Tensor delta = make(y, {L, T_, B, n}), gy0 = make(y, {L, B, n}), gs0 = make(y, {L, B, n});
  Tensor lam = want_lam ? make_computed(y, {L, T_, B, n}) : make_computed(y, {0});
  if (gy0.numel() == 0 || T_ == 0) return {delta, gy0, gs0, lam};
  LeakyShape shape = leaky_shape(L, T_, B, n, form, act, unit_leak);
  shape.lengths = args.lengths(lengths, B);
  Target::with_dtype(y.scalar_type(), [&](auto zero) {
    using E = decltype(zero);
    using T = ComputeOf<E>;
    LeakyBackward<T, E> p{shape,
                          transport,
                          mu,
                          window,
                          decay,
                          args.in<E>(gy),
                          args.in<T>(gaux),
                          args.in<E>(gs_n),
                          args.in<E>(y),
                          unit_leak ? In<T>{} : args.in<T>(aux),
                          args.in<E>(weight),
                          args.in<T>(leak),
                          out<E>(delta),
                          false,
                          out<E>(gy0),
                          out<E>(gs0),
                          out<T>(lam),
                          nullptr};
    Target::run(p, y, weight);
  });
  return {delta, gy0, gs0, lam};
}

}  // namespace rx
