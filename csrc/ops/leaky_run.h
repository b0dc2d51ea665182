// Splits a call into tiles of rows and runs a kernel on them in parallel.
#pragma once
#include <algorithm>

#include "ops/tensors.h"

namespace rx {

constexpr int64_t kTileRowsMax = 64;

// A matrix (k, n) given row by row, or its transpose, packed for products with it from the right.
template <class T>
class Packed {
 public:
  // `count` matrices; null packs nothing.
  Packed(const T* b, int64_t k, int64_t n, bool transpose, int64_t count = 1)
      : size_(leaky_kernels<T>().packed_size(k, n)), p_(b ? size_ * count : 1) {
    if (!b) return;
    const LeakyKernels<T>& kernels = leaky_kernels<T>();
    const int64_t panels = kernels.panel_count(n), row = transpose ? 1 : n, col = transpose ? k : 1;
    const int64_t grain = std::max<int64_t>(1, 32768 * panels / std::max<int64_t>(1, k * n));
    torch::stable::parallel_for(0, panels * count, grain, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end;) {
        const int64_t which = i / panels, first = i % panels, stop = std::min(panels, first + end - i);
        kernels.pack(b + which * k * n, row, col, k, n, first, stop, p_.get() + which * size_);
        i += stop - first;
      }
    });
  }
  const T* get(int64_t which = 0) const { return p_.get() + which * size_; }

 private:
  int64_t size_;
  Scratch<T> p_;
};

// Packs the recurrent matrix once; `run` may then be called for one piece of the time axis after the other.
template <class T>
class Tiles {
 public:
  // `weight` (L|1, n, n), `weights` of them, or null where no product is needed. `keep`: scratch lives from one `run` to the
  // next.
  Tiles(const LeakyShape& s, const In<T>& weight, int64_t weights, bool transpose, bool keep)
      : Tiles(s.L, s.B, weight, weights, s.n, s.n, transpose, leaky_kernels<T>().scratch_size(kTileRowsMax, s.n), keep) {}
  // The same for L times B rows, a matrix that multiplies from the right as (k, n), and `scratch` numbers per tile.
  Tiles(int64_t L, int64_t B, const In<T>& weight, int64_t weights, int64_t k, int64_t n, bool transpose, int64_t scratch,
        bool keep)
      : packed_(weight.p, k, n, transpose, weights), tile_scratch_(scratch) {
    // Rows under one recurrent matrix may share a tile; with a matrix per leading index they may not.
    groups_ = weight.p && weight.lead ? L : 1;
    group_rows_ = L * B / groups_;
    const int64_t threads = std::max<int64_t>(1, torch::stable::get_num_threads());
    const int64_t shares = std::max<int64_t>(1, (threads + groups_ - 1) / groups_);
    tiles_ = std::max((group_rows_ + kTileRowsMax - 1) / kTileRowsMax, std::min(shares, group_rows_));
    if (keep) kept_ = std::make_unique<Scratch<T>>(tile_scratch_ * count());
  }

  int64_t count() const { return groups_ * tiles_; }

  template <class P>
  void run(const P& p, void (*kernel)(const P&, RowRange, const T*, T*)) {
    torch::stable::parallel_for(0, count(), 1, [&](int64_t begin, int64_t end) {
      std::unique_ptr<Scratch<T>> own;
      if (!kept_) own = std::make_unique<Scratch<T>>(tile_scratch_);
      for (int64_t i = begin; i < end; ++i) {
        const int64_t group = i / tiles_, tile = i % tiles_, first = group * group_rows_;
        const RowRange rows{first + group_rows_ * tile / tiles_, first + group_rows_ * (tile + 1) / tiles_, i};
        T* scratch = kept_ ? kept_->get() + i * tile_scratch_ : own->get();
        kernel(p, rows, packed_.get(groups_ > 1 ? group : 0), scratch);
      }
    });
  }

 private:
  Packed<T> packed_;
  int64_t tile_scratch_, groups_, group_rows_, tiles_;
  std::unique_ptr<Scratch<T>> kept_;
};

// P: one of the parameter structs, run over the whole time axis.
template <class T, class P>
void run_tiles(const P& p, const In<T>& weight, int64_t weights, bool transpose,
               void (*kernel)(const P&, RowRange, const T*, T*)) {
  Tiles<T>(p.s, weight, weights, transpose, false).run(p, kernel);
}

}  // namespace rx
