// The GRU and LSTM recurrences as PyTorch ops, tangents: checks, memory and parameters; `Target` says where they run.
#pragma once
#include "kernels/gated.h"
#include "ops/tensors.h"

namespace rx {

template <class Target>
std::tuple<Tensor, Tensor, Tensor, Tensor> gated_forward_jvp(GatedCell cell, const Tensor& du, const Tensor& dh0,
                                                             const OptionalTensor& dc0, const OptionalTensor& y,
                                                             const Tensor& aux, const Tensor& before, const Tensor& w,
                                                             const OptionalTensor& lengths) {
  STD_TORCH_CHECK(du.dim() == 4, "du must have 4 dimensions (L, T, B, 4 * n)");
  STD_TORCH_CHECK(dh0.dim() == 3, "dh0 must have 3 dimensions (L, B, n)");
  const int64_t T_ = du.size(1), B = du.size(2), n = dh0.size(2), G = gates(cell), A = kept_values(cell);
  Arguments args(du);
  args.add(du, "du", {T_, B, 4 * n});
  args.add(dh0, "dh0", {B, n});
  args.add(dc0, "dc0", {B, n});
  args.add(y, "y", {T_, B, n});
  args.add_computed(aux, "aux", {T_, B, A * n});
  args.add(before, cell == GatedCell::Lstm ? "c0" : "h0", {B, n});
  args.add(w, "w", {G * n, n});
  const int64_t L = args.L();
  Tensor dy = make(du, {L, T_, B, n}), daux = make_computed(du, {L, T_, B, A * n});
  Tensor dh_n = make(du, {L, B, n}), dc_n = dc0 ? make(du, {L, B, n}) : make(du, {0});
  if (lengths) {  // of rows whose length is out of range
    torch::stable::zero_(dh_n);
    torch::stable::zero_(dc_n);
  }
  if (dh_n.numel() == 0 || T_ == 0) return {dy, daux, dh_n, dc_n};
  const GatedShape shape{L, T_, B, n, args.lengths(lengths, B), 0, T_, false};
  Target::with_dtype(du.scalar_type(), [&](auto zero) {
    using E = decltype(zero);
    using T = ComputeOf<E>;
    const GatedForwardJvp<T, E> p{shape,           cell,
                                  args.in<E>(du),  false,
                                  In<E>{},         args.in<E>(dh0),
                                  args.in<E>(dc0), args.in<E>(y),
                                  args.in<T>(aux), args.in<E>(before),
                                  args.in<E>(w),   out<E>(dy),
                                  out<T>(daux),    out<E>(dh_n),
                                  out<E>(dc_n)};
    Target::run(p, du, w);
  });
  return {dy, daux, dh_n, dc_n};
}

// The primal pass and its tangents, as the forward passes left them.
struct Primal {
  const OptionalTensor &y, &dy;
  const Tensor &aux, &daux, &before, &dbefore, &lam;
  const OptionalTensor& to_c;
};

template <class Target>
std::tuple<Tensor, Tensor, Tensor> gated_backward_jvp(GatedCell cell, const Tensor& dgy, const OptionalTensor& dgh_n,
                                                      const OptionalTensor& dgc_n, const Primal& of, const Tensor& w,
                                                      const OptionalTensor& lengths) {
  STD_TORCH_CHECK(dgy.dim() == 4, "dgy must have 4 dimensions (L, T, B, n)");
  const bool lstm = cell == GatedCell::Lstm;
  const int64_t T_ = dgy.size(1), B = dgy.size(2), n = dgy.size(3), G = gates(cell), A = kept_values(cell);
  Arguments args(dgy);
  args.add(dgy, "dgy", {T_, B, n});
  args.add(dgh_n, "dgh_n", {B, n});
  args.add(dgc_n, "dgc_n", {B, n});
  args.add(of.y, "y", {T_, B, n});
  args.add(of.dy, "dy", {T_, B, n});
  args.add_computed(of.aux, "aux", {T_, B, A * n});
  args.add_computed(of.daux, "daux", {T_, B, A * n});
  args.add(of.before, lstm ? "c0" : "h0", {B, n});
  args.add(of.dbefore, lstm ? "dc0" : "dh0", {B, n});
  args.add_computed(of.lam, "lam", {T_, B, n});
  args.add_computed(of.to_c, "to_c", {T_, B, n});
  args.add(w, "w", {G * n, n});
  const int64_t L = args.L();
  Tensor ddelta = make(dgy, {L, T_, B, 4 * n}), dgh0 = make(dgy, {L, B, n});
  Tensor dgc0 = lstm ? make(dgy, {L, B, n}) : make(dgy, {0});
  if (dgh0.numel() == 0 || T_ == 0) return {ddelta, dgh0, dgc0};
  const GatedShape shape{L, T_, B, n, args.lengths(lengths, B), 0, T_, false};
  Target::with_dtype(dgy.scalar_type(), [&](auto zero) {
    using E = decltype(zero);
    using T = ComputeOf<E>;
    const GatedBackwardJvp<T, E> p{shape,
                                   cell,
                                   false,
                                   args.in<E>(dgy),
                                   args.in<E>(dgh_n),
                                   args.in<E>(dgc_n),
                                   args.in<E>(of.y),
                                   args.in<E>(of.dy),
                                   args.in<T>(of.aux),
                                   args.in<T>(of.daux),
                                   args.in<E>(of.before),
                                   args.in<E>(of.dbefore),
                                   args.in<T>(of.lam),
                                   args.in<T>(of.to_c),
                                   args.in<E>(w),
                                   out<E>(ddelta),
                                   out<E>(dgh0),
                                   out<E>(dgc0)};
    Target::run(p, dgy, w);
  });
  return {ddelta, dgh0, dgc0};
}

template <class Target>
std::tuple<Tensor, Tensor, Tensor> gru_forward_jvp(const Tensor& du, const Tensor& dh0, const Tensor& y, const Tensor& aux,
                                                   const Tensor& h0, const Tensor& w, const OptionalTensor& lengths) {
  auto [dy, daux, dh_n, none] = gated_forward_jvp<Target>(GatedCell::Gru, du, dh0, {}, y, aux, h0, w, lengths);
  return {dy, daux, dh_n};
}
template <class Target>
std::tuple<Tensor, Tensor> gru_backward_jvp(const Tensor& dgy, const OptionalTensor& dgs_n, const Tensor& dy,
                                            const Tensor& daux, const Tensor& dh0, const Tensor& y, const Tensor& aux,
                                            const Tensor& h0, const Tensor& lam, const Tensor& w,
                                            const OptionalTensor& lengths) {
  const OptionalTensor none, some_y(y), some_dy(dy);
  auto [ddelta, dgh0, no_c] =
      gated_backward_jvp<Target>(GatedCell::Gru, dgy, dgs_n, {}, {some_y, some_dy, aux, daux, h0, dh0, lam, none}, w, lengths);
  return {ddelta, dgh0};
}
template <class Target>
std::tuple<Tensor, Tensor, Tensor, Tensor> lstm_forward_jvp(const Tensor& du, const Tensor& dh0, const Tensor& dc0,
                                                            const Tensor& aux, const Tensor& c0, const Tensor& w,
                                                            const OptionalTensor& lengths) {
  return gated_forward_jvp<Target>(GatedCell::Lstm, du, dh0, dc0, {}, aux, c0, w, lengths);
}
template <class Target>
std::tuple<Tensor, Tensor, Tensor> lstm_backward_jvp(const Tensor& dgy, const OptionalTensor& dgh_n,
                                                     const OptionalTensor& dgc_n, const Tensor& daux, const Tensor& dc0,
                                                     const Tensor& aux, const Tensor& c0, const Tensor& lam, const Tensor& to_c,
                                                     const Tensor& w, const OptionalTensor& lengths) {
  const OptionalTensor none, some(to_c);
  return gated_backward_jvp<Target>(GatedCell::Lstm, dgy, dgh_n, dgc_n, {none, none, aux, daux, c0, dc0, lam, some}, w,
                                    lengths);
}

}  // namespace rx
