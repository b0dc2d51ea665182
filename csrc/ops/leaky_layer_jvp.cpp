// Tangents of a whole LeakyRNN layer in k directions as PyTorch ops, piece by piece of the time axis like the layer itself.
// Tangents have a leading dimension k, primal tensors have none.
#include "ops/layer_jvp.h"
#include "ops/leaky_layer.h"

namespace rx {
namespace {

std::tuple<Tensor, Tensor, Tensor, Tensor> layer_forward_jvp(int64_t k, const OptionalTensor& dx_, const OptionalTensor& dw_ih_,
                                                             const OptionalTensor& dbias_, const OptionalTensor& dy0_,
                                                             const OptionalTensor& ds0_, const OptionalTensor& dw_,
                                                             const OptionalTensor& dleak_, const Tensor& x_, const Tensor& w_ih,
                                                             const Tensor& y_, const Tensor& aux_, const OptionalTensor& y0_,
                                                             const OptionalTensor& s0_, const Tensor& w_, const Tensor& leak_,
                                                             const OptionalTensor& lengths_, int64_t form, int64_t act,
                                                             bool unit_leak, bool want_du, const OptionalTensor& lam_) {
  check_layer(x_, w_, leak_, lengths_);
  const ScalarType dtype = x_.scalar_type();
  const int64_t T_ = x_.size(0), B = x_.size(1), m = x_.size(2), n = w_.size(0);
  expect(k >= 0, "k must not be negative");
  check_like(dx_, "dx", dtype, {k, T_, B, m});
  check_like(dw_ih_, "dw_ih", dtype, {k, n, m});
  check_like(dbias_, "dbias", dtype, {k, n});
  check_like(dy0_, "dy0", dtype, {k, B, n});
  check_like(ds0_, "ds0", dtype, {k, B, n});
  check_like(dw_, "dw", dtype, {k, n, n});
  check_like(dleak_, "dleak", dtype, {k, n});
  check_like(w_ih, "w_ih", dtype, {n, m});
  check_like(y_, "y", dtype, {T_, B, n});
  if (!unit_leak) check_like(aux_, "aux", dtype, {T_, B, n});
  check_like(y0_, "y0", dtype, {B, n});
  check_like(s0_, "s0", dtype, {B, n});
  check_like(w_, "w", dtype, {n, n});
  check_like(leak_, "leak", dtype, {n});
  const Tensor x = dense(x_), y = dense(y_), aux = dense(aux_), w = dense(w_), leak = dense(leak_);
  const OptionalTensor y0 = dense(y0_), s0 = dense(s0_), lengths = dense(lengths_), dbias = dense(dbias_), dy0 = dense(dy0_),
                       ds0 = dense(ds0_), dleak = dense(dleak_), dw = dense(dw_), dw_ih = dense(dw_ih_), dx = dense(dx_);
  Tensor dy = make(x, {k, T_, B, n}), daux = unit_leak ? make(x, {0}) : make(x, {k, T_, B, n}), ds_n = make(x, {k, B, n});
  check_like(lam_, "lam", dtype, {T_, B, n});
  expect(!(lam_ && want_du), "the last result is du or, with lam, the gradient of phi");
  const OptionalTensor lam = dense(lam_);
  Tensor last = want_du || lam ? make(x, {k, T_, B, n}) : make(x, {0});
  if (ds_n.numel() == 0 || T_ == 0) return {dy, daux, ds_n, last};
  LeakyShape shape = leaky_shape(k, T_, B, n, form, act, unit_leak);
  shape.lengths = pointer(lengths);
  const Tensor pre = unit_leak ? dy : daux;  // written in place
  const Tensor u = Rows(dense(w_ih), m).transposed(0, n);
  const Rows pre2(pre, n), x2(x, m), y2(y, n), dx2(dx ? *dx : x, m), du2(dw_ih ? *dw_ih : x, m), dw2(dw ? *dw : x, n);
  with_dtype(dtype, [&](auto zero) {
    using T = decltype(zero);
    LeakyForwardJvp<T> p{shape,
                         directions<T>(pre),
                         directions<T>(dy0),
                         directions<T>(ds0),
                         directions<T>(dleak),
                         directions<T>(dbias),
                         whole<T>(y),
                         unit_leak ? In<T>{} : whole<T>(aux),
                         whole<T>(s0),
                         whole<T>(w),
                         whole<T>(leak),
                         out<T>(dy),
                         out<T>(daux),
                         out<T>(ds_n),
                         want_du ? out<T>(last) : nullptr,
                         whole<T>(lam),
                         lam ? out<T>(last) : nullptr};
    const int64_t group = group_size(k, B), piece = piece_steps(B, group * n * (unit_leak ? 1 : 2) + 2 * n + m, sizeof(T));
    LeakyForwardJvp<T> q = p;
    q.s.L = group;
    Tiles<T> tiles(q.s, p.w, 1, true, piece < T_);
    for (int64_t i0 = 0; i0 < k; i0 += group) {
      const int64_t sequence = i0 * T_ * B * n, batch = i0 * B * n;
      q.dpre = from_direction(p.dpre, sequence);
      q.dy0 = from_direction(p.dy0, batch);
      q.ds0 = from_direction(p.ds0, batch);
      q.dleak = from_direction(p.dleak, i0 * n);
      q.dbias = from_direction(p.dbias, i0 * n);
      q.dy = from_direction(p.dy, sequence);
      q.daux = from_direction(p.daux, sequence);
      q.ds_n = from_direction(p.ds_n, batch);
      q.du = from_direction(p.du, sequence);
      q.bend = from_direction(p.bend, sequence);
      for (int64_t t = 0; t < T_; t += piece) {
        const int64_t steps = std::min(piece, T_ - t), rows = steps * B, skip = t == 0 ? B : 0;  // the first step sees y0
        for (int64_t i = i0; i < i0 + group; ++i) {
          const int64_t at = (i * T_ + t) * B;
          Sum sum(pre2(at, rows));
          if (dx) sum.add(dx2(at, rows), u);
          if (dw_ih) sum.add(x2(t * B, rows), du2.transposed(i * n, n));
          if (!dw) {
            sum.finish();
            continue;
          }
          const Tensor v = dw2.transposed(i * n, n);
          if (skip) {
            sum.finish();
            if (y0) add_product(pre2(at, B), *y0, v);
            if (rows > skip) add_product(pre2(at + skip, rows - skip), y2(0, rows - skip), v);
          } else {
            sum.add(y2(t * B - B, rows), v);
          }
        }
        q.s.begin = t;
        q.s.end = t + steps;
        q.s.resume = t > 0;
        tiles.run(q, leaky_kernels<T>().forward_jvp);
      }
    }
  });
  return {dy, daux, ds_n, last};
}

// (ddx, ddw_ih, ddw, ddbias, ddelta, dgy0, dgs0, dlam)
using Tangents = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

Tangents layer_backward_jvp(int64_t k, const OptionalTensor& dgy_, const OptionalTensor& dgs_n_, const OptionalTensor& dx_,
                            const OptionalTensor& dw_ih_, const Tensor& dy_, const Tensor& daux_, const OptionalTensor& dy0_,
                            const OptionalTensor& dw_, const OptionalTensor& dleak_, const Tensor& x_, const Tensor& w_ih_,
                            const Tensor& y_, const Tensor& aux_, const OptionalTensor& y0_, const Tensor& lam_,
                            const Tensor& delta_, const Tensor& w_, const Tensor& leak_, const OptionalTensor& lengths_,
                            int64_t form, int64_t act, bool unit_leak, int64_t needs, bool want_dlam) {
  check_layer(x_, w_, leak_, lengths_);
  const ScalarType dtype = x_.scalar_type();
  const int64_t T_ = x_.size(0), B = x_.size(1), m = x_.size(2), n = w_.size(0);
  expect(k >= 0, "k must not be negative");
  check_like(dgy_, "dgy", dtype, {k, T_, B, n});
  check_like(dgs_n_, "dgs_n", dtype, {k, B, n});
  check_like(dx_, "dx", dtype, {k, T_, B, m});
  check_like(dw_ih_, "dw_ih", dtype, {k, n, m});
  check_like(dy_, "dy", dtype, {k, T_, B, n});
  check_like(dy0_, "dy0", dtype, {k, B, n});
  check_like(dw_, "dw", dtype, {k, n, n});
  check_like(dleak_, "dleak", dtype, {k, n});
  check_like(w_ih_, "w_ih", dtype, {n, m});
  check_like(y_, "y", dtype, {T_, B, n});
  if (!unit_leak) {
    check_like(daux_, "daux", dtype, {k, T_, B, n});
    check_like(aux_, "aux", dtype, {T_, B, n});
  }
  check_like(y0_, "y0", dtype, {B, n});
  check_like(lam_, "lam", dtype, {T_, B, n});
  check_like(delta_, "delta", dtype, {T_, B, n});
  check_like(w_, "w", dtype, {n, n});
  check_like(leak_, "leak", dtype, {n});
  const Tensor x = dense(x_), y = dense(y_), aux = dense(aux_), w = dense(w_), leak = dense(leak_), lam = dense(lam_),
               delta = dense(delta_), dy = dense(dy_), daux = dense(daux_);
  const OptionalTensor y0 = dense(y0_), lengths = dense(lengths_), dgs_n = dense(dgs_n_), dy0 = dense(dy0_), dw = dense(dw_),
                       dleak = dense(dleak_), dw_ih = dense(dw_ih_), dx = dense(dx_), dgy = dense(dgy_);
  const bool keep = needs & kNeedDelta;
  Tensor ddx = make_if(needs & kNeedX, x, {k, T_, B, m});
  Tensor ddu = zeros_if(needs & kNeedInputWeight, x, {k, n, m});
  Tensor ddw = zeros_if(needs & kNeedWeight, x, {k, n, n});
  Tensor ddb = zeros_if(needs & kNeedBias, x, {k, n});
  Tensor ddelta = make_if(keep, x, {k, T_, B, n});
  Tensor dgy0 = make_if(needs & kNeedInitial, x, {k, B, n}), dgs0 = make_if(needs & kNeedInitial, x, {k, B, n});
  Tensor dlam = make_if(want_dlam, x, {k, T_, B, n});
  if (k * B * n == 0 || T_ == 0) {
    if (needs & kNeedX) torch::stable::zero_(ddx);
    return {ddx, ddu, ddw, ddb, ddelta, dgy0, dgs0, dlam};
  }
  LeakyShape shape = leaky_shape(k, T_, B, n, form, act, unit_leak);
  shape.lengths = pointer(lengths);
  const Tensor w_ih = dense(w_ih_);
  const Rows x2(x, m), y2(y, n), delta2(delta, n), dy2(dy, n), dgy2(dgy ? *dgy : x, n), dx2(dx ? *dx : x, m),
      du2(dw_ih ? *dw_ih : x, m), dw2(dw ? *dw : x, n), dy02(dy0 ? *dy0 : x, n), ddx2(ddx, m), ddu2(ddu, m), ddw2(ddw, n),
      ddb2(ddb, n), ddelta2(ddelta, n), dgy02(dgy0, n);
  with_dtype(dtype, [&](auto zero) {
    using T = decltype(zero);
    const int64_t group = group_size(k, B);
    const int64_t piece = std::min(T_, piece_steps(B, group * n * (unit_leak ? 2 : 3) + 4 * n + m, sizeof(T)));
    const Tensor part = make(x, {group * piece * B, n});
    const Rows part2(part, n);
    Tensor ones = make(x, {1, piece * B});
    std::fill(out<T>(ones), out<T>(ones) + piece * B, T(1));
    const Rows ones2(ones, 1);
    LeakyBackwardJvp<T> p{shape,
                          true,
                          directions<T>(part),
                          directions<T>(dgs_n),
                          directions<T>(dleak),
                          directions<T>(dy),
                          unit_leak ? In<T>{} : directions<T>(daux),
                          whole<T>(y),
                          unit_leak ? In<T>{} : whole<T>(aux),
                          whole<T>(lam),
                          whole<T>(delta),
                          whole<T>(w),
                          whole<T>(leak),
                          out<T>(part),
                          out<T>(dgy0),
                          out<T>(dgs0),
                          out<T>(dlam)};
    LeakyBackwardJvp<T> q = p;
    q.s.L = group;
    Tiles<T> tiles(q.s, p.w, 1, false, piece < T_);
    for (int64_t i0 = 0; i0 < k; i0 += group) {
      const int64_t sequence = i0 * T_ * B * n, batch = i0 * B * n;
      q.dgs_n = from_direction(p.dgs_n, batch);
      q.dleak = from_direction(p.dleak, i0 * n);
      q.dy = from_direction(p.dy, sequence);
      q.daux = from_direction(p.daux, sequence);
      q.dgy0 = from_direction(p.dgy0, batch);
      q.dgs0 = from_direction(p.dgs0, batch);
      q.dlam = from_direction(p.dlam, sequence);
      for (int64_t end = T_; end > 0; end -= piece) {
        const int64_t t = std::max<int64_t>(0, end - piece), steps = end - t, rows = steps * B;
        const int64_t heard = end == T_ ? rows - B : rows;  // the last step of all has no successor
        for (int64_t i = i0; i < i0 + group; ++i) {
          const int64_t at = (i * T_ + t) * B, local = (i - i0) * rows;
          auto signal = [&](int64_t first, int64_t number) {
            const Tensor to = part2(local + first, number);
            return dgy ? Sum(to, dgy2(at + first, number)) : Sum(to);
          };
          if (heard > 0) {
            Sum sum = signal(0, heard);
            if (dw) sum.add(delta2((t + 1) * B, heard), dw2(i * n, n));
            sum.finish();
          }
          if (heard < rows) signal(heard, rows - heard).finish();
        }
        q.s.begin = t;
        q.s.end = end;
        q.s.resume = end < T_;
        tiles.run(q, leaky_kernels<T>().backward_jvp);
        const int64_t skip = t == 0 ? B : 0;
        for (int64_t i = i0; i < i0 + group; ++i) {
          const int64_t at = (i * T_ + t) * B, local = (i - i0) * rows;
          if (keep) {
            Tensor to = ddelta2(at, rows);
            torch::stable::copy_(to, part2(local, rows));
          }
          if (needs & kNeedX) {
            Sum sum(ddx2(at, rows));
            sum.add(part2(local, rows), w_ih);
            if (dw_ih) sum.add(delta2(t * B, rows), du2(i * n, n));
          }
          if (needs & kNeedInputWeight) {
            const Tensor to = ddu2(i * n, n);
            add_product(to, part2.transposed(local, rows), x2(t * B, rows));
            if (dx) add_product(to, delta2.transposed(t * B, rows), dx2(at, rows));
          }
          if (needs & kNeedBias) add_product(ddb2(i, 1), ones2.transposed(0, rows), part2(local, rows));
          if (needs & kNeedWeight) {
            const Tensor to = ddw2(i * n, n);
            if (rows > skip) {
              add_product(to, part2.transposed(local + skip, rows - skip), y2(t * B + skip - B, rows - skip));
              add_product(to, delta2.transposed(t * B + skip, rows - skip), dy2(at + skip - B, rows - skip));
            }
            if (skip && y0) add_product(to, part2.transposed(local, B), *y0);
            if (skip && dy0) add_product(to, delta2.transposed(0, B), dy02(i * B, B));
          }
          if (skip && dw && (needs & kNeedInitial)) add_product(dgy02(i * B, B), delta2(0, B), dw2(i * n, n));
        }
      }
    }
  });
  return {ddx, ddu, ddw, ddb, ddelta, dgy0, dgs0, dlam};
}

}  // namespace
}  // namespace rx

STABLE_TORCH_LIBRARY_FRAGMENT(rtrl_ext, m) {
  m.def(
      "leaky_layer_forward_jvp(int k, Tensor? dx, Tensor? dw_ih, Tensor? dbias, Tensor? dy0, Tensor? ds0, Tensor? dw, "
      "Tensor? dleak, Tensor x, Tensor w_ih, Tensor y, Tensor aux, Tensor? y0, Tensor? s0, Tensor w, Tensor leak, "
      "Tensor? lengths, int form, int act, bool unit_leak, bool want_du, Tensor? lam=None) "
      "-> (Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "leaky_layer_backward_jvp(int k, Tensor? dgy, Tensor? dgs_n, Tensor? dx, Tensor? dw_ih, Tensor dy, Tensor daux, "
      "Tensor? dy0, Tensor? dw, Tensor? dleak, Tensor x, Tensor w_ih, Tensor y, Tensor aux, Tensor? y0, Tensor lam, "
      "Tensor delta, Tensor w, Tensor leak, Tensor? lengths, int form, int act, bool unit_leak, int needs, bool want_dlam) "
      "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(rtrl_ext, CPU, m) {
  m.impl("leaky_layer_forward_jvp", TORCH_BOX(&rx::layer_forward_jvp));
  m.impl("leaky_layer_backward_jvp", TORCH_BOX(&rx::layer_backward_jvp));
}
