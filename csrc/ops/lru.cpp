// The scans of the LRU as PyTorch ops on the CPU.
#include "kernels/lru.h"

#include <algorithm>

#include "ops/tensors.h"

namespace rx {
namespace {

constexpr int64_t kRowsMax = 64;
constexpr int64_t kGrain = 16384;  // numbers of a sequence that are worth a thread

// Splits rows among threads; where there are fewer rows than threads, their units too: units know nothing of each other, so
// that this needs neither carries nor a second pass, and any number of threads gives the same bits.
template <class T, class P>
void run(const P& p, void (*kernel)(const P&, const LruPiece&, T*), bool scratched) {
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

std::tuple<Tensor, Tensor> scan(const Tensor& lam, const Tensor& u, const Tensor& s0, const OptionalTensor& lengths,
                                int64_t window) {
  STD_TORCH_CHECK(u.dim() == 5, "u must have 5 dimensions (L, T, B, 2, n)");
  STD_TORCH_CHECK(window >= 0, "window must be at least 0");
  const int64_t T_ = u.size(1), B = u.size(2), n = u.size(4);
  Arguments args(u);
  args.add(u, "u", {T_, B, 2, n});
  args.add(lam, "lam", {2, n});
  args.add(s0, "s0", {B, 2, n});
  const int64_t L = args.L();
  Tensor states = make(u, {L, T_, B, 2, n}), s_n = make(u, {L, B, 2, n});
  if (lengths || T_ == 0) torch::stable::zero_(s_n);  // of rows whose length is out of range
  if (s_n.numel() == 0 || T_ == 0) return {states, s_n};
  const LruShape shape{L, T_, B, n, 0, T_, args.lengths(lengths, B)};
  with_dtype(u.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    const LruScan<T> p{shape, args.in<T>(lam), args.in<T>(u), args.in<T>(s0), out<T>(states), out<T>(s_n)};
    run<T>(p, lru_kernels<T>().scan, false);
  });
  return {states, s_n};
}

std::tuple<Tensor, Tensor, Tensor> backward(const OptionalTensor& gs, const OptionalTensor& gs_n, const Tensor& lam,
                                            const Tensor& states, const Tensor& s0, const OptionalTensor& lengths,
                                            int64_t window, bool want_lam) {
  STD_TORCH_CHECK(states.dim() == 5, "states must have 5 dimensions (L, T, B, 2, n)");
  STD_TORCH_CHECK(window >= 0, "window must be at least 0");
  const int64_t T_ = states.size(1), B = states.size(2), n = states.size(4);
  Arguments args(states);
  args.add(states, "states", {T_, B, 2, n});
  args.add(gs, "gs", {T_, B, 2, n});
  args.add(gs_n, "gs_n", {B, 2, n});
  args.add(lam, "lam", {2, n});
  args.add(s0, "s0", {B, 2, n});
  const int64_t L = args.L();
  Tensor a = make(states, {L, T_, B, 2, n}), gs0 = make(states, {L, B, 2, n});
  Tensor glam = want_lam ? make(states, {L, 2, n}) : make(states, {0});
  if (gs0.numel() == 0 || T_ == 0) {
    torch::stable::zero_(gs0);
    torch::stable::zero_(glam);
    return {a, gs0, glam};
  }
  const LruShape shape{L, T_, B, n, 0, T_, args.lengths(lengths, B)};
  with_dtype(states.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    const Scratch<T> sums(want_lam ? L * B * 2 * n : 1);
    const LruBackward<T> p{shape,
                           window,
                           args.in<T>(lam),
                           args.in<T>(gs),
                           args.in<T>(gs_n),
                           args.in<T>(states),
                           args.in<T>(s0),
                           out<T>(a),
                           out<T>(gs0),
                           want_lam ? sums.get() : nullptr};
    run<T>(p, lru_kernels<T>().backward, want_lam);
    if (want_lam) sum_rows(p.sums, L, B, 2 * n, out<T>(glam));
  });
  return {a, gs0, glam};
}

}  // namespace
}  // namespace rx

STABLE_TORCH_LIBRARY_FRAGMENT(rtrl_ext, m) {
  m.def("lru_scan(Tensor lam, Tensor u, Tensor s0, Tensor? lengths, int window) -> (Tensor, Tensor)");
  m.def(
      "lru_backward(Tensor? gs, Tensor? gs_n, Tensor lam, Tensor states, Tensor s0, Tensor? lengths, int window, "
      "bool want_lam) -> (Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(rtrl_ext, CPU, m) {
  m.impl("lru_scan", TORCH_BOX(&rx::scan));
  m.impl("lru_backward", TORCH_BOX(&rx::backward));
}
