// Trace updates as PyTorch ops on the CPU.
#include "ops/trace.h"

#include <algorithm>

namespace rx {
namespace {

constexpr int64_t kRowsMin = 16;           // parameter rows of a piece: their factors share cache lines
constexpr int64_t kGrain = 16384;          // numbers of a trace, times steps, that are worth a thread
constexpr int64_t kGrainRankOne = 262144;  // multiply-adds

// f(first, end) over parameter rows in pieces of whole kRowsMin, at most one per thread.
template <class F>
void split(int64_t rows, int64_t worth, F&& f) {
  const int64_t most = std::min<int64_t>(torch::stable::get_num_threads(), worth), groups = (rows + kRowsMin - 1) / kRowsMin;
  const int64_t pieces = std::max<int64_t>(1, std::min(most, groups));
  torch::stable::parallel_for(0, pieces, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      f(groups * i / pieces * kRowsMin, std::min(rows, groups * (i + 1) / pieces * kRowsMin));
    }
  });
}

struct OnCpu {
  template <class T>
  static void run(const TraceStep<T>& p, const Tensor&) {
    const TraceShape& s = p.s;
    const auto& kernels = trace_kernels<T>();
    split(s.R, s.B * s.S * s.R * (s.Q + 1) * (s.K + s.signals) / kGrain, [&](int64_t first, int64_t end) {
      const Scratch<T> scratch(kernels.scratch_size(s));
      kernels.step(p, first, end, scratch.get());
    });
  }
  template <class T>
  static void run(const RankOneStep<T>& p, const Tensor&) {
    const TraceShape& s = p.s;
    const auto& kernels = trace_kernels<T>();
    split(s.B, s.B * s.Q * (s.K + s.signals) / kGrain, [&](int64_t first, int64_t end) { kernels.filter(p, first, end); });
    if (s.signals == 0) return;
    split(s.R, s.signals * s.B * s.R * (s.Q + 1) / kGrainRankOne, [&](int64_t first, int64_t end) {
      const Scratch<T> scratch(kernels.rank_one_scratch(s, end - first));
      kernels.contract(p, first, end, scratch.get());
    });
  }
};

}  // namespace
}  // namespace rx

STABLE_TORCH_LIBRARY_FRAGMENT(rtrl_ext, m) {
  rx::define_trace(m);
}

STABLE_TORCH_LIBRARY_IMPL(rtrl_ext, CPU, m) {
  m.impl("trace_step", TORCH_BOX(&rx::trace_step<rx::OnCpu>));
  m.impl("rank1_trace_step", TORCH_BOX(&rx::rank1_trace_step<rx::OnCpu>));
}
