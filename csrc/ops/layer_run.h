// How a whole layer is worked through: the batch is split into one share of rows per thread, a share into tiles of rows, and a
// tile's time axis into chunks that stay in the L2 cache, so that the products over all steps of a chunk read what the
// recurrence has just written. A thread keeps its own sums of the weight gradients; they are added in the shares' order.
//
// `Cell` (leaky_layer_run.h, gated_layer_run.h) says what a cell's kernels are and how its numbers lie:
//   Forward, Backward      parameters of its kernels
//   rows                   of a weight matrix: gates times n
//   delta                  columns of `delta`; the first `rows` of them belong to the input matrix and its bias
//   runs, run_count        which columns of `delta` belong to which rows of the recurrent matrix and its bias
//   pre_row                numbers from one row of pre-activations to the next
//   kept                   numbers that the forward pass keeps per row and step, y included
//   scratch(rows), forward(...), backward(...)
//   spikes                 y is of zeros and ones, most of them zeros. Such a cell has `outer`, one gate, and `units`: so many
//                          gradients of constants of its units, which its kernel adds up as it does the bias's
#pragma once
#include "ops/leaky_run.h"

namespace rx {

constexpr int64_t kChunkBytes = 512 * 1024;
constexpr int64_t kChunkRows = 256;  // at least so many, to have few passes over the weight gradients

// Columns [first, first + count) of `delta` are the gradients of rows from `row` on.
struct Run {
  int64_t first, row, count;
};

// The batch in `count` shares of nearly equal size.
struct Shares {
  int64_t B, count, threads;
  explicit Shares(int64_t batch) : B(batch), threads(std::max<int64_t>(1, torch::stable::get_num_threads())) {
    count = std::min(threads, B);
  }
  // f(share, range of rows) for the tiles of shares [first, last), numbered through.
  template <class F>
  void tiles(int64_t first, int64_t last, F&& f) const {
    for (int64_t share = first; share < last; ++share) {
      const int64_t begin = B * share / count, rows = B * (share + 1) / count - begin, tiles = per_share();
      for (int64_t i = 0; i < tiles; ++i) {
        const RowRange range{begin + rows * i / tiles, begin + rows * (i + 1) / tiles, share * tiles + i};
        if (range.end > range.begin) f(share, range);
      }
    }
  }
  int64_t per_share() const { return ((B + count - 1) / count + kTileRowsMax - 1) / kTileRowsMax; }
  int64_t largest() const { return std::min((B + count - 1) / count, kTileRowsMax); }
  // Steps per chunk for tiles of `rows` rows that hold `width` numbers per row and step.
  static int64_t chunk(int64_t T_, int64_t rows, int64_t width, size_t element) {
    const int64_t row = std::max<int64_t>(1, width * static_cast<int64_t>(element));
    const int64_t steps = std::max(kChunkBytes / (row * rows), (kChunkRows + rows - 1) / rows);
    return std::min(T_, std::max<int64_t>(1, steps));
  }
};

template <class T, class Cell>
struct LayerForward {
  Cell cell;
  typename Cell::Forward core;  // reads pre-activations from `pre`
  T* pre;                       // (T, B, rows) in rows of pre_row numbers, where the activations will be kept
  const T* x;                   // (T, B, m)
  int64_t m;
  const T* w_ih;  // (rows, m)

  void run() const {
    const int64_t T_ = core.s.T, B = core.s.B, n = core.s.n, rows = cell.rows, pre_row = cell.pre_row;
    const Packed<T> recurrent(core.w.p, n, rows, true), input(w_ih, m, rows, true);
    const Shares shares(B);
    const int64_t steps = Shares::chunk(T_, shares.largest(), m + cell.kept, sizeof(T));
    torch::stable::parallel_for(0, shares.count, 1, [&](int64_t first, int64_t last) {
      Scratch<T> scratch(cell.scratch(shares.largest()));
      shares.tiles(first, last, [&](int64_t, RowRange range) {
        typename Cell::Forward p = core;
        for (int64_t t = 0; t < T_; t += steps) {
          p.s.begin = t;
          p.s.end = std::min(T_, t + steps);
          p.s.resume = t > 0;
          const int64_t at = t * B + range.begin;
          leaky_kernels<T>().product({p.s.end - t, range.end - range.begin, x + at * m, m, B * m, input.get(), m, rows,
                                      pre + at * pre_row, pre_row, B * pre_row});
          cell.forward(p, range, recurrent.get(), scratch.get());
        }
      });
    });
  }
};

// What the gradients of a layer are made of and where they go; null outputs are not made.
template <class T, class Cell>
struct LayerGradients {
  Cell cell;
  typename Cell::Backward core;  // `delta` whole, or null to keep it for one chunk only
  const T* x;                    // (T, B, m)
  const T* y0;                   // (B, n) or null: zeros
  int64_t m;
  const T* w_ih;        // (rows, m)
  T *dx, *dw_ih;        // (T, B, m), (rows, m)
  T* dw;                // (rows, n)
  T *db_ih, *db_hh;     // (rows)
  T* dunits = nullptr;  // (units) of a cell with spikes
};

template <class T, class Cell>
class LayerBackward : LayerGradients<T, Cell> {
 public:
  explicit LayerBackward(const LayerGradients<T, Cell>& g) : LayerGradients<T, Cell>(g), shares_(g.core.s.B) {}

  void run() {
    const int64_t T_ = core.s.T, n = core.s.n, rows = cell.rows;
    // Sums per thread, unless threads outnumber the rows or the sums would outweigh the history.
    const bool common =
        shares_.count < shares_.threads || (shares_.count > 1 && shares_.count * (n + m) > T_ * std::max<int64_t>(1, core.s.B));
    steps_ = Shares::chunk(T_, shares_.largest(), m * (dx ? 2 : 1) + cell.kept + n + cell.delta, sizeof(T));
    ld_ = kernels_.outer_stride(n);
    ldx_ = kernels_.outer_stride(m);
    at_input_ = dw ? rows * ld_ : 0;
    at_bias_ = at_input_ + (dw_ih ? rows * ldx_ : 0);
    at_units_ = at_bias_ + (biases() ? cell.delta : 0);
    sums_size_ = at_units_;
    if constexpr (Cell::spikes) sums_size_ += dunits ? cell.units : 0;
    sums_size_ = lines(sums_size_);
    delta_row_ = core.delta ? cell.delta : cell.part_row();
    at_delta_ = lines(cell.scratch(shares_.largest()));
    tile_size_ = at_delta_ + lines(core.delta ? 0 : steps_ * shares_.largest() * delta_row_);
    const int64_t number = common ? shares_.count * shares_.per_share() : shares_.count;
    Scratch<T> sums(sums_size_ * shares_.count);
    Scratch<T> scratch(tile_size_ * number);
    const Packed<T> recurrent(multiplies(core.transport) ? core.w.p : nullptr, rows, n, false),
        input(dx ? w_ih : nullptr, rows, m, false);
    auto cleared = [&](int64_t share) {
      T* mine = sums.get() + share * sums_size_;
      std::fill(mine, mine + sums_size_, T(0));
      return mine;
    };
    if (common) {
      for (int64_t share = 0; share < shares_.count; ++share) cleared(share);
      in_common(sums.get(), scratch.get(), recurrent.get(), input.get());
    } else {
      torch::stable::parallel_for(0, shares_.count, 1, [&](int64_t first, int64_t last) {
        for (int64_t share = first; share < last; ++share) cleared(share);
        Scratch<T> tail(kernels_.outer_scratch(rows));
        shares_.tiles(first, last, [&](int64_t share, RowRange range) {
          T *mine = sums.get() + share * sums_size_, *space = scratch.get() + share * tile_size_;
          for (int64_t end = T_; end > 0; end -= steps_) {
            const int64_t begin = std::max<int64_t>(0, end - steps_);
            recur(range, begin, end, mine, space, recurrent.get(), input.get());
            accumulate(range, begin, end, 0, rows, mine, delta_of(space, range, begin), tail.get());
          }
        });
      });
    }
    add_up(sums.get(), common ? 1 : shares_.count);
  }

 private:
  static int64_t lines(int64_t numbers) { return (numbers + 63) / 64 * 64; }
  bool biases() const { return db_ih || db_hh; }
  struct Delta {
    const T* p;
    int64_t step;
  };
  Delta delta_of(const T* space, RowRange range, int64_t begin) const {
    const int64_t B = core.s.B;
    if (core.delta) return {core.delta + (begin * B + range.begin) * delta_row_, B * delta_row_};
    return {space + at_delta_, (range.end - range.begin) * delta_row_};
  }

  // The recurrence of a chunk, the sum of its deltas and their product with the input matrix.
  void recur(RowRange range, int64_t begin, int64_t end, T* sums, T* space, const T* recurrent, const T* input) const {
    const int64_t T_ = core.s.T, B = core.s.B;
    const Delta delta = delta_of(space, range, begin);
    typename Cell::Backward p = core;
    p.part = !core.delta;
    if (p.part) p.delta = space + at_delta_;
    p.bias = biases() ? sums + at_bias_ : nullptr;
    if constexpr (Cell::spikes) p.units = dunits ? sums + at_units_ : nullptr;
    p.s.begin = begin;
    p.s.end = end;
    p.s.resume = end < T_;
    range.tile = 0;
    cell.backward(p, range, recurrent, space);
    if (!dx) return;
    kernels_.product({end - begin, range.end - range.begin, delta.p, delta_row_, delta.step, input, cell.rows, m,
                      dx + (begin * B + range.begin) * m, m, B * m});
  }

  // Rows [first, last) of the weight gradients from a chunk.
  void accumulate(RowRange range, int64_t begin, int64_t end, int64_t first, int64_t last, T* sums, Delta delta,
                  T* tail) const {
    const int64_t B = core.s.B, n = core.s.n, rows = range.end - range.begin;
    if (dw_ih) {
      kernels_.outer({end - begin, rows, delta.p, delta_row_, delta.step, x + (begin * B + range.begin) * m, m, B * m, first,
                      last, m, sums + at_input_, ldx_},
                     tail);
    }
    for (int64_t i = 0; dw && i < cell.run_count; ++i) {
      const Run& run = cell.runs[i];
      const int64_t from = std::max(first, run.row), to = std::min(last, run.row + run.count);
      if (from >= to) continue;
      const T* a = delta.p + run.first - run.row;
      if (begin == 0 && y0) {  // step 0 sees y0
        add_weight({1, rows, a, delta_row_, delta.step, y0 + range.begin * n, n, B * n, from, to, n, sums, ld_}, tail, true);
      }
      const int64_t start = std::max<int64_t>(1, begin);
      if (start == end) continue;
      add_weight({end - start, rows, a + (start - begin) * delta.step, delta_row_, delta.step,
                  outputs() + ((start - 1) * B + range.begin) * n, n, B * n, from, to, n, sums, ld_},
                 tail, false);
    }
  }

  const T* outputs() const {
    if constexpr (Cell::spikes) {
      return core.z.p;
    } else {
      return core.y.p;
    }
  }
  // With spikes the transpose is summed, a unit's column in one piece, and [begin, end) are its rows. What is `given` from
  // outside may be other numbers.
  void add_weight(Outer<T> p, T* tail, bool given) const {
    if constexpr (Cell::spikes) {
      std::swap(p.a, p.b);
      std::swap(p.lda, p.ldb);
      std::swap(p.a_step, p.b_step);
      given ? kernels_.outer(p, tail) : cell.outer(p, tail);
    } else {
      kernels_.outer(p, tail);
    }
  }

  // Chunk by chunk: all tiles, then the weight gradients' rows in parallel.
  void in_common(T* sums, T* scratch, const T* recurrent, const T* input) const {
    const int64_t T_ = core.s.T, rows = cell.rows;
    for (int64_t end = T_; end > 0; end -= steps_) {
      const int64_t begin = std::max<int64_t>(0, end - steps_);
      torch::stable::parallel_for(0, shares_.count, 1, [&](int64_t first, int64_t last) {
        shares_.tiles(first, last, [&](int64_t share, RowRange range) {
          recur(range, begin, end, sums + share * sums_size_, scratch + range.tile * tile_size_, recurrent, input);
        });
      });
      torch::stable::parallel_for(
          0, rows, std::max<int64_t>(12, (rows + shares_.threads - 1) / shares_.threads), [&](int64_t first, int64_t last) {
            Scratch<T> tail(kernels_.outer_scratch(rows));
            shares_.tiles(0, shares_.count, [&](int64_t, RowRange range) {
              const T* space = scratch + range.tile * tile_size_;
              accumulate(range, begin, end, first, last, sums, delta_of(space, range, begin), tail.get());
            });
          });
    }
  }

  // `count` shares hold weight gradients; all of them hold sums of deltas.
  void add_up(const T* sums, int64_t count) const {
    const int64_t n = core.s.n, grain = std::max<int64_t>(1, 32768 / (n + m));
    auto add = [&](T* to, int64_t width, int64_t offset, int64_t shares) {
      for (int64_t j = 0; j < width; ++j) to[j] = sums[offset + j];
      for (int64_t share = 1; share < shares; ++share) {
        const T* from = sums + share * sums_size_ + offset;
        for (int64_t j = 0; j < width; ++j) to[j] += from[j];
      }
    };
    torch::stable::parallel_for(0, cell.rows, grain, [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i) {
        if constexpr (Cell::spikes) {
          for (int64_t j = 0; dw && j < n; ++j) add(dw + i * n + j, 1, j * ld_ + i, count);
        } else if (dw) {
          add(dw + i * n, n, i * ld_, count);
        }
        if (dw_ih) add(dw_ih + i * m, m, at_input_ + i * ldx_, count);
      }
    });
    if constexpr (Cell::spikes) {
      if (dunits) add(dunits, cell.units, at_units_, shares_.count);
    }
    if (db_ih) add(db_ih, cell.rows, at_bias_, shares_.count);
    for (int64_t i = 0; db_hh && i < cell.run_count; ++i) {
      add(db_hh + cell.runs[i].row, cell.runs[i].count, at_bias_ + cell.runs[i].first, shares_.count);
    }
  }

  using Base = LayerGradients<T, Cell>;
  using Base::cell, Base::core, Base::x, Base::y0, Base::m, Base::w_ih;
  using Base::dx, Base::dw_ih, Base::dw, Base::db_ih, Base::db_hh, Base::dunits;
  const LeakyKernels<T>& kernels_ = leaky_kernels<T>();
  Shares shares_;
  int64_t steps_ = 0, ld_ = 0, ldx_ = 0, at_input_ = 0, at_bias_ = 0, at_units_ = 0, sums_size_ = 0;
  int64_t delta_row_ = 0, at_delta_ = 0, tile_size_ = 0;
};

}  // namespace rx
