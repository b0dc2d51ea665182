// How a whole LeakyRNN layer is worked through: the batch is split into one share of rows per thread, a share into tiles of
// rows, and a tile's time axis into chunks that stay in the L2 cache, so that the products over all steps of a chunk read what
// the recurrence has just written. A thread keeps its own sums of the weight gradients; they are added in the shares' order.
#pragma once
#include "ops/leaky_run.h"

namespace rx {

constexpr int64_t kChunkBytes = 512 * 1024;
constexpr int64_t kChunkRows = 256;  // at least so many, to have few passes over the weight gradients

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

template <class T>
struct LayerForward {
  LeakyForward<T> core;  // `pre` is where the activations will be kept
  T* pre;
  const T* x;  // (T, B, m)
  int64_t m;
  const T* w_ih;  // (n, m)

  void run() const {
    const LeakyKernels<T>& kernels = leaky_kernels<T>();
    const int64_t T_ = core.s.T, B = core.s.B, n = core.s.n;
    const Packed<T> recurrent(core.w.p, n, n, true), input(w_ih, m, n, true);
    const Shares shares(B);
    const int64_t steps = Shares::chunk(T_, shares.largest(), m + (core.aux ? 2 : 1) * n, sizeof(T));
    torch::stable::parallel_for(0, shares.count, 1, [&](int64_t first, int64_t last) {
      Scratch<T> scratch(kernels.scratch_size(shares.largest(), n));
      shares.tiles(first, last, [&](int64_t, RowRange range) {
        LeakyForward<T> p = core;
        for (int64_t t = 0; t < T_; t += steps) {
          p.s.begin = t;
          p.s.end = std::min(T_, t + steps);
          p.s.resume = t > 0;
          const int64_t at = t * B + range.begin;
          kernels.product(
              {p.s.end - t, range.end - range.begin, x + at * m, m, B * m, input.get(), m, n, pre + at * n, n, B * n});
          kernels.forward(p, range, recurrent.get(), scratch.get());
        }
      });
    });
  }
};

// What the gradients of a layer are made of and where they go; null outputs are not made.
template <class T>
struct LayerGradients {
  LeakyBackward<T> core;  // `delta` whole, or null to keep it for one chunk only
  const T* x;             // (T, B, m)
  const T* y0;            // (B, n) or null: zeros
  int64_t m;
  const T* w_ih;               // (n, m)
  T *dx, *dw_ih, *dw, *dbias;  // (T, B, m), (n, m), (n, n), (n)
};

template <class T>
class LayerBackward : LayerGradients<T> {
 public:
  explicit LayerBackward(const LayerGradients<T>& g) : LayerGradients<T>(g), shares_(g.core.s.B) {}

  void run() {
    const int64_t T_ = core.s.T, n = core.s.n;
    // Sums per thread, unless threads outnumber the rows or the sums would outweigh the history.
    const bool common =
        shares_.count < shares_.threads || (shares_.count > 1 && shares_.count * (n + m) > T_ * std::max<int64_t>(1, core.s.B));
    steps_ = Shares::chunk(T_, shares_.largest(), m * (dx ? 2 : 1) + (core.aux.p ? 4 : 3) * n, sizeof(T));
    ld_ = kernels_.outer_stride(n);
    ldx_ = kernels_.outer_stride(m);
    sums_size_ = n * ((dw ? ld_ : 0) + (dw_ih ? ldx_ : 0) + (dbias ? 1 : 0)) + 64;
    sums_size_ -= sums_size_ % 64;
    const int64_t number = common ? shares_.count * shares_.per_share() : shares_.count;
    Scratch<T> sums(sums_size_ * shares_.count);
    tile_size_ = kernels_.scratch_size(shares_.largest(), n) + (core.delta ? 0 : steps_ * shares_.largest() * n) + 64;
    tile_size_ -= tile_size_ % 64;
    Scratch<T> scratch(tile_size_ * number);
    const Packed<T> recurrent(multiplies(core.transport) ? core.w.p : nullptr, n, n, false),
        input(dx ? w_ih : nullptr, n, m, false);
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
        Scratch<T> tail(kernels_.outer_scratch(n));
        shares_.tiles(first, last, [&](int64_t share, RowRange range) {
          T *mine = sums.get() + share * sums_size_, *space = scratch.get() + share * tile_size_;
          for (int64_t end = T_; end > 0; end -= steps_) {
            const int64_t begin = std::max<int64_t>(0, end - steps_);
            recur(range, begin, end, mine, space, recurrent.get(), input.get());
            accumulate(range, begin, end, 0, n, mine, delta_of(space, range, begin), tail.get());
          }
        });
      });
    }
    add_up(sums.get(), common ? 1 : shares_.count);
  }

 private:
  struct Delta {
    const T* p;
    int64_t step;
  };
  Delta delta_of(const T* space, RowRange range, int64_t begin) const {
    const int64_t n = core.s.n, B = core.s.B;
    if (core.delta) return {core.delta + (begin * B + range.begin) * n, B * n};
    return {space + kernels_.scratch_size(shares_.largest(), n), (range.end - range.begin) * n};
  }

  // The recurrence of a chunk, the sum of its deltas and their product with the input matrix.
  void recur(RowRange range, int64_t begin, int64_t end, T* sums, T* space, const T* recurrent, const T* input) const {
    const int64_t T_ = core.s.T, B = core.s.B, n = core.s.n;
    const Delta delta = delta_of(space, range, begin);
    LeakyBackward<T> p = core;
    p.part = !core.delta;
    if (p.part) p.delta = const_cast<T*>(delta.p);
    p.bias = dbias ? sums + n * ((dw ? ld_ : 0) + (dw_ih ? ldx_ : 0)) : nullptr;
    p.s.begin = begin;
    p.s.end = end;
    p.s.resume = end < T_;
    range.tile = 0;
    kernels_.backward(p, range, recurrent, space);
    if (!dx) return;
    kernels_.product({end - begin, range.end - range.begin, delta.p, n, delta.step, input, n, m,
                      dx + (begin * B + range.begin) * m, m, B * m});
  }

  // Rows [first, last) of the weight gradients from a chunk.
  void accumulate(RowRange range, int64_t begin, int64_t end, int64_t first, int64_t last, T* sums, Delta delta,
                  T* tail) const {
    const int64_t B = core.s.B, n = core.s.n, rows = range.end - range.begin;
    if (dw_ih) {
      kernels_.outer({end - begin, rows, delta.p, n, delta.step, x + (begin * B + range.begin) * m, m, B * m, first, last, m,
                      sums + (dw ? n * ld_ : 0), ldx_},
                     tail);
    }
    if (!dw) return;
    Outer<T> before{end - begin, rows, delta.p, n, delta.step, nullptr, n, B * n, first, last, n, sums, ld_};
    if (begin == 0) {  // step 0 sees y0
      Outer<T> start = before;
      start.steps = 1;
      start.b = y0 ? y0 + range.begin * n : nullptr;
      if (y0) kernels_.outer(start, tail);
      ++begin;
      --before.steps;
      before.a += delta.step;
    }
    before.b = core.y.p + ((begin - 1) * B + range.begin) * n;
    if (before.steps > 0) kernels_.outer(before, tail);
  }

  // Chunk by chunk: all tiles, then the weight gradients' rows in parallel.
  void in_common(T* sums, T* scratch, const T* recurrent, const T* input) const {
    const int64_t T_ = core.s.T, n = core.s.n;
    for (int64_t end = T_; end > 0; end -= steps_) {
      const int64_t begin = std::max<int64_t>(0, end - steps_);
      torch::stable::parallel_for(0, shares_.count, 1, [&](int64_t first, int64_t last) {
        shares_.tiles(first, last, [&](int64_t share, RowRange range) {
          recur(range, begin, end, sums + share * sums_size_, scratch + range.tile * tile_size_, recurrent, input);
        });
      });
      torch::stable::parallel_for(
          0, n, std::max<int64_t>(12, (n + shares_.threads - 1) / shares_.threads), [&](int64_t first, int64_t last) {
            Scratch<T> tail(kernels_.outer_scratch(n));
            shares_.tiles(0, shares_.count, [&](int64_t, RowRange range) {
              const T* space = scratch + range.tile * tile_size_;
              accumulate(range, begin, end, first, last, sums, delta_of(space, range, begin), tail.get());
            });
          });
    }
  }

  // `count` shares hold weight gradients; all of them hold sums of deltas.
  void add_up(const T* sums, int64_t count) const {
    const int64_t n = core.s.n, at_input = dw ? n * ld_ : 0, at_bias = at_input + (dw_ih ? n * ldx_ : 0);
    const int64_t grain = std::max<int64_t>(1, 32768 / (n + m));
    torch::stable::parallel_for(0, n, grain, [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i) {
        auto row = [&](T* to, int64_t width, int64_t offset, int64_t shares) {
          for (int64_t j = 0; j < width; ++j) to[j] = sums[offset + j];
          for (int64_t share = 1; share < shares; ++share) {
            const T* from = sums + share * sums_size_ + offset;
            for (int64_t j = 0; j < width; ++j) to[j] += from[j];
          }
        };
        if (dw) row(dw + i * n, n, i * ld_, count);
        if (dw_ih) row(dw_ih + i * m, m, at_input + i * ldx_, count);
        if (dbias) row(dbias + i, 1, at_bias + i, shares_.count);
      }
    });
  }

  using LayerGradients<T>::core, LayerGradients<T>::x, LayerGradients<T>::y0, LayerGradients<T>::m, LayerGradients<T>::w_ih;
  using LayerGradients<T>::dx, LayerGradients<T>::dw_ih, LayerGradients<T>::dw, LayerGradients<T>::dbias;
  const LeakyKernels<T>& kernels_ = leaky_kernels<T>();
  Shares shares_;
  int64_t steps_ = 0, ld_ = 0, ldx_ = 0, sums_size_ = 0, tile_size_ = 0;
};

}  // namespace rx
