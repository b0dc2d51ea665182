// The GRU and LSTM recurrences as PyTorch ops, forward and backward: checks, memory and parameters; `Target` says where they
// run.
#pragma once
#include "kernels/gated.h"
#include "ops/tensors.h"

namespace rx {

template <class Target>
std::tuple<Tensor, Tensor, Tensor, Tensor> gated_forward(GatedCell cell, const Tensor& pre, const Tensor& h0,
                                                         const OptionalTensor& c0, const Tensor& w, const OptionalTensor& bias,
                                                         const OptionalTensor& lengths) {
  STD_TORCH_CHECK(pre.dim() == 4, "pre must have 4 dimensions (L, T, B, gates * n)");
  STD_TORCH_CHECK(h0.dim() == 3, "h0 must have 3 dimensions (L, B, n)");
  const int64_t G = gates(cell), T_ = pre.size(1), B = pre.size(2), n = h0.size(2);
  Arguments args(pre);
  args.add(pre, "pre", {T_, B, G * n});
  args.add(h0, "h0", {B, n});
  args.add(c0, "c0", {B, n});
  args.add(w, "w", {G * n, n});
  args.add(bias, "b_hn", {n});
  const int64_t L = args.L();
  Tensor y = make(pre, {L, T_, B, n}), aux = make_computed(pre, {L, T_, B, kept_values(cell) * n});
  Tensor h_n = make(pre, {L, B, n}), c_n = c0 ? make(pre, {L, B, n}) : make(pre, {0});
  if (lengths) {  // of rows whose length is out of range
    torch::stable::zero_(h_n);
    torch::stable::zero_(c_n);
  }
  if (h_n.numel() == 0 || T_ == 0) return {y, aux, h_n, c_n};
  const GatedShape shape{L, T_, B, n, args.lengths(lengths, B), 0, T_, false};
  Target::with_dtype(pre.scalar_type(), [&](auto zero) {
    using E = decltype(zero);
    using T = ComputeOf<E>;
    const GatedForward<T, E> p{shape,     cell,           args.in<E>(pre), false,         In<E>{},
                               nullptr,   args.in<E>(h0), args.in<E>(c0),  args.in<E>(w), args.in<E>(bias),
                               out<E>(y), out<T>(aux),    out<E>(h_n),     out<E>(c_n)};
    Target::run(p, pre, w);
  });
  return {y, aux, h_n, c_n};
}

template <class Target>
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> gated_backward(GatedCell cell, const OptionalTensor& gy,
                                                                  const OptionalTensor& gh_n, const OptionalTensor& gc_n,
                                                                  const OptionalTensor& y, const Tensor& aux,
                                                                  const Tensor& before, const OptionalTensor& w,
                                                                  const OptionalTensor& lengths, int64_t policy, int64_t window,
                                                                  double decay, bool want_lam) {
  STD_TORCH_CHECK(aux.dim() == 4, "aux must have 4 dimensions (L, T, B, values * n)");
  STD_TORCH_CHECK(policy >= 0 && policy <= 2, "policy must be 0 (full), 1 (local) or 2 (diagonal)");
  STD_TORCH_CHECK(policy == 1 || w, "w is needed by every policy but 1");
  STD_TORCH_CHECK(window >= 0 && (window == 0 || policy != 2), "window must be at least 0, and 0 with policy 2");
  const bool lstm = cell == GatedCell::Lstm;
  STD_TORCH_CHECK(before.dim() == 3, "the initial state must have 3 dimensions (L, B, n)");
  const int64_t G = gates(cell), T_ = aux.size(1), B = aux.size(2), n = before.size(2);
  const Transport transport = static_cast<Transport>(policy);
  const OptionalTensor no_weight;
  const OptionalTensor& weight = transport == Transport::Local ? no_weight : w;
  Arguments args(before);
  args.add_computed(aux, "aux", {T_, B, kept_values(cell) * n});
  args.add(gy, "gy", {T_, B, n});
  args.add(gh_n, "gh_n", {B, n});
  args.add(gc_n, "gc_n", {B, n});
  args.add(y, "y", {T_, B, n});
  args.add(before, lstm ? "c0" : "h0", {B, n});
  args.add(weight, "w", {G * n, n});
  const int64_t L = args.L();
  Tensor delta = make(before, {L, T_, B, 4 * n}), gh0 = make(before, {L, B, n});
  Tensor gc0 = lstm ? make(before, {L, B, n}) : make(before, {0});
  Tensor lam = want_lam ? make_computed(before, {L, T_, B, n}) : make_computed(before, {0});
  Tensor to_c = want_lam && lstm ? make_computed(before, {L, T_, B, n}) : make_computed(before, {0});
  if (gh0.numel() == 0 || T_ == 0) return {delta, gh0, gc0, lam, to_c};
  const GatedShape shape{L, T_, B, n, args.lengths(lengths, B), 0, T_, false};
  Target::with_dtype(before.scalar_type(), [&](auto zero) {
    using E = decltype(zero);
    using T = ComputeOf<E>;
    const GatedBackward<T, E> p{shape,
                                cell,
                                transport,
                                window,
                                decay,
                                args.in<E>(gy),
                                args.in<E>(gh_n),
                                args.in<E>(gc_n),
                                args.in<E>(y),
                                args.in<T>(aux),
                                args.in<E>(before),
                                args.in<E>(weight),
                                out<E>(delta),
                                false,
                                4 * n,
                                nullptr,
                                out<E>(gh0),
                                out<E>(gc0),
                                out<T>(lam),
                                out<T>(to_c)};
    Target::run(p, before, weight);
  });
  return {delta, gh0, gc0, lam, to_c};
}

template <class Target>
std::tuple<Tensor, Tensor, Tensor> gru_forward(const Tensor& pre, const Tensor& h0, const Tensor& w, const Tensor& b_hn,
                                               const OptionalTensor& lengths) {
  auto [y, aux, h_n, none] = gated_forward<Target>(GatedCell::Gru, pre, h0, {}, w, b_hn, lengths);
  return {y, aux, h_n};
}
template <class Target>
std::tuple<Tensor, Tensor, Tensor> gru_backward(const OptionalTensor& gy, const OptionalTensor& gs_n, const Tensor& y,
                                                const Tensor& aux, const Tensor& h0, const OptionalTensor& w,
                                                const OptionalTensor& lengths, int64_t policy, int64_t window, double decay,
                                                bool want_lam) {
  auto [delta, gh0, none, lam, none_either] =
      gated_backward<Target>(GatedCell::Gru, gy, gs_n, {}, y, aux, h0, w, lengths, policy, window, decay, want_lam);
  return {delta, gh0, lam};
}
template <class Target>
std::tuple<Tensor, Tensor, Tensor, Tensor> lstm_forward(const Tensor& pre, const Tensor& h0, const Tensor& c0, const Tensor& w,
                                                        const OptionalTensor& lengths) {
  return gated_forward<Target>(GatedCell::Lstm, pre, h0, c0, w, {}, lengths);
}
template <class Target>
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> lstm_backward(const OptionalTensor& gy, const OptionalTensor& gh_n,
                                                                 const OptionalTensor& gc_n, const Tensor& aux,
                                                                 const Tensor& c0, const OptionalTensor& w,
                                                                 const OptionalTensor& lengths, int64_t policy, int64_t window,
                                                                 double decay, bool want_lam) {
  return gated_backward<Target>(GatedCell::Lstm, gy, gh_n, gc_n, {}, aux, c0, w, lengths, policy, window, decay, want_lam);
}

}  // namespace rx
