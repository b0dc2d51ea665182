// Steps of RTRL and SnAp as PyTorch ops on the CPU.
#include "ops/influence.h"

#include <algorithm>

namespace rx {
namespace {

constexpr int64_t kPanelBytes = 64 << 10;  // a panel of the influence, twice with pending steps, stays in L2
constexpr int64_t kGrain = 1 << 16;        // multiply-adds that are worth a thread

int64_t threads_for(double work) {
  const double worth = work / kGrain;
  const int64_t threads = std::max<int64_t>(1, torch::stable::get_num_threads());
  return worth < 1 ? 1 : worth < static_cast<double>(threads) ? static_cast<int64_t>(worth) : threads;
}

struct OnCpu {
  // Threads share panels of columns; each goes through the whole batch, so that the gradient needs no sum over threads.
  template <class T>
  static void run(const RtrlStep<T>& p, const Tensor&, const Tensor&) {
    const InfluenceKernels<T>& kernels = influence_kernels<T>();
    const InfluenceShape& s = p.s;
    const int64_t N = s.S * s.n, all = s.R * s.Q, tile = kernels.columns, tiles = (all + tile - 1) / tile;
    const double work = static_cast<double>(std::max<int64_t>(1, s.K) * s.B * N * N) * static_cast<double>(all);
    const int64_t threads = threads_for(work);
    const int64_t most = std::max<int64_t>(1, kPanelBytes / static_cast<int64_t>(sizeof(T)) / (N * tile));
    int64_t panels = (tiles + most - 1) / most;
    panels = std::min(tiles, (panels + threads - 1) / threads * threads);
    const int64_t scratch_size = kernels.rtrl_scratch(s, (tiles + panels - 1) / panels * tile);
    torch::stable::parallel_for(0, panels, threads > 1 ? 1 : panels, [&](int64_t begin, int64_t end) {
      const Scratch<T> scratch(scratch_size);
      for (int64_t i = begin; i < end; ++i) {
        kernels.rtrl(p, tiles * i / panels * tile, std::min(all, tiles * (i + 1) / panels * tile), scratch.get());
      }
    });
  }

  // Threads share owners, in runs of nearly equal work.
  template <class T>
  static void run(SnapStep<T> p, const Tensor&, int64_t) {
    const InfluenceKernels<T>& kernels = influence_kernels<T>();
    const InfluenceShape& s = p.s;
    std::vector<double> work(static_cast<size_t>(s.n) + 1, 0.0);
    for (int64_t i = 0; i < s.n; ++i) {
      const int64_t first = p.pattern.unit_at[i], units = p.pattern.unit_at[i + 1] - first;
      const int64_t links = p.pattern.link_at[first + units] - p.pattern.link_at[first];
      const int64_t width = s.R / s.n * (p.pattern.column_at[i + 1] - p.pattern.column_at[i]);
      const double terms = static_cast<double>(s.S * (links ? links : units * units) + units);
      work[static_cast<size_t>(i) + 1] =
          work[static_cast<size_t>(i)] + terms * static_cast<double>(std::max<int64_t>(1, s.K) * s.B * s.S * width);
    }
    const int64_t threads = std::min(s.n, threads_for(work.back()));
    const auto bound = [&](int64_t i) -> int64_t {
      if (i == threads) return s.n;
      const double share = work.back() * static_cast<double>(i) / static_cast<double>(threads);
      return std::lower_bound(work.begin(), work.end() - 1, share) - work.begin();
    };
    const int64_t slices = s.K * s.B;
    const Scratch<T> values(slices * s.S * s.S * p.pattern.pairs_all);
    p.values = values.get();
    torch::stable::parallel_for(0, slices, threads > 1 ? 1 : slices,
                                [&](int64_t begin, int64_t end) { kernels.snap_values(p, begin, end); });
    const int64_t scratch_size = kernels.snap_scratch(p);
    torch::stable::parallel_for(0, threads, 1, [&](int64_t begin, int64_t end) {
      const Scratch<T> scratch(scratch_size);
      for (int64_t i = begin; i < end; ++i) kernels.snap(p, bound(i), bound(i + 1), scratch.get());
    });
  }
};

}  // namespace
}  // namespace rx

STABLE_TORCH_LIBRARY_FRAGMENT(rtrl_ext, m) {
  rx::define_influence(m);
}

STABLE_TORCH_LIBRARY_IMPL(rtrl_ext, CPU, m) {
  m.impl("rtrl_step", TORCH_BOX(&rx::rtrl_step<rx::OnCpu>));
  m.impl("snap_step", TORCH_BOX(&rx::snap_step<rx::OnCpu>));
}
