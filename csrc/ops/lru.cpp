// The scans of the LRU as PyTorch ops on the CPU.
#include "ops/lru.h"

#include <algorithm>

namespace rx {
namespace {

constexpr int64_t kRowsMax = 64;
constexpr int64_t kGrain = 16384;  // numbers of a sequence that are worth a thread

// Splits rows among threads; where there are fewer rows than threads, their units too: units know nothing of each other, so
// that this needs neither carries nor a second pass, and any number of threads gives the same bits.
template <class T, class P>
void split(const P& p, void (*kernel)(const P&, const LruPiece&, T*), bool scratched) {
  const int64_t rows = p.s.L * p.s.B, n = p.s.n, line = 64 / static_cast<int64_t>(sizeof(T)), lines = (n + line - 1) / line;
  const int64_t worth = std::max<int64_t>(1, rows * p.s.T * 2 * n / kGrain);
  const int64_t threads = std::min<int64_t>(std::max<int64_t>(1, torch::stable::get_num_threads()), worth);
  const int64_t tiles = std::min(rows, std::max(threads, (rows + kRowsMax - 1) / kRowsMax));
  const int64_t splits = std::min(lines, (threads + tiles - 1) / tiles), wide = (lines + splits - 1) / splits * line;
  const int64_t size = scratched ? lru_kernels<T>().scratch_size((rows + tiles - 1) / tiles, wide) : 1;
  torch::stable::parallel_for(0, tiles * splits, threads > 1 ? 1 : tiles * splits, [&](int64_t begin, int64_t end) {
    const Scratch<T> scratch(size);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t tile = i / splits, split = i % splits;
      const RowRange range{rows * tile / tiles, rows * (tile + 1) / tiles, i};
      const LruPiece piece{range, lines * split / splits * line, std::min(n, lines * (split + 1) / splits * line)};
      kernel(p, piece, scratch.get());
    }
  });
}

// Sums (B, 2 n) over rows for each of L, in order.
template <class T>
void sum_rows(const T* rows, int64_t L, int64_t B, int64_t width, T* out) {
  for (int64_t l = 0; l < L; ++l) {
    for (int64_t j = 0; j < width; ++j) out[l * width + j] = 0;
    for (int64_t b = 0; b < B; ++b) {
      for (int64_t j = 0; j < width; ++j) out[l * width + j] += rows[(l * B + b) * width + j];
    }
  }
}

struct OnCpu {
  template <class T>
  static void run(const LruScan<T>& p, const Tensor&) {
    split<T>(p, lru_kernels<T>().scan, false);
  }
  template <class T>
  static void run(LruBackward<T> p, const Tensor&, T* glam) {
    const int64_t width = 2 * p.s.n;
    const Scratch<T> sums(glam ? p.s.L * p.s.B * width : 1);
    p.sums = glam ? sums.get() : nullptr;
    split<T>(p, lru_kernels<T>().backward, glam != nullptr);
    if (glam) sum_rows(p.sums, p.s.L, p.s.B, width, glam);
  }
};

}  // namespace
}  // namespace rx

STABLE_TORCH_LIBRARY_FRAGMENT(rtrl_ext, m) {
  rx::define_lru(m);
}

STABLE_TORCH_LIBRARY_IMPL(rtrl_ext, CPU, m) {
  m.impl("lru_scan", TORCH_BOX(&rx::lru_scan<rx::OnCpu>));
  m.impl("lru_backward", TORCH_BOX(&rx::lru_backward<rx::OnCpu>));
}
