// A whole LeakyRNN layer as PyTorch ops: the input product, the recurrence, and all gradients (layer_run.h).
#include "ops/leaky_layer.h"
#include "ops/leaky_layer_run.h"

namespace rx {
namespace {

std::tuple<Tensor, Tensor, Tensor> layer_forward(const Tensor& x_, const Tensor& w_ih, const OptionalTensor& bias_ih,
                                                 const OptionalTensor& bias_hh, const OptionalTensor& drive_,
                                                 const OptionalTensor& y0_, const OptionalTensor& s0_, const Tensor& w_,
                                                 const Tensor& leak_, const OptionalTensor& lengths_, int64_t form, int64_t act,
                                                 bool unit_leak) {
  check_layer(x_, w_, leak_, lengths_);
  const ScalarType dtype = x_.scalar_type();
  const int64_t T_ = x_.size(0), B = x_.size(1), m = x_.size(2), n = w_.size(0);
  check_like(w_ih, "w_ih", dtype, {n, m});
  check_like(w_, "w", dtype, {n, n});
  check_like(leak_, "leak", dtype, {n});
  check_like(bias_ih, "bias_ih", dtype, {n});
  check_like(bias_hh, "bias_hh", dtype, {n});
  check_like(drive_, "drive", dtype, {T_, B, n});
  check_like(y0_, "y0", dtype, {B, n});
  check_like(s0_, "s0", dtype, {B, n});
  const Tensor x = dense(x_), w = dense(w_), leak = dense(leak_);
  const OptionalTensor drive = dense(drive_), y0 = dense(y0_), s0 = dense(s0_), lengths = dense(lengths_);
  Tensor y = make(x, {T_, B, n}), aux = unit_leak ? make(x, {0}) : make(x, {T_, B, n}), s_n = make(x, {B, n});
  if (s_n.numel() == 0 || T_ == 0) return {y, aux, s_n};
  LeakyShape shape = leaky_shape(1, T_, B, n, form, act, unit_leak);
  shape.lengths = pointer(lengths);
  const Tensor& pre = unit_leak ? y : aux;
  const Tensor u = dense(w_ih);
  with_dtype(dtype, [&](auto zero) {
    using T = decltype(zero);
    Scratch<T> bias(n);
    const OptionalTensor b1 = dense(bias_ih), b2 = dense(bias_hh);
    for (int64_t i = 0; i < n; ++i) {
      bias.get()[i] = (b1 ? static_cast<const T*>(b1->const_data_ptr())[i] : T(0)) +
                      (b2 ? static_cast<const T*>(b2->const_data_ptr())[i] : T(0));
    }
    const LeakyForward<T> core{shape,       whole<T>(pre),  whole<T>(y0),    whole<T>(s0),
                               whole<T>(w), whole<T>(leak), whole<T>(drive), b1 || b2 ? bias.get() : nullptr,
                               out<T>(y),   out<T>(aux),    out<T>(s_n)};
    LayerForward<T, LeakyCell<T>>{{n, !unit_leak}, core, out<T>(pre), whole<T>(x).p, m, whole<T>(u).p}.run();
  });
  return {y, aux, s_n};
}

// (dx, dw_ih, dw, dbias, delta, gy0, gs0, lam)
using Gradients = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

Gradients layer_backward(const OptionalTensor& gy_, const OptionalTensor& gs_n_, const Tensor& x_, const Tensor& y_,
                         const Tensor& aux_, const OptionalTensor& y0_, const Tensor& w_ih_, const OptionalTensor& transport_,
                         const Tensor& leak_, const OptionalTensor& lengths_, int64_t form, int64_t act, bool unit_leak,
                         int64_t policy, double mu, int64_t window, double decay, int64_t needs, bool want_lam) {
  expect(policy >= 0 && policy <= 4 && window >= 0, "policy must be 0 to 4 and window at least 0");
  expect(policy == 1 || transport_, "transport is needed by every policy but 1");
  expect(y_.dim() == 3 && x_.dim() == 3 && leak_.dim() == 1, "x must be (T, B, m), y (T, B, n), leak (n,)");
  const ScalarType dtype = y_.scalar_type();
  const int64_t T_ = y_.size(0), B = y_.size(1), n = y_.size(2), m = x_.size(2);
  check_like(x_, "x", dtype, {T_, B, m});
  check_like(w_ih_, "w_ih", dtype, {n, m});
  check_like(leak_, "leak", dtype, {n});
  if (!unit_leak) check_like(aux_, "aux", dtype, {T_, B, n});
  check_like(gy_, "gy", dtype, {T_, B, n});
  check_like(gs_n_, "gs_n", dtype, {B, n});
  check_like(y0_, "y0", dtype, {B, n});
  check_like(transport_, "transport", dtype, {n, n});
  check_lengths(lengths_, B);
  const Tensor x = dense(x_), y = dense(y_), aux = dense(aux_), leak = dense(leak_);
  const OptionalTensor gy = dense(gy_), gs_n = dense(gs_n_), y0 = dense(y0_), lengths = dense(lengths_);
  const OptionalTensor transport = policy == 1 ? OptionalTensor() : dense(transport_);
  Tensor dx = make_if(needs & kNeedX, x, {T_, B, m});
  Tensor du = make_if(needs & kNeedInputWeight, x, {n, m});
  Tensor dw = make_if(needs & kNeedWeight, x, {n, n});
  Tensor db = make_if(needs & kNeedBias, x, {n});
  Tensor delta = make_if(needs & kNeedDelta, x, {T_, B, n});
  Tensor gy0 = make_if(needs & kNeedInitial, x, {B, n}), gs0 = make_if(needs & kNeedInitial, x, {B, n});
  Tensor lam = make_if(want_lam, x, {T_, B, n});
  if (B * n == 0 || T_ == 0) {
    for (Tensor* empty : {&dx, &du, &dw, &db}) torch::stable::zero_(*empty);
    return {dx, du, dw, db, delta, gy0, gs0, lam};
  }
  LeakyShape shape = leaky_shape(1, T_, B, n, form, act, unit_leak);
  shape.lengths = pointer(lengths);
  const Tensor w_ih = dense(w_ih_);
  with_dtype(dtype, [&](auto zero) {
    using T = decltype(zero);
    const LeakyBackward<T> core{shape,
                                static_cast<Transport>(policy),
                                mu,
                                window,
                                decay,
                                whole<T>(gy),
                                In<T>{},
                                whole<T>(gs_n),
                                whole<T>(y),
                                unit_leak ? In<T>{} : whole<T>(aux),
                                whole<T>(transport),
                                whole<T>(leak),
                                out<T>(delta),
                                false,
                                out<T>(gy0),
                                out<T>(gs0),
                                out<T>(lam),
                                nullptr};
    LayerBackward<T, LeakyCell<T>>({{n, !unit_leak},
                                    core,
                                    whole<T>(x).p,
                                    whole<T>(y0).p,
                                    m,
                                    whole<T>(w_ih).p,
                                    out<T>(dx),
                                    out<T>(du),
                                    out<T>(dw),
                                    out<T>(db),
                                    nullptr})
        .run();
  });
  return {dx, du, dw, db, delta, gy0, gs0, lam};
}

}  // namespace
}  // namespace rx

STABLE_TORCH_LIBRARY_FRAGMENT(rtrl_ext, m) {
  m.def(
      "leaky_layer_forward(Tensor x, Tensor w_ih, Tensor? bias_ih, Tensor? bias_hh, Tensor? drive, Tensor? y0, Tensor? s0, "
      "Tensor w, Tensor leak, Tensor? lengths, int form, int act, bool unit_leak) -> (Tensor, Tensor, Tensor)");
  m.def(
      "leaky_layer_backward(Tensor? gy, Tensor? gs_n, Tensor x, Tensor y, Tensor aux, Tensor? y0, Tensor w_ih, "
      "Tensor? transport, Tensor leak, Tensor? lengths, int form, int act, bool unit_leak, int policy, float mu, int window, "
      "float decay, int needs, bool want_lam) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(rtrl_ext, CPU, m) {
  m.impl("leaky_layer_forward", TORCH_BOX(&rx::layer_forward));
  m.impl("leaky_layer_backward", TORCH_BOX(&rx::layer_backward));
}
