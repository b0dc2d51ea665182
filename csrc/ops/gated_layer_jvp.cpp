// Tangents of a whole GRU or LSTM layer in k directions as PyTorch ops, piece by piece of the time axis like the layer itself.
// Tangents have a leading dimension k, primal tensors have none.
#include "ops/gated_layer.h"
#include "ops/layer_jvp.h"

namespace rx {
namespace {

// Tangents of the biases as the kernel takes them: (k, 4 n), of what enters beside W dh'.
Tensor bias_tangents(const GatedSizes& s, int64_t k, const Tensor& like, const OptionalTensor& db_ih,
                     const OptionalTensor& db_hh) {
  const GatedRuns runs(s.cell, s.n);
  const int64_t n = s.n, rows = s.G * n;
  Tensor all = zeros_like_size(like, {k, 4 * n});
  with_dtype(s.dtype, [&](auto zero) {
    using T = decltype(zero);
    const T *b1 = whole<T>(db_ih).p, *b2 = whole<T>(db_hh).p;
    for (int64_t i = 0; i < k; ++i) {
      T* to = out<T>(all) + i * 4 * n;
      for (int64_t j = 0; b1 && j < rows; ++j) to[j] = b1[i * rows + j];
      for (int64_t run = 0; b2 && run < runs.count; ++run) {
        const auto [first, row, count] = runs.runs[run];
        for (int64_t j = 0; j < count; ++j) to[first + j] += b2[i * rows + row + j];
      }
    }
  });
  return all;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> layer_forward_jvp(
    int64_t cell, int64_t k, const OptionalTensor& dx_, const OptionalTensor& dw_ih_, const OptionalTensor& db_ih_,
    const OptionalTensor& db_hh_, const OptionalTensor& dh0_, const OptionalTensor& dc0_, const OptionalTensor& dw_,
    const Tensor& x_, const Tensor& w_ih_, const Tensor& y_, const Tensor& aux_, const OptionalTensor& h0_,
    const OptionalTensor& c0_, const Tensor& w_, const OptionalTensor& lengths_) {
  const GatedSizes s(cell, x_, w_ih_, lengths_);
  const int64_t n = s.n, m = s.m, B = s.B, T_ = s.T, all = s.G * n, kept = s.A * n;
  expect(k >= 0, "k must not be negative");
  s.check(dx_, "dx", {k, T_, B, m});
  s.check(dw_ih_, "dw_ih", {k, all, m});
  s.check(db_ih_, "db_ih", {k, all});
  s.check(db_hh_, "db_hh", {k, all});
  s.check(dh0_, "dh0", {k, B, n});
  s.check(dc0_, "dc0", {k, B, n});
  s.check(dw_, "dw", {k, all, n});
  s.check(y_, "y", {T_, B, n});
  s.check(aux_, "aux", {T_, B, kept});
  s.check(h0_, "h0", {B, n});
  s.check(c0_, "c0", {B, n});
  s.check(w_, "w", {all, n});
  const Tensor x = dense(x_), y = dense(y_), aux = dense(aux_), w = dense(w_);
  const OptionalTensor h0 = dense(h0_), c0 = dense(c0_), lengths = dense(lengths_), dh0 = dense(dh0_), dc0 = dense(dc0_),
                       dx = dense(dx_), dw_ih = dense(dw_ih_), dw = dense(dw_);
  Tensor dy = make(x, {k, T_, B, n}), daux = make(x, {k, T_, B, kept});
  Tensor dh_n = zeros_like_size(x, {k, B, n}), dc_n = zeros_if(s.lstm, x, {k, B, n});
  if (dh_n.numel() == 0 || T_ == 0) return {dy, daux, dh_n, dc_n};
  const GatedRuns runs(s.cell, n);
  const Tensor u = Rows(dense(w_ih_), m).transposed(0, all);
  const Rows x2(x, m), y2(y, n), dx2(dx ? *dx : x, m), du2(dw_ih ? *dw_ih : x, m), dw2(dw ? *dw : x, n);
  const Block pre2(daux, kept);  // written in place
  const Tensor dbias = bias_tangents(s, k, x, dense(db_ih_), dense(db_hh_));
  with_dtype(s.dtype, [&](auto zero) {
    using T = decltype(zero);
    GatedForwardJvp<T> p{};
    p.s = s.shape(k, lengths);
    p.cell = s.cell;
    p.du = directions<T>(daux);
    p.in_place = true;
    p.dbias = directions<T>(dbias);
    p.dh0 = directions<T>(dh0);
    p.dc0 = s.lstm ? directions<T>(dc0) : In<T>{};
    p.y = whole<T>(y);
    p.aux = whole<T>(aux);
    p.before = whole<T>(s.lstm ? c0 : h0);
    p.w = whole<T>(w);
    p.dy = out<T>(dy);
    p.daux = out<T>(daux);
    p.dh_n = out<T>(dh_n);
    p.dc_n = s.lstm ? out<T>(dc_n) : nullptr;
    const int64_t group = group_size(k, B), piece = piece_steps(B, group * (kept + n) + kept + n + m, sizeof(T));
    GatedForwardJvp<T> q = p;
    q.s.L = group;
    Tiles<T> tiles(group, B, p.w, 1, n, all, true, gated_kernels<T>().scratch_size(kTileRowsMax, n), piece < T_);
    for (int64_t i0 = 0; i0 < k; i0 += group) {
      const int64_t sequence = i0 * T_ * B * n, batch = i0 * B * n;
      q.du = from_direction(p.du, sequence * s.A);
      q.dbias = from_direction(p.dbias, i0 * 4 * n);
      q.dh0 = from_direction(p.dh0, batch);
      q.dc0 = from_direction(p.dc0, batch);
      q.dy = from_direction(p.dy, sequence);
      q.daux = from_direction(p.daux, sequence * s.A);
      q.dh_n = from_direction(p.dh_n, batch);
      q.dc_n = from_direction(p.dc_n, batch);
      for (int64_t t = 0; t < T_; t += piece) {
        const int64_t steps = std::min(piece, T_ - t), rows = steps * B, skip = t == 0 ? B : 0;  // the first step sees h0
        for (int64_t i = i0; i < i0 + group; ++i) {
          const int64_t at = (i * T_ + t) * B;
          Sum sum(pre2(at, rows, 0, all));
          if (dx) sum.add(dx2(at, rows), u);
          if (dw_ih) sum.add(x2(t * B, rows), du2.transposed(i * all, all));
          sum.finish();
          for (int64_t r = 0; r < runs.count; ++r) {
            const auto [first, row, count] = runs.runs[r];
            if (first >= all) Sum(pre2(at, rows, first, count)).finish();
            if (!dw) continue;
            const Tensor v = dw2.transposed(i * all + row, count);
            if (skip && h0) add_product(pre2(at, B, first, count), *h0, v);
            if (rows > skip) add_product(pre2(at + skip, rows - skip, first, count), y2(t * B + skip - B, rows - skip), v);
          }
        }
        q.s.begin = t;
        q.s.end = t + steps;
        q.s.resume = t > 0;
        tiles.run(q, gated_kernels<T>().forward_jvp);
      }
    }
  });
  return {dy, daux, dh_n, dc_n};
}

// (ddx, ddw_ih, ddw, ddb_ih, ddb_hh, ddelta, dgh0, dgc0)
using Tangents = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

Tangents layer_backward_jvp(int64_t cell, int64_t k, const OptionalTensor& dgy_, const OptionalTensor& dgh_n_,
                            const OptionalTensor& dgc_n_, const OptionalTensor& dx_, const OptionalTensor& dw_ih_,
                            const Tensor& dy_, const Tensor& daux_, const OptionalTensor& dh0_, const OptionalTensor& dc0_,
                            const OptionalTensor& dw_, const Tensor& x_, const Tensor& w_ih_, const Tensor& y_,
                            const Tensor& aux_, const OptionalTensor& h0_, const OptionalTensor& c0_, const Tensor& lam_,
                            const OptionalTensor& to_c_, const Tensor& delta_, const Tensor& w_, const OptionalTensor& lengths_,
                            int64_t needs) {
  const GatedSizes s(cell, x_, w_ih_, lengths_);
  const int64_t n = s.n, m = s.m, B = s.B, T_ = s.T, all = s.G * n, kept = s.A * n;
  expect(k >= 0, "k must not be negative");
  expect(!s.lstm || to_c_, "to_c is needed by the LSTM");
  s.check(dgy_, "dgy", {k, T_, B, n});
  s.check(dgh_n_, "dgh_n", {k, B, n});
  s.check(dgc_n_, "dgc_n", {k, B, n});
  s.check(dx_, "dx", {k, T_, B, m});
  s.check(dw_ih_, "dw_ih", {k, all, m});
  s.check(dy_, "dy", {k, T_, B, n});
  s.check(daux_, "daux", {k, T_, B, kept});
  s.check(dh0_, "dh0", {k, B, n});
  s.check(dc0_, "dc0", {k, B, n});
  s.check(dw_, "dw", {k, all, n});
  s.check(y_, "y", {T_, B, n});
  s.check(aux_, "aux", {T_, B, kept});
  s.check(h0_, "h0", {B, n});
  s.check(c0_, "c0", {B, n});
  s.check(lam_, "lam", {T_, B, n});
  if (s.lstm) s.check(to_c_, "to_c", {T_, B, n});
  s.check(delta_, "delta", {T_, B, 4 * n});
  s.check(w_, "w", {all, n});
  const Tensor x = dense(x_), y = dense(y_), aux = dense(aux_), w = dense(w_), lam = dense(lam_), delta = dense(delta_),
               dy = dense(dy_), daux = dense(daux_), w_ih = dense(w_ih_);
  const OptionalTensor h0 = dense(h0_), c0 = dense(c0_), lengths = dense(lengths_), dgh_n = dense(dgh_n_),
                       dgc_n = dense(dgc_n_), dh0 = dense(dh0_), dc0 = dense(dc0_), dw = dense(dw_), dw_ih = dense(dw_ih_),
                       dx = dense(dx_), dgy = dense(dgy_), to_c = s.lstm ? dense(to_c_) : OptionalTensor();
  const bool keep = needs & kNeedDelta, initial = needs & kNeedInitial, bias = needs & kNeedBias;
  Tensor ddx = make_if(needs & kNeedX, x, {k, T_, B, m});
  Tensor ddu = zeros_if(needs & kNeedInputWeight, x, {k, all, m}), ddw = zeros_if(needs & kNeedWeight, x, {k, all, n});
  Tensor ddb_ih = zeros_if(bias, x, {k, all}), ddb_hh = zeros_if(bias, x, {k, all});
  Tensor ddelta = make_if(keep, x, {k, T_, B, 4 * n});
  Tensor dgh0 = zeros_if(initial, x, {k, B, n}), dgc0 = zeros_if(initial && s.lstm, x, {k, B, n});
  const auto results = [&]() -> Tangents { return {ddx, ddu, ddw, ddb_ih, ddb_hh, ddelta, dgh0, dgc0}; };
  if (k * B * n == 0 || T_ == 0) {
    torch::stable::zero_(ddx);
    return results();
  }
  const GatedRuns runs(s.cell, n);
  const Rows x2(x, m), y2(y, n), dy2(dy, n), dgy2(dgy ? *dgy : x, n), dx2(dx ? *dx : x, m), du2(dw_ih ? *dw_ih : x, m),
      dw2(dw ? *dw : x, n), dh02(dh0 ? *dh0 : x, n), ddx2(ddx, m), ddu2(ddu, m), ddw2(ddw, n), ddelta2(ddelta, 4 * n),
      dgh02(dgh0, n);
  const Block delta2(delta, 4 * n);
  with_dtype(s.dtype, [&](auto zero) {
    using T = decltype(zero);
    const int64_t group = group_size(k, B);
    const int64_t piece = std::min(T_, piece_steps(B, group * (kept + 6 * n) + kept + 8 * n + m, sizeof(T)));
    const Tensor signals = make(x, {group * piece * B, n}), part = make(x, {group * piece * B, 4 * n});
    const Rows signals2(signals, n), part_rows(part, 4 * n);
    const Block part2(part, 4 * n);
    const Tensor ddb = zeros_like_size(x, {k, 4 * n}), ones = make(x, {1, piece * B});
    std::fill(out<T>(ones), out<T>(ones) + piece * B, T(1));
    const Rows ones2(ones, 1), ddb2(ddb, 4 * n);
    GatedBackwardJvp<T> p{};
    p.s = s.shape(k, lengths);
    p.cell = s.cell;
    p.part = true;
    p.dgy = directions<T>(signals);
    p.dgh_n = directions<T>(dgh_n);
    p.dgc_n = s.lstm ? directions<T>(dgc_n) : In<T>{};
    p.y = whole<T>(y);
    p.dy = directions<T>(dy);
    p.aux = whole<T>(aux);
    p.daux = directions<T>(daux);
    p.before = whole<T>(s.lstm ? c0 : h0);
    p.dbefore = directions<T>(s.lstm ? dc0 : dh0);
    p.lam = whole<T>(lam);
    p.to_c = whole<T>(to_c);
    p.w = whole<T>(w);
    p.ddelta = out<T>(part);
    p.dgh0 = out<T>(dgh0);
    p.dgc0 = out<T>(dgc0);
    GatedBackwardJvp<T> q = p;
    q.s.L = group;
    Tiles<T> tiles(group, B, p.w, 1, all, n, false, gated_kernels<T>().scratch_size(kTileRowsMax, n), piece < T_);
    for (int64_t i0 = 0; i0 < k; i0 += group) {
      const int64_t sequence = i0 * T_ * B * n, batch = i0 * B * n;
      q.dgh_n = from_direction(p.dgh_n, batch);
      q.dgc_n = from_direction(p.dgc_n, batch);
      q.dy = from_direction(p.dy, sequence);
      q.daux = from_direction(p.daux, sequence * s.A);
      q.dbefore = from_direction(p.dbefore, batch);
      q.dgh0 = from_direction(p.dgh0, batch);
      q.dgc0 = from_direction(p.dgc0, batch);
      for (int64_t end = T_; end > 0; end -= piece) {
        const int64_t t = std::max<int64_t>(0, end - piece), steps = end - t, rows = steps * B;
        const int64_t heard = end == T_ ? rows - B : rows;  // the last step of all has no successor
        for (int64_t i = i0; i < i0 + group; ++i) {
          const int64_t at = (i * T_ + t) * B, local = (i - i0) * rows;
          auto signal = [&](int64_t first, int64_t number) {
            const Tensor to = signals2(local + first, number);
            return dgy ? Sum(to, dgy2(at + first, number)) : Sum(to);
          };
          if (heard > 0) {
            Sum sum = signal(0, heard);
            for (int64_t r = 0; dw && r < runs.count; ++r) {
              const auto [first, row, count] = runs.runs[r];
              sum.add(delta2((t + 1) * B, heard, first, count), dw2(i * all + row, count));
            }
            sum.finish();
          }
          if (heard < rows) signal(heard, rows - heard).finish();
        }
        q.s.begin = t;
        q.s.end = end;
        q.s.resume = end < T_;
        tiles.run(q, gated_kernels<T>().backward_jvp);
        const int64_t skip = t == 0 ? B : 0;
        for (int64_t i = i0; i < i0 + group; ++i) {
          const int64_t at = (i * T_ + t) * B, local = (i - i0) * rows;
          if (keep) {
            Tensor to = ddelta2(at, rows);
            torch::stable::copy_(to, part_rows(local, rows));
          }
          if (needs & kNeedX) {
            Sum sum(ddx2(at, rows));
            sum.add(part2(local, rows, 0, all), w_ih);
            if (dw_ih) sum.add(delta2(t * B, rows, 0, all), du2(i * all, all));
          }
          if (needs & kNeedInputWeight) {
            const Tensor to = ddu2(i * all, all);
            add_product(to, part2.transposed(local, rows, 0, all), x2(t * B, rows));
            if (dx) add_product(to, delta2.transposed(t * B, rows, 0, all), dx2(at, rows));
          }
          if (bias) add_product(ddb2(i, 1), ones2.transposed(0, rows), part_rows(local, rows));
          for (int64_t r = 0; r < runs.count; ++r) {
            const auto [first, row, count] = runs.runs[r];
            if (needs & kNeedWeight) {
              const Tensor to = ddw2(i * all + row, count);
              if (rows > skip) {
                add_product(to, part2.transposed(local + skip, rows - skip, first, count), y2(t * B + skip - B, rows - skip));
                add_product(to, delta2.transposed(t * B + skip, rows - skip, first, count), dy2(at + skip - B, rows - skip));
              }
              if (skip && h0) add_product(to, part2.transposed(local, B, first, count), *h0);
              if (skip && dh0) add_product(to, delta2.transposed(0, B, first, count), dh02(i * B, B));
            }
            if (skip && dw && initial) add_product(dgh02(i * B, B), delta2(0, B, first, count), dw2(i * all + row, count));
          }
        }
      }
    }
    const T* sums = out<T>(ddb);
    for (int64_t i = 0; bias && i < k; ++i) {
      const T* sum = sums + i * 4 * n;
      std::copy(sum, sum + all, out<T>(ddb_ih) + i * all);
      for (int64_t r = 0; r < runs.count; ++r) {
        const auto [first, row, count] = runs.runs[r];
        std::copy(sum + first, sum + first + count, out<T>(ddb_hh) + i * all + row);
      }
    }
  });
  return results();
}

}  // namespace
}  // namespace rx

STABLE_TORCH_LIBRARY_FRAGMENT(rtrl_ext, m) {
  m.def(
      "gated_layer_forward_jvp(int cell, int k, Tensor? dx, Tensor? dw_ih, Tensor? db_ih, Tensor? db_hh, Tensor? dh0, "
      "Tensor? dc0, Tensor? dw, Tensor x, Tensor w_ih, Tensor y, Tensor aux, Tensor? h0, Tensor? c0, Tensor w, "
      "Tensor? lengths) -> (Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "gated_layer_backward_jvp(int cell, int k, Tensor? dgy, Tensor? dgh_n, Tensor? dgc_n, Tensor? dx, Tensor? dw_ih, "
      "Tensor dy, Tensor daux, Tensor? dh0, Tensor? dc0, Tensor? dw, Tensor x, Tensor w_ih, Tensor y, Tensor aux, Tensor? h0, "
      "Tensor? c0, Tensor lam, Tensor? to_c, Tensor delta, Tensor w, Tensor? lengths, int needs) "
      "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(rtrl_ext, CPU, m) {
  m.impl("gated_layer_forward_jvp", TORCH_BOX(&rx::layer_forward_jvp));
  m.impl("gated_layer_backward_jvp", TORCH_BOX(&rx::layer_backward_jvp));
}
