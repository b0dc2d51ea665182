// A whole ALIF or LIF layer as PyTorch ops: the input product, the recurrence, and all gradients (layer_run.h).
#include "ops/alif_layer.h"

namespace rx {
namespace {

// (z, psi, v, a, v_n, a_n, count_n)
using Seven = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

Seven alif_layer_forward(const Tensor& x_, const Tensor& w_ih_, const OptionalTensor& b_ih_, const OptionalTensor& b_hh_,
                         const OptionalTensor& drive_, const OptionalTensor& z0_, const OptionalTensor& v0_,
                         const OptionalTensor& a0_, const OptionalTensor& count0_, const Tensor& w_, const Tensor& alpha_,
                         const OptionalTensor& rho_, const OptionalTensor& beta_, const OptionalTensor& lengths_, double v_th,
                         double gamma, bool scaling, int64_t reset, int64_t surrogate, int64_t refractory, bool want_states) {
  const AlifLayerCall s(x_, w_ih_, alpha_, rho_, beta_, lengths_, v_th, scaling, reset);
  const int64_t n = s.n;
  expect(surrogate >= 0 && surrogate <= 2, "surrogate must be 0 (triangular), 1 (fast sigmoid) or 2 (arctan)");
  expect(refractory >= 0, "refractory must be at least 0");
  expect(!a0_ || s.adapts, "a0 is given without beta, that is, for a cell without adaptation");
  s.check(w_, "w", {n, n});
  s.check(b_ih_, "b_ih", {n});
  s.check(b_hh_, "b_hh", {n});
  s.check(drive_, "drive", {s.T, s.B, n});
  s.check(z0_, "z0", {s.B, n});
  s.check(v0_, "v0", {s.B, n});
  s.check(a0_, "a0", {s.B, n});
  s.check(count0_, "count0", {s.B, n});
  const Tensor x = dense(x_), w = dense(w_), w_ih = dense(w_ih_), alpha = dense(alpha_);
  const OptionalTensor drive = dense(drive_), z0 = dense(z0_), v0 = dense(v0_), a0 = dense(a0_), count0 = dense(count0_),
                       rho = dense(rho_), beta = dense(beta_), b_ih = dense(b_ih_), b_hh = dense(b_hh_),
                       lengths = dense(lengths_);
  const bool keep_v = want_states || s.reset == Reset::Zero, keep_a = want_states && s.adapts;
  Tensor z = make(x, {s.T, s.B, n}), psi = make(x, {s.T, s.B, n});
  Tensor v = make_if(keep_v, x, {s.T, s.B, n}), a = make_if(keep_a, x, {s.T, s.B, n});
  Tensor v_n = zeros_like_size(x, {s.B, n}), a_n = zeros_if(s.adapts, x, {s.B, n}),
         count_n = zeros_if(refractory > 0, x, {s.B, n});
  if (v_n.numel() == 0 || s.T == 0) return {z, psi, v, a, v_n, a_n, count_n};
  with_dtype(s.dtype, [&](auto zero) {
    using T = decltype(zero);
    Scratch<T> bias(n);
    const T *b1 = whole<T>(b_ih).p, *b2 = whole<T>(b_hh).p;
    for (int64_t i = 0; i < n; ++i) bias.get()[i] = (b1 ? b1[i] : T(0)) + (b2 ? b2[i] : T(0));
    AlifForward<T> core{};
    core.s = s.shape(lengths);
    core.gamma = gamma;
    core.surrogate = static_cast<Surrogate>(surrogate);
    core.refractory = refractory;
    core.pre = whole<T>(psi);
    core.z0 = whole<T>(z0);
    core.v0 = whole<T>(v0);
    core.a0 = whole<T>(a0);
    core.count0 = refractory > 0 ? whole<T>(count0) : In<T>{};
    core.w = whole<T>(w);
    core.alpha = whole<T>(alpha);
    core.rho = whole<T>(rho);
    core.beta = whole<T>(beta);
    core.z = out<T>(z);
    core.psi = out<T>(psi);
    core.v = out<T>(v);
    core.a = out<T>(a);
    core.v_n = out<T>(v_n);
    core.a_n = out<T>(a_n);
    core.count_n = out<T>(count_n);
    core.drive = whole<T>(drive);
    core.bias = b1 || b2 ? bias.get() : nullptr;
    const AlifLayerCell<T> layer(n, 2 + keep_v + keep_a);
    LayerForward<T, AlifLayerCell<T>>{layer, core, out<T>(psi), whole<T>(x).p, s.m, whole<T>(w_ih).p}.run();
  });
  return {z, psi, v, a, v_n, a_n, count_n};
}

// (dx, dw_ih, dw, db, delta, gz0, gv0, ga0, dunits)
using Gradients = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

Gradients alif_layer_backward(const OptionalTensor& gz_, const OptionalTensor& gv_n_, const OptionalTensor& ga_n_,
                              const Tensor& x_, const Tensor& z_, const Tensor& psi_, const Tensor& v_, const Tensor& a_,
                              const OptionalTensor& z0_, const OptionalTensor& v0_, const OptionalTensor& a0_,
                              const Tensor& w_ih_, const OptionalTensor& w_, const Tensor& alpha_, const OptionalTensor& rho_,
                              const OptionalTensor& beta_, const OptionalTensor& lengths_, double v_th, bool scaling,
                              int64_t reset, int64_t policy, double mu, int64_t window, double decay, int64_t needs) {
  const AlifLayerCall s(x_, w_ih_, alpha_, rho_, beta_, lengths_, v_th, scaling, reset);
  const int64_t n = s.n;
  expect(policy >= 0 && policy <= 4, "policy must be 0 to 4 (full, local, diagonal, hop, state)");
  expect(policy == 1 || w_, "w is needed by every policy but 1");
  expect(window >= 0 && (window == 0 || policy <= 1), "window must be at least 0, and 0 with policies above 1");
  expect(decay == 0 || policy == 1, "decay must be 0 with every policy but 1");
  expect((!ga_n_ && !a0_) || s.adapts, "ga_n or a0 is given without beta, that is, for a cell without adaptation");
  const bool units = needs & kNeedUnits, voltages = units || s.reset == Reset::Zero, adaptations = units && s.adapts;
  const OptionalTensor none;
  s.check(z_, "z", {s.T, s.B, n});
  s.check(psi_, "psi", {s.T, s.B, n});
  s.check(voltages ? OptionalTensor(v_) : none, "v", {s.T, s.B, n});
  s.check(adaptations ? OptionalTensor(a_) : none, "a", {s.T, s.B, n});
  s.check(gz_, "gz", {s.T, s.B, n});
  s.check(gv_n_, "gv_n", {s.B, n});
  s.check(ga_n_, "ga_n", {s.B, n});
  s.check(z0_, "z0", {s.B, n});
  s.check(v0_, "v0", {s.B, n});
  s.check(a0_, "a0", {s.B, n});
  s.check(w_, "w", {n, n});
  const Tensor x = dense(x_), z = dense(z_), psi = dense(psi_), w_ih = dense(w_ih_), alpha = dense(alpha_);
  const OptionalTensor gz = dense(gz_), gv_n = dense(gv_n_), ga_n = dense(ga_n_), z0 = dense(z0_), v0 = dense(v0_),
                       a0 = dense(a0_), rho = dense(rho_), beta = dense(beta_), lengths = dense(lengths_),
                       v = voltages ? OptionalTensor(dense(v_)) : none, a = adaptations ? OptionalTensor(dense(a_)) : none,
                       w = policy == 1 ? none : dense(w_);
  Tensor dx = make_if(needs & kNeedX, x, {s.T, s.B, s.m});
  Tensor du = make_if(needs & kNeedInputWeight, x, {n, s.m}), dw = make_if(needs & kNeedWeight, x, {n, n});
  Tensor db = make_if(needs & kNeedBias, x, {n}), delta = make_if(needs & kNeedDelta, x, {s.T, s.B, n});
  const bool initial = needs & kNeedInitial;
  Tensor gz0 = make_if(initial, x, {s.B, n}), gv0 = make_if(initial, x, {s.B, n}),
         ga0 = make_if(initial && s.adapts, x, {s.B, n});
  Tensor dunits = make_if(units, x, {3, n});
  const auto results = [&]() -> Gradients { return {dx, du, dw, db, delta, gz0, gv0, ga0, dunits}; };
  if (s.B * n == 0 || s.T == 0) {
    for (Tensor* empty : {&dx, &du, &dw, &db, &gz0, &gv0, &ga0, &dunits}) torch::stable::zero_(*empty);
    return results();
  }
  with_dtype(s.dtype, [&](auto zero) {
    using T = decltype(zero);
    const AlifLayerCell<T> layer(n, 2 + voltages + adaptations);
    AlifBackward<T> core{};
    core.s = s.shape(lengths);
    core.transport = static_cast<Transport>(policy);
    core.mu = mu;
    core.window = window;
    core.decay = decay;
    core.gz = whole<T>(gz);
    core.gv_n = whole<T>(gv_n);
    core.ga_n = whole<T>(ga_n);
    core.z = whole<T>(z);
    core.psi = whole<T>(psi);
    core.v = whole<T>(v);
    core.z0 = whole<T>(z0);
    core.v0 = whole<T>(v0);
    core.w = whole<T>(w);
    core.alpha = whole<T>(alpha);
    core.rho = whole<T>(rho);
    core.beta = whole<T>(beta);
    core.delta = out<T>(delta);
    core.gz0 = out<T>(gz0);
    core.gv0 = out<T>(gv0);
    core.ga0 = out<T>(ga0);
    core.delta_row = layer.part_row();
    core.a = whole<T>(a);
    core.a0 = whole<T>(a0);
    LayerBackward<T, AlifLayerCell<T>>({layer, core, whole<T>(x).p, whole<T>(z0).p, s.m, whole<T>(w_ih).p, out<T>(dx),
                                        out<T>(du), out<T>(dw), out<T>(db), nullptr, out<T>(dunits)})
        .run();
  });
  return results();
}

}  // namespace
}  // namespace rx

STABLE_TORCH_LIBRARY_FRAGMENT(rtrl_ext, m) {
  m.def(
      "alif_layer_forward(Tensor x, Tensor w_ih, Tensor? b_ih, Tensor? b_hh, Tensor? drive, Tensor? z0, Tensor? v0, Tensor? "
      "a0, "
      "Tensor? count0, Tensor w, Tensor alpha, Tensor? rho, Tensor? beta, Tensor? lengths, float v_th, float gamma, "
      "bool scaling, int reset, int surrogate, int refractory, bool want_states) "
      "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "alif_layer_backward(Tensor? gz, Tensor? gv_n, Tensor? ga_n, Tensor x, Tensor z, Tensor psi, Tensor v, Tensor a, "
      "Tensor? z0, Tensor? v0, Tensor? a0, Tensor w_ih, Tensor? w, Tensor alpha, Tensor? rho, Tensor? beta, Tensor? lengths, "
      "float v_th, bool scaling, int reset, int policy, float mu, int window, float decay, int needs) "
      "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(rtrl_ext, CPU, m) {
  m.impl("alif_layer_forward", TORCH_BOX(&rx::alif_layer_forward));
  m.impl("alif_layer_backward", TORCH_BOX(&rx::alif_layer_backward));
}
