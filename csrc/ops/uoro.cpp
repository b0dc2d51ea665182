// Steps of UORO as a PyTorch op on the CPU.
#include "ops/uoro.h"

#include <algorithm>

namespace rx {
namespace {

constexpr int64_t kGrain = 16384;  // numbers that are worth a thread

// f(block, first part, last part) for all parts of all blocks, in shares of nearly equal size. Parts know nothing of each
// other, so that any number of threads gives the same bits.
template <class T, class F>
void share_parts(const UoroCall<T>& call, F&& f) {
  const auto parts_of = [](const UoroBlock<T>& k) { return uoro_kernels<T>().parts(k.R, k.Q); };
  int64_t total = 0, parts = 0;
  for (const UoroBlock<T>& k : call.blocks) {
    total += k.R * k.Q;
    parts += parts_of(k);
  }
  const int64_t threads = std::max<int64_t>(1, torch::stable::get_num_threads());
  const int64_t shares = std::clamp<int64_t>(std::min(parts, total * call.step.B / kGrain), 1, threads);
  torch::stable::parallel_for(0, shares, shares > 1 ? 1 : 2, [&](int64_t begin, int64_t end) {
    const int64_t from = parts * begin / shares, to = parts * end / shares;
    int64_t before = 0;  // parts of the blocks before this one
    for (const UoroBlock<T>& k : call.blocks) {
      const int64_t count = parts_of(k);
      const int64_t first = std::clamp<int64_t>(from - before, 0, count), last = std::clamp<int64_t>(to - before, 0, count);
      if (first < last) f(k, first, last);
      before += count;
    }
  });
}

struct OnCpu {
  template <class T>
  static int64_t parts(int64_t R, int64_t Q) {
    return uoro_kernels<T>().parts(R, Q);
  }
  static int64_t padded(int64_t Q) { return Q + 2 * kUoroPad; }
  template <class T>
  static void run(UoroCall<T>& call, const Tensor&) {
    const UoroKernels<T>& kernels = uoro_kernels<T>();
    const UoroCall<T> first = call;
    Uoro<T>& p = call.step;
    const int64_t states = p.S * p.n;
    if (!call.known) {
      share_parts(call, [&](const UoroBlock<T>& k, int64_t begin, int64_t end) { kernels.square(p, k, begin, end); });
      kernels.norms(p);
    }
    for (int64_t k = 0; k < call.K; ++k) {
      call.at(k, first);
      torch::stable::parallel_for(0, p.B * states, std::max<int64_t>(1, kGrain / states),
                                  [&](int64_t begin, int64_t end) { kernels.move(p, begin, end); });
      torch::stable::parallel_for(0, p.B, std::max<int64_t>(1, kGrain / states),
                                  [&](int64_t begin, int64_t end) { kernels.weigh(p, begin, end); });
      share_parts(call, [&](const UoroBlock<T>& k, int64_t begin, int64_t end) { kernels.pass(p, k, begin, end); });
      kernels.norms(p);
    }
  }
};

}  // namespace
}  // namespace rx

STABLE_TORCH_LIBRARY_FRAGMENT(rtrl_ext, m) {
  rx::define_uoro(m);
}

STABLE_TORCH_LIBRARY_IMPL(rtrl_ext, CPU, m) {
  m.impl("uoro_step", TORCH_BOX(&rx::uoro_step<rx::OnCpu>));
}
