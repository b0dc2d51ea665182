// A whole GRU or LSTM layer as PyTorch ops: the input product, the recurrence, and all gradients (layer_run.h).
#include "ops/gated_layer.h"

namespace rx {
namespace {

std::tuple<Tensor, Tensor, Tensor, Tensor> layer_forward(int64_t cell, const Tensor& x_, const Tensor& w_ih_,
                                                         const OptionalTensor& b_ih_, const OptionalTensor& b_hh_,
                                                         const OptionalTensor& drive_, const OptionalTensor& h0_,
                                                         const OptionalTensor& c0_, const Tensor& w_,
                                                         const OptionalTensor& lengths_) {
  const GatedSizes s(cell, x_, w_ih_, lengths_);
  const int64_t n = s.n, G = s.G;
  s.check(w_, "w", {G * n, n});
  s.check(b_ih_, "b_ih", {G * n});
  s.check(b_hh_, "b_hh", {G * n});
  s.check(drive_, "drive", {s.T, s.B, G * n});
  s.check(h0_, "h0", {s.B, n});
  s.check(c0_, "c0", {s.B, n});
  const Tensor x = dense(x_), w = dense(w_), w_ih = dense(w_ih_);
  const OptionalTensor drive = dense(drive_), h0 = dense(h0_), c0 = dense(c0_), b_ih = dense(b_ih_), b_hh = dense(b_hh_),
                       lengths = dense(lengths_);
  Tensor y = make(x, {s.T, s.B, n}), aux = make(x, {s.T, s.B, s.A * n});
  Tensor h_n = zeros_like_size(x, {s.B, n}), c_n = zeros_if(s.lstm, x, {s.B, n});
  if (h_n.numel() == 0 || s.T == 0) return {y, aux, h_n, c_n};
  with_dtype(s.dtype, [&](auto zero) {
    using T = decltype(zero);
    // b_hh of GRU's third gate is inside the reset; all else is added before the gates.
    Scratch<T> bias(G * n + n);
    const T *b1 = whole<T>(b_ih).p, *b2 = whole<T>(b_hh).p;
    const int64_t outside = s.lstm ? 4 * n : 2 * n;
    for (int64_t i = 0; i < G * n; ++i) bias.get()[i] = (b1 ? b1[i] : T(0)) + (b2 && i < outside ? b2[i] : T(0));
    GatedForward<T> core{};
    core.s = s.shape(1, lengths);
    core.cell = s.cell;
    core.pre = whole<T>(aux);
    core.in_place = true;
    core.drive = whole<T>(drive);
    core.pre_bias = b1 || b2 ? bias.get() : nullptr;
    core.h0 = whole<T>(h0);
    core.c0 = s.lstm ? whole<T>(c0) : In<T>{};
    core.w = whole<T>(w);
    core.bias = {b2 && !s.lstm ? b2 + 2 * n : nullptr, false};
    core.y = out<T>(y);
    core.aux = out<T>(aux);
    core.h_n = out<T>(h_n);
    core.c_n = s.lstm ? out<T>(c_n) : nullptr;
    LayerForward<T, GatedLayerCell<T>>{{s.cell, n}, core, out<T>(aux), whole<T>(x).p, s.m, whole<T>(w_ih).p}.run();
  });
  return {y, aux, h_n, c_n};
}

// (dx, dw_ih, dw, db_ih, db_hh, delta, gh0, gc0, lam, to_c)
using Gradients = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

Gradients layer_backward(int64_t cell, const OptionalTensor& gy_, const OptionalTensor& gh_n_, const OptionalTensor& gc_n_,
                         const Tensor& x_, const Tensor& y_, const Tensor& aux_, const OptionalTensor& h0_,
                         const OptionalTensor& c0_, const Tensor& w_ih_, const OptionalTensor& w_,
                         const OptionalTensor& lengths_, int64_t policy, int64_t window, double decay, int64_t needs,
                         bool want_lam) {
  const GatedSizes s(cell, x_, w_ih_, lengths_);
  const int64_t n = s.n, G = s.G;
  expect(policy >= 0 && policy <= 2, "policy must be 0 (full), 1 (local) or 2 (diagonal)");
  expect(policy == 1 || w_, "w is needed by every policy but 1");
  expect(window >= 0 && (window == 0 || policy != 2), "window must be at least 0, and 0 with policy 2");
  s.check(y_, "y", {s.T, s.B, n});
  s.check(aux_, "aux", {s.T, s.B, s.A * n});
  s.check(gy_, "gy", {s.T, s.B, n});
  s.check(gh_n_, "gh_n", {s.B, n});
  s.check(gc_n_, "gc_n", {s.B, n});
  s.check(h0_, "h0", {s.B, n});
  s.check(c0_, "c0", {s.B, n});
  s.check(w_, "w", {G * n, n});
  const Tensor x = dense(x_), y = dense(y_), aux = dense(aux_), w_ih = dense(w_ih_);
  const OptionalTensor gy = dense(gy_), gh_n = dense(gh_n_), gc_n = dense(gc_n_), h0 = dense(h0_), c0 = dense(c0_),
                       lengths = dense(lengths_), w = policy == 1 ? OptionalTensor() : dense(w_);
  Tensor dx = make_if(needs & kNeedX, x, {s.T, s.B, s.m});
  Tensor du = make_if(needs & kNeedInputWeight, x, {G * n, s.m}), dw = make_if(needs & kNeedWeight, x, {G * n, n});
  Tensor db_ih = make_if(needs & kNeedBias, x, {G * n}), db_hh = make_if(needs & kNeedBias, x, {G * n});
  Tensor delta = make_if(needs & kNeedDelta, x, {s.T, s.B, 4 * n});
  const bool initial = needs & kNeedInitial;
  Tensor gh0 = make_if(initial, x, {s.B, n}), gc0 = make_if(initial && s.lstm, x, {s.B, n});
  Tensor lam = make_if(want_lam, x, {s.T, s.B, n}), to_c = make_if(want_lam && s.lstm, x, {s.T, s.B, n});
  const auto results = [&]() -> Gradients { return {dx, du, dw, db_ih, db_hh, delta, gh0, gc0, lam, to_c}; };
  if (s.B * n == 0 || s.T == 0) {
    for (Tensor* none : {&dx, &du, &dw, &db_ih, &db_hh, &gh0, &gc0}) torch::stable::zero_(*none);
    return results();
  }
  with_dtype(s.dtype, [&](auto zero) {
    using T = decltype(zero);
    const GatedLayerCell<T> layer(s.cell, n);
    GatedBackward<T> core{};
    core.s = s.shape(1, lengths);
    core.cell = s.cell;
    core.transport = static_cast<Transport>(policy);
    core.window = window;
    core.decay = decay;
    core.gy = whole<T>(gy);
    core.gh_n = whole<T>(gh_n);
    core.gc_n = s.lstm ? whole<T>(gc_n) : In<T>{};
    core.y = whole<T>(y);
    core.aux = whole<T>(aux);
    core.before = whole<T>(s.lstm ? c0 : h0);
    core.w = whole<T>(w);
    core.delta = out<T>(delta);
    core.delta_row = layer.part_row();
    core.gh0 = out<T>(gh0);
    core.gc0 = out<T>(gc0);
    core.lam = out<T>(lam);
    core.to_c = out<T>(to_c);
    LayerBackward<T, GatedLayerCell<T>>({layer, core, whole<T>(x).p, whole<T>(h0).p, s.m, whole<T>(w_ih).p, out<T>(dx),
                                         out<T>(du), out<T>(dw), out<T>(db_ih), out<T>(db_hh)})
        .run();
  });
  return results();
}

}  // namespace
}  // namespace rx

STABLE_TORCH_LIBRARY_FRAGMENT(rtrl_ext, m) {
  m.def(
      "gated_layer_forward(int cell, Tensor x, Tensor w_ih, Tensor? b_ih, Tensor? b_hh, Tensor? drive, Tensor? h0, Tensor? c0, "
      "Tensor w, Tensor? lengths) -> (Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "gated_layer_backward(int cell, Tensor? gy, Tensor? gh_n, Tensor? gc_n, Tensor x, Tensor y, Tensor aux, Tensor? h0, "
      "Tensor? c0, Tensor w_ih, Tensor? w, Tensor? lengths, int policy, int window, float decay, int needs, bool want_lam) "
      "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(rtrl_ext, CPU, m) {
  m.impl("gated_layer_forward", TORCH_BOX(&rx::layer_forward));
  m.impl("gated_layer_backward", TORCH_BOX(&rx::layer_backward));
}
