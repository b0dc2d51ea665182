// The LeakyRNN recurrence as PyTorch ops, tangents: checks, memory and parameters; `Target` says where it runs.
#pragma once
#include "ops/tensors.h"

namespace rx {

template <class Target>
std::tuple<Tensor, Tensor, Tensor, Tensor> leaky_forward_jvp(const Tensor& dpre, const Tensor& dy0, const Tensor& ds0,
                                                             const OptionalTensor& dleak, const Tensor& y, const Tensor& aux,
                                                             const Tensor& y0, const Tensor& s0, const Tensor& w,
                                                             const Tensor& leak, const OptionalTensor& lengths, int64_t form,
                                                             int64_t act, bool unit_leak, bool want_du) {
  STD_TORCH_CHECK(dpre.dim() == 4, "dpre must have 4 dimensions (L, T, B, n)");
  const int64_t T_ = dpre.size(1), B = dpre.size(2), n = dpre.size(3);
  Arguments args(dpre);
  args.add(dpre, "dpre", {T_, B, n});
  args.add(dy0, "dy0", {B, n});
  args.add(ds0, "ds0", {B, n});
  args.add_computed(dleak, "dleak", {n});
  args.add(y, "y", {T_, B, n});
  if (!unit_leak) args.add_computed(aux, "aux", {T_, B, n});
  args.add(y0, "y0", {B, n});
  args.add(s0, "s0", {B, n});
  args.add(w, "w", {n, n});
  args.add_computed(leak, "leak", {n});
  const int64_t L = args.L();
  Tensor dy = make(dpre, {L, T_, B, n}), ds_n = make(dpre, {L, B, n});
  Tensor daux = unit_leak ? make_computed(dpre, {0}) : make_computed(dpre, {L, T_, B, n});
  Tensor du = want_du ? make(dpre, {L, T_, B, n}) : make(dpre, {0});
  if (lengths) torch::stable::zero_(ds_n);  // of rows whose length is out of range
  if (ds_n.numel() == 0 || T_ == 0) return {dy, daux, ds_n, du};
  LeakyShape shape = leaky_shape(L, T_, B, n, form, act, unit_leak);
  shape.lengths = args.lengths(lengths, B);
  Target::with_dtype(dpre.scalar_type(), [&](auto zero) {
    using E = decltype(zero);
    using T = ComputeOf<E>;
    LeakyForwardJvp<T, E> p{shape,
                            args.in<E>(dpre),
                            args.in<E>(dy0),
                            args.in<E>(ds0),
                            args.in<T>(dleak),
                            In<E>{},
                            args.in<E>(y),
                            unit_leak ? In<T>{} : args.in<T>(aux),
                            args.in<E>(s0),
                            args.in<E>(w),
                            args.in<T>(leak),
                            out<E>(dy),
                            out<T>(daux),
                            out<E>(ds_n),
                            out<E>(du),
                            In<T>{},
                            nullptr};
    Target::run(p, dpre, w);
  });
  return {dy, daux, ds_n, du};
}

template <class Target>
std::tuple<Tensor, Tensor, Tensor, Tensor> leaky_backward_jvp(const Tensor& dgy, const OptionalTensor& dgs_n,
                                                              const OptionalTensor& dleak, const Tensor& dy, const Tensor& daux,
                                                              const Tensor& y, const Tensor& aux, const Tensor& lam,
                                                              const Tensor& delta, const Tensor& w, const Tensor& leak,
                                                              const OptionalTensor& lengths, int64_t form, int64_t act,
                                                              bool unit_leak, bool want_dlam) {
  STD_TORCH_CHECK(dgy.dim() == 4, "dgy must have 4 dimensions (L, T, B, n)");
  const int64_t T_ = dgy.size(1), B = dgy.size(2), n = dgy.size(3);
  Arguments args(dgy);
  args.add(dgy, "dgy", {T_, B, n});
  args.add(dgs_n, "dgs_n", {B, n});
  args.add_computed(dleak, "dleak", {n});
  args.add(dy, "dy", {T_, B, n});
  args.add(y, "y", {T_, B, n});
  if (!unit_leak) {
    args.add_computed(daux, "daux", {T_, B, n});
    args.add_computed(aux, "aux", {T_, B, n});
  }
  args.add_computed(lam, "lam", {T_, B, n});
  args.add(delta, "delta", {T_, B, n});
  args.add(w, "w", {n, n});
  args.add_computed(leak, "leak", {n});
  const int64_t L = args.L();
  Tensor ddelta = make(dgy, {L, T_, B, n}), dgy0 = make(dgy, {L, B, n}), dgs0 = make(dgy, {L, B, n});
  Tensor dlam = want_dlam ? make_computed(dgy, {L, T_, B, n}) : make_computed(dgy, {0});
  if (dgy0.numel() == 0 || T_ == 0) return {ddelta, dgy0, dgs0, dlam};
  LeakyShape shape = leaky_shape(L, T_, B, n, form, act, unit_leak);
  shape.lengths = args.lengths(lengths, B);
  Target::with_dtype(dgy.scalar_type(), [&](auto zero) {
    using E = decltype(zero);
    using T = ComputeOf<E>;
    LeakyBackwardJvp<T, E> p{shape,
                             false,
                             args.in<E>(dgy),
                             args.in<E>(dgs_n),
                             args.in<T>(dleak),
                             args.in<E>(dy),
                             unit_leak ? In<T>{} : args.in<T>(daux),
                             args.in<E>(y),
                             unit_leak ? In<T>{} : args.in<T>(aux),
                             args.in<T>(lam),
                             args.in<E>(delta),
                             args.in<E>(w),
                             args.in<T>(leak),
                             out<E>(ddelta),
                             out<E>(dgy0),
                             out<E>(dgs0),
                             out<T>(dlam)};
    Target::run(p, dgy, w);
  });
  return {ddelta, dgy0, dgs0, dlam};
}

}  // namespace rx
