// GRU and LSTM recurrences as PyTorch ops on the CPU.
#include "kernels/gated.h"

#include "ops/leaky_run.h"

namespace rx {
namespace {

template <class T>
int64_t scratch(int64_t n) {
  return gated_kernels<T>().scratch_size(kTileRowsMax, n);
}

std::tuple<Tensor, Tensor, Tensor, Tensor> forward(GatedCell cell, const Tensor& pre, const Tensor& h0,
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
  Tensor y = make(pre, {L, T_, B, n}), aux = make(pre, {L, T_, B, kept_values(cell) * n});
  Tensor h_n = make(pre, {L, B, n}), c_n = c0 ? make(pre, {L, B, n}) : make(pre, {0});
  if (lengths) {  // of rows whose length is out of range
    torch::stable::zero_(h_n);
    torch::stable::zero_(c_n);
  }
  if (h_n.numel() == 0 || T_ == 0) return {y, aux, h_n, c_n};
  const GatedShape shape{L, T_, B, n, args.lengths(lengths, B), 0, T_, false};
  with_dtype(pre.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    const GatedForward<T> p{shape,     cell,           args.in<T>(pre), false,         In<T>{},
                            nullptr,   args.in<T>(h0), args.in<T>(c0),  args.in<T>(w), args.in<T>(bias),
                            out<T>(y), out<T>(aux),    out<T>(h_n),     out<T>(c_n)};
    Tiles<T>(L, B, p.w, w.size(0), n, G * n, true, scratch<T>(n), false).run(p, gated_kernels<T>().forward);
  });
  return {y, aux, h_n, c_n};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> backward(GatedCell cell, const OptionalTensor& gy,
                                                            const OptionalTensor& gh_n, const OptionalTensor& gc_n,
                                                            const OptionalTensor& y, const Tensor& aux, const Tensor& before,
                                                            const OptionalTensor& w, const OptionalTensor& lengths,
                                                            int64_t policy, int64_t window, double decay, bool want_lam) {
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
  Arguments args(aux);
  args.add(aux, "aux", {T_, B, kept_values(cell) * n});
  args.add(gy, "gy", {T_, B, n});
  args.add(gh_n, "gh_n", {B, n});
  args.add(gc_n, "gc_n", {B, n});
  args.add(y, "y", {T_, B, n});
  args.add(before, lstm ? "c0" : "h0", {B, n});
  args.add(weight, "w", {G * n, n});
  const int64_t L = args.L();
  Tensor delta = make(aux, {L, T_, B, 4 * n}), gh0 = make(aux, {L, B, n}), gc0 = lstm ? make(aux, {L, B, n}) : make(aux, {0});
  Tensor lam = want_lam ? make(aux, {L, T_, B, n}) : make(aux, {0});
  Tensor to_c = want_lam && lstm ? make(aux, {L, T_, B, n}) : make(aux, {0});
  if (gh0.numel() == 0 || T_ == 0) return {delta, gh0, gc0, lam, to_c};
  const GatedShape shape{L, T_, B, n, args.lengths(lengths, B), 0, T_, false};
  with_dtype(aux.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    const GatedBackward<T> p{shape,
                             cell,
                             transport,
                             window,
                             decay,
                             args.in<T>(gy),
                             args.in<T>(gh_n),
                             args.in<T>(gc_n),
                             args.in<T>(y),
                             args.in<T>(aux),
                             args.in<T>(before),
                             args.in<T>(weight),
                             out<T>(delta),
                             false,
                             4 * n,
                             nullptr,
                             out<T>(gh0),
                             out<T>(gc0),
                             out<T>(lam),
                             out<T>(to_c)};
    const In<T> matrix = transport == Transport::Full ? p.w : In<T>{nullptr, p.w.lead};
    Tiles<T>(L, B, matrix, weight ? weight->size(0) : 0, G * n, n, false, scratch<T>(n), false)
        .run(p, gated_kernels<T>().backward);
  });
  return {delta, gh0, gc0, lam, to_c};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> forward_jvp(GatedCell cell, const Tensor& du, const Tensor& dh0,
                                                       const OptionalTensor& dc0, const OptionalTensor& y, const Tensor& aux,
                                                       const Tensor& before, const Tensor& w, const OptionalTensor& lengths) {
  STD_TORCH_CHECK(du.dim() == 4, "du must have 4 dimensions (L, T, B, 4 * n)");
  STD_TORCH_CHECK(dh0.dim() == 3, "dh0 must have 3 dimensions (L, B, n)");
  const int64_t T_ = du.size(1), B = du.size(2), n = dh0.size(2), G = gates(cell), A = kept_values(cell);
  Arguments args(du);
  args.add(du, "du", {T_, B, 4 * n});
  args.add(dh0, "dh0", {B, n});
  args.add(dc0, "dc0", {B, n});
  args.add(y, "y", {T_, B, n});
  args.add(aux, "aux", {T_, B, A * n});
  args.add(before, cell == GatedCell::Lstm ? "c0" : "h0", {B, n});
  args.add(w, "w", {G * n, n});
  const int64_t L = args.L();
  Tensor dy = make(du, {L, T_, B, n}), daux = make(du, {L, T_, B, A * n});
  Tensor dh_n = make(du, {L, B, n}), dc_n = dc0 ? make(du, {L, B, n}) : make(du, {0});
  if (lengths) {  // of rows whose length is out of range
    torch::stable::zero_(dh_n);
    torch::stable::zero_(dc_n);
  }
  if (dh_n.numel() == 0 || T_ == 0) return {dy, daux, dh_n, dc_n};
  const GatedShape shape{L, T_, B, n, args.lengths(lengths, B), 0, T_, false};
  with_dtype(du.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    const GatedForwardJvp<T> p{shape,           cell,
                               args.in<T>(du),  false,
                               In<T>{},         args.in<T>(dh0),
                               args.in<T>(dc0), args.in<T>(y),
                               args.in<T>(aux), args.in<T>(before),
                               args.in<T>(w),   out<T>(dy),
                               out<T>(daux),    out<T>(dh_n),
                               out<T>(dc_n)};
    Tiles<T>(L, B, p.w, w.size(0), n, G * n, true, scratch<T>(n), false).run(p, gated_kernels<T>().forward_jvp);
  });
  return {dy, daux, dh_n, dc_n};
}

// The primal pass and its tangents, as the forward passes left them.
struct Primal {
  const OptionalTensor &y, &dy;
  const Tensor &aux, &daux, &before, &dbefore, &lam;
  const OptionalTensor& to_c;
};

std::tuple<Tensor, Tensor, Tensor> backward_jvp(GatedCell cell, const Tensor& dgy, const OptionalTensor& dgh_n,
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
  args.add(of.aux, "aux", {T_, B, A * n});
  args.add(of.daux, "daux", {T_, B, A * n});
  args.add(of.before, lstm ? "c0" : "h0", {B, n});
  args.add(of.dbefore, lstm ? "dc0" : "dh0", {B, n});
  args.add(of.lam, "lam", {T_, B, n});
  args.add(of.to_c, "to_c", {T_, B, n});
  args.add(w, "w", {G * n, n});
  const int64_t L = args.L();
  Tensor ddelta = make(dgy, {L, T_, B, 4 * n}), dgh0 = make(dgy, {L, B, n});
  Tensor dgc0 = lstm ? make(dgy, {L, B, n}) : make(dgy, {0});
  if (dgh0.numel() == 0 || T_ == 0) return {ddelta, dgh0, dgc0};
  const GatedShape shape{L, T_, B, n, args.lengths(lengths, B), 0, T_, false};
  with_dtype(dgy.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    const GatedBackwardJvp<T> p{shape,
                                cell,
                                false,
                                args.in<T>(dgy),
                                args.in<T>(dgh_n),
                                args.in<T>(dgc_n),
                                args.in<T>(of.y),
                                args.in<T>(of.dy),
                                args.in<T>(of.aux),
                                args.in<T>(of.daux),
                                args.in<T>(of.before),
                                args.in<T>(of.dbefore),
                                args.in<T>(of.lam),
                                args.in<T>(of.to_c),
                                args.in<T>(w),
                                out<T>(ddelta),
                                out<T>(dgh0),
                                out<T>(dgc0)};
    Tiles<T>(L, B, p.w, w.size(0), G * n, n, false, scratch<T>(n), false).run(p, gated_kernels<T>().backward_jvp);
  });
  return {ddelta, dgh0, dgc0};
}

std::tuple<Tensor, Tensor, Tensor> gru_forward(const Tensor& pre, const Tensor& h0, const Tensor& w, const Tensor& b_hn,
                                               const OptionalTensor& lengths) {
  auto [y, aux, h_n, none] = forward(GatedCell::Gru, pre, h0, {}, w, b_hn, lengths);
  return {y, aux, h_n};
}
std::tuple<Tensor, Tensor, Tensor> gru_backward(const OptionalTensor& gy, const OptionalTensor& gs_n, const Tensor& y,
                                                const Tensor& aux, const Tensor& h0, const OptionalTensor& w,
                                                const OptionalTensor& lengths, int64_t policy, int64_t window, double decay,
                                                bool want_lam) {
  auto [delta, gh0, none, lam, none_either] =
      backward(GatedCell::Gru, gy, gs_n, {}, y, aux, h0, w, lengths, policy, window, decay, want_lam);
  return {delta, gh0, lam};
}
std::tuple<Tensor, Tensor, Tensor> gru_forward_jvp(const Tensor& du, const Tensor& dh0, const Tensor& y, const Tensor& aux,
                                                   const Tensor& h0, const Tensor& w, const OptionalTensor& lengths) {
  auto [dy, daux, dh_n, none] = forward_jvp(GatedCell::Gru, du, dh0, {}, y, aux, h0, w, lengths);
  return {dy, daux, dh_n};
}
std::tuple<Tensor, Tensor> gru_backward_jvp(const Tensor& dgy, const OptionalTensor& dgs_n, const Tensor& dy,
                                            const Tensor& daux, const Tensor& dh0, const Tensor& y, const Tensor& aux,
                                            const Tensor& h0, const Tensor& lam, const Tensor& w,
                                            const OptionalTensor& lengths) {
  const OptionalTensor none, some_y(y), some_dy(dy);
  auto [ddelta, dgh0, no_c] =
      backward_jvp(GatedCell::Gru, dgy, dgs_n, {}, {some_y, some_dy, aux, daux, h0, dh0, lam, none}, w, lengths);
  return {ddelta, dgh0};
}
std::tuple<Tensor, Tensor, Tensor, Tensor> lstm_forward(const Tensor& pre, const Tensor& h0, const Tensor& c0, const Tensor& w,
                                                        const OptionalTensor& lengths) {
  return forward(GatedCell::Lstm, pre, h0, c0, w, {}, lengths);
}
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> lstm_backward(const OptionalTensor& gy, const OptionalTensor& gh_n,
                                                                 const OptionalTensor& gc_n, const Tensor& aux,
                                                                 const Tensor& c0, const OptionalTensor& w,
                                                                 const OptionalTensor& lengths, int64_t policy, int64_t window,
                                                                 double decay, bool want_lam) {
  return backward(GatedCell::Lstm, gy, gh_n, gc_n, {}, aux, c0, w, lengths, policy, window, decay, want_lam);
}
std::tuple<Tensor, Tensor, Tensor, Tensor> lstm_forward_jvp(const Tensor& du, const Tensor& dh0, const Tensor& dc0,
                                                            const Tensor& aux, const Tensor& c0, const Tensor& w,
                                                            const OptionalTensor& lengths) {
  return forward_jvp(GatedCell::Lstm, du, dh0, dc0, {}, aux, c0, w, lengths);
}
std::tuple<Tensor, Tensor, Tensor> lstm_backward_jvp(const Tensor& dgy, const OptionalTensor& dgh_n,
                                                     const OptionalTensor& dgc_n, const Tensor& daux, const Tensor& dc0,
                                                     const Tensor& aux, const Tensor& c0, const Tensor& lam, const Tensor& to_c,
                                                     const Tensor& w, const OptionalTensor& lengths) {
  const OptionalTensor none, some(to_c);
  return backward_jvp(GatedCell::Lstm, dgy, dgh_n, dgc_n, {none, none, aux, daux, c0, dc0, lam, some}, w, lengths);
}

}  // namespace
}  // namespace rx

STABLE_TORCH_LIBRARY_FRAGMENT(rtrl_ext, m) {
  m.def("gru_forward(Tensor pre, Tensor h0, Tensor w, Tensor b_hn, Tensor? lengths) -> (Tensor, Tensor, Tensor)");
  m.def(
      "gru_backward(Tensor? gy, Tensor? gs_n, Tensor y, Tensor aux, Tensor h0, Tensor? w, Tensor? lengths, int policy, "
      "int window, float decay, bool want_lam) -> (Tensor, Tensor, Tensor)");
  m.def(
      "gru_forward_jvp(Tensor du, Tensor dh0, Tensor y, Tensor aux, Tensor h0, Tensor w, Tensor? lengths) "
      "-> (Tensor, Tensor, Tensor)");
  m.def(
      "gru_backward_jvp(Tensor dgy, Tensor? dgs_n, Tensor dy, Tensor daux, Tensor dh0, Tensor y, Tensor aux, Tensor h0, "
      "Tensor lam, Tensor w, Tensor? lengths) -> (Tensor, Tensor)");
  m.def("lstm_forward(Tensor pre, Tensor h0, Tensor c0, Tensor w, Tensor? lengths) -> (Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "lstm_backward(Tensor? gy, Tensor? gh_n, Tensor? gc_n, Tensor aux, Tensor c0, Tensor? w, Tensor? lengths, int policy, "
      "int window, float decay, bool want_lam) -> (Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "lstm_forward_jvp(Tensor du, Tensor dh0, Tensor dc0, Tensor aux, Tensor c0, Tensor w, Tensor? lengths) "
      "-> (Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "lstm_backward_jvp(Tensor dgy, Tensor? dgh_n, Tensor? dgc_n, Tensor daux, Tensor dc0, Tensor aux, Tensor c0, Tensor lam, "
      "Tensor to_c, Tensor w, Tensor? lengths) -> (Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(rtrl_ext, CPU, m) {
  m.impl("gru_forward", TORCH_BOX(&rx::gru_forward));
  m.impl("gru_backward", TORCH_BOX(&rx::gru_backward));
  m.impl("gru_forward_jvp", TORCH_BOX(&rx::gru_forward_jvp));
  m.impl("gru_backward_jvp", TORCH_BOX(&rx::gru_backward_jvp));
  m.impl("lstm_forward", TORCH_BOX(&rx::lstm_forward));
  m.impl("lstm_backward", TORCH_BOX(&rx::lstm_backward));
  m.impl("lstm_forward_jvp", TORCH_BOX(&rx::lstm_forward_jvp));
  m.impl("lstm_backward_jvp", TORCH_BOX(&rx::lstm_backward_jvp));
}
