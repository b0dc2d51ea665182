// Tangents of a whole LeakyRNN layer in k directions as PyTorch ops, piece by piece of the time axis like the layer itself.
// Tangents have a leading dimension k, primal tensors have none.
#include "ops/leaky_layer.h"

namespace rx {
namespace {

// Direction i of x (k, rows, columns), from `first` on.
Tensor direction(const Tensor& x, int64_t i, int64_t first, int64_t rows) {
  return rows_of(torch::stable::select(x, 0, i), first, rows);
}
OptionalTensor as_directions(const OptionalTensor& x, int64_t k, int64_t columns) {
  return x ? OptionalTensor(torch::stable::view(dense(*x), {k, -1, columns})) : x;
}

// out += or = a b: the first product of a sum overwrites.
class Sum {
 public:
  explicit Sum(const Tensor& out) : out_(out) {}
  Sum(const Tensor& out, const Tensor& base) : out_(out), base_(base) {}
  void add(const Tensor& a, const Tensor& b) {
    if (started_) {
      addmm_out(out_, out_, a, b);
    } else if (base_) {
      addmm_out(out_, *base_, a, b);
    } else {
      mm_out(out_, a, b);
    }
    started_ = true;
  }
  void finish() {
    Tensor out = out_;
    if (started_) return;
    if (base_) {
      torch::stable::copy_(out, *base_);
    } else {
      torch::stable::zero_(out);
    }
  }

 private:
  Tensor out_;
  OptionalTensor base_;
  bool started_ = false;
};

template <class T>
In<T> directions(const OptionalTensor& x) {
  return x ? In<T>{static_cast<const T*>(x->const_data_ptr()), true} : In<T>{};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> layer_forward_jvp(int64_t k, const OptionalTensor& dx_, const OptionalTensor& dw_ih_,
                                                             const OptionalTensor& dbias_, const OptionalTensor& dy0_,
                                                             const OptionalTensor& ds0_, const OptionalTensor& dw_,
                                                             const OptionalTensor& dleak_, const Tensor& x_, const Tensor& w_ih,
                                                             const Tensor& y_, const Tensor& aux_, const OptionalTensor& y0_,
                                                             const OptionalTensor& s0_, const Tensor& w_, const Tensor& leak_,
                                                             const OptionalTensor& lengths_, int64_t form, int64_t act,
                                                             bool unit_leak, bool want_du) {
  check_layer(x_, w_, leak_, lengths_);
  const ScalarType dtype = x_.scalar_type();
  const int64_t T_ = x_.size(0), B = x_.size(1), m = x_.size(2), n = w_.size(0);
  expect(k >= 1, "k must be at least 1");
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
                       ds0 = dense(ds0_), dleak = dense(dleak_), dw = dense(dw_), dw_ih = dense(dw_ih_),
                       dx = as_directions(dx_, k, m);
  Tensor dy = make(x, {k, T_, B, n}), daux = unit_leak ? make(x, {0}) : make(x, {k, T_, B, n}), ds_n = make(x, {k, B, n});
  Tensor du = want_du ? make(x, {k, T_, B, n}) : make(x, {0});
  if (ds_n.numel() == 0 || T_ == 0) return {dy, daux, ds_n, du};
  LeakyShape shape = leaky_shape(k, T_, B, n, form, act, unit_leak);
  if (lengths) shape.lengths = static_cast<const int64_t*>(lengths->const_data_ptr());
  const Tensor pre = unit_leak ? dy : daux;  // written in place
  const Tensor pre3 = torch::stable::view(pre, {k, -1, n}), x2 = as_rows(x, m), y2 = as_rows(y, n), u = transposed(w_ih);
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
                         out<T>(du)};
    const int64_t piece = piece_steps(B, k * n * (unit_leak ? 1 : 2) + n + m, sizeof(T));
    Tiles<T> tiles(shape, p.w, 1, true, piece < T_);
    for (int64_t t = 0; t < T_; t += piece) {
      const int64_t steps = std::min(piece, T_ - t), rows = steps * B, skip = t == 0 ? B : 0;  // the first step sees y0
      for (int64_t i = 0; i < k; ++i) {
        Sum sum(direction(pre3, i, t * B, rows));
        if (dx) sum.add(direction(*dx, i, t * B, rows), u);
        if (dw_ih) sum.add(rows_of(x2, t * B, rows), transposed(torch::stable::select(*dw_ih, 0, i)));
        if (dw) {
          sum.finish();
          const Tensor to = direction(pre3, i, t * B, rows), v = transposed(torch::stable::select(*dw, 0, i));
          if (rows > skip)
            addmm_out(rows_of(to, skip, rows - skip), rows_of(to, skip, rows - skip),
                      rows_of(y2, t * B + skip - B, rows - skip), v);
          if (skip && y0) addmm_out(rows_of(to, 0, B), rows_of(to, 0, B), *y0, v);
        }
        if (!dw) sum.finish();
      }
      p.s.begin = t;
      p.s.end = t + steps;
      p.s.resume = t > 0;
      tiles.run(p, leaky_kernels<T>().forward_jvp);
    }
  });
  return {dy, daux, ds_n, du};
}

// (ddx, ddw_ih, ddw, ddbias, ddelta, dgy0, dgs0, dlam)
using Tangents = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

Tangents layer_backward_jvp(int64_t k, const OptionalTensor& dgy_, const OptionalTensor& dgs_n_, const OptionalTensor& dx_,
                            const OptionalTensor& dw_ih_, const Tensor& dy_, const Tensor& daux_, const OptionalTensor& dy0_,
                            const OptionalTensor& dw_, const OptionalTensor& dleak_, const Tensor& x_, const Tensor& w_ih,
                            const Tensor& y_, const Tensor& aux_, const OptionalTensor& y0_, const Tensor& lam_,
                            const Tensor& delta_, const Tensor& w_, const Tensor& leak_, const OptionalTensor& lengths_,
                            int64_t form, int64_t act, bool unit_leak, int64_t needs, bool want_dlam) {
  check_layer(x_, w_, leak_, lengths_);
  const ScalarType dtype = x_.scalar_type();
  const int64_t T_ = x_.size(0), B = x_.size(1), m = x_.size(2), n = w_.size(0);
  expect(k >= 1, "k must be at least 1");
  check_like(dgy_, "dgy", dtype, {k, T_, B, n});
  check_like(dgs_n_, "dgs_n", dtype, {k, B, n});
  check_like(dx_, "dx", dtype, {k, T_, B, m});
  check_like(dw_ih_, "dw_ih", dtype, {k, n, m});
  check_like(dy_, "dy", dtype, {k, T_, B, n});
  check_like(dy0_, "dy0", dtype, {k, B, n});
  check_like(dw_, "dw", dtype, {k, n, n});
  check_like(dleak_, "dleak", dtype, {k, n});
  check_like(w_ih, "w_ih", dtype, {n, m});
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
                       dleak = dense(dleak_), dw_ih = dense(dw_ih_), dx = as_directions(dx_, k, m),
                       dgy = as_directions(dgy_, k, n);
  const Tensor none = make(x, {0});
  const bool keep = needs & kNeedDelta;
  Tensor ddx = needs & kNeedX ? make(x, {k, T_, B, m}) : none;
  Tensor ddu = needs & kNeedInputWeight ? zeros_like_size(x, {k, n, m}) : none;
  Tensor ddw = needs & kNeedWeight ? zeros_like_size(x, {k, n, n}) : none;
  Tensor ddb = needs & kNeedBias ? zeros_like_size(x, {k, n}) : none;
  Tensor ddelta = keep ? make(x, {k, T_, B, n}) : none;
  Tensor dgy0 = needs & kNeedInitial ? make(x, {k, B, n}) : none, dgs0 = needs & kNeedInitial ? make(x, {k, B, n}) : none;
  Tensor dlam = want_dlam ? make(x, {k, T_, B, n}) : none;
  if (B * n == 0 || T_ == 0) {
    if (needs & kNeedX) torch::stable::zero_(ddx);
    return {ddx, ddu, ddw, ddb, ddelta, dgy0, dgs0, dlam};
  }
  LeakyShape shape = leaky_shape(k, T_, B, n, form, act, unit_leak);
  if (lengths) shape.lengths = static_cast<const int64_t*>(lengths->const_data_ptr());
  const Tensor x2 = as_rows(x, m), y2 = as_rows(y, n), delta2 = as_rows(delta, n);
  const Tensor dy3 = torch::stable::view(dy, {k, -1, n});
  with_dtype(dtype, [&](auto zero) {
    using T = decltype(zero);
    const int64_t piece = std::min(T_, piece_steps(B, k * n * (unit_leak ? 2 : 3) + 4 * n + m, sizeof(T)));
    const Tensor part = make(x, {k * piece * B, n});
    Tensor ones = make(x, {1, piece * B});
    std::fill(out<T>(ones), out<T>(ones) + piece * B, T(1));
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
    Tiles<T> tiles(shape, p.w, 1, false, piece < T_);
    for (int64_t end = T_; end > 0; end -= piece) {
      const int64_t t = std::max<int64_t>(0, end - piece), steps = end - t, rows = steps * B;
      const int64_t heard = end == T_ ? rows - B : rows;  // the last step of all has no successor
      auto of_part = [&](int64_t i) { return rows_of(part, i * rows, rows); };
      for (int64_t i = 0; i < k; ++i) {
        const Tensor to = of_part(i);
        auto signal = [&](int64_t first, int64_t count) {
          const Tensor piece_of = rows_of(to, first, count);
          return dgy ? Sum(piece_of, direction(*dgy, i, t * B + first, count)) : Sum(piece_of);
        };
        if (heard > 0) {
          Sum sum = signal(0, heard);
          if (dw) sum.add(rows_of(delta2, (t + 1) * B, heard), torch::stable::select(*dw, 0, i));
          sum.finish();
        }
        if (heard < rows) signal(heard, rows - heard).finish();
      }
      p.s.begin = t;
      p.s.end = end;
      p.s.resume = end < T_;
      tiles.run(p, leaky_kernels<T>().backward_jvp);
      const Tensor d = rows_of(delta2, t * B, rows), dt = transposed(d);
      const int64_t skip = t == 0 ? B : 0;
      for (int64_t i = 0; i < k; ++i) {
        const Tensor dd = of_part(i), ddt = transposed(dd);
        if (keep) {
          Tensor to = direction(torch::stable::view(ddelta, {k, -1, n}), i, t * B, rows);
          torch::stable::copy_(to, dd);
        }
        if (needs & kNeedX) {
          Sum sum(direction(torch::stable::view(ddx, {k, -1, m}), i, t * B, rows));
          sum.add(dd, w_ih);
          if (dw_ih) sum.add(d, torch::stable::select(*dw_ih, 0, i));
        }
        if (needs & kNeedInputWeight) {
          const Tensor to = torch::stable::select(ddu, 0, i);
          addmm_out(to, to, ddt, rows_of(x2, t * B, rows));
          if (dx) addmm_out(to, to, dt, direction(*dx, i, t * B, rows));
        }
        if (needs & kNeedBias) {
          const Tensor to = rows_of(ddb, i, 1);
          addmm_out(to, to, torch::stable::narrow(ones, 1, 0, rows), dd);
        }
        if (needs & kNeedWeight) {
          const Tensor to = torch::stable::select(ddw, 0, i);
          if (rows > skip) {
            const int64_t before = t * B + skip - B, count = rows - skip;
            addmm_out(to, to, transposed(rows_of(dd, skip, count)), rows_of(y2, before, count));
            addmm_out(to, to, transposed(rows_of(d, skip, count)), direction(dy3, i, before, count));
          }
          if (skip && y0) addmm_out(to, to, transposed(rows_of(dd, 0, B)), *y0);
          if (skip && dy0) addmm_out(to, to, transposed(rows_of(d, 0, B)), torch::stable::select(*dy0, 0, i));
        }
        if (skip && dw && (needs & kNeedInitial)) {
          const Tensor to = torch::stable::select(dgy0, 0, i);
          addmm_out(to, to, rows_of(d, 0, B), torch::stable::select(*dw, 0, i));
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
      "Tensor? lengths, int form, int act, bool unit_leak, bool want_du) -> (Tensor, Tensor, Tensor, Tensor)");
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
