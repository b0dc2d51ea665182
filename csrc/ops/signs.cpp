// Random signs as a PyTorch op on the CPU.
#include "ops/signs.h"

#include <algorithm>

namespace rx {
namespace {

struct OnCpu {
  template <class T>
  static void run(const Signs<T>& p, const Tensor&) {
    const int64_t blocks = (p.count + RX_NS::kSignsPerDraw - 1) / RX_NS::kSignsPerDraw;
    for (int64_t i = 0; i < p.steps * p.B; ++i) {
      T* row = p.out + i * p.count;
      for (int64_t block = 0; block < blocks; ++block) {
        const RX_NS::RandomWords words = RX_NS::draw_signs(p, i / p.B, i % p.B, block);
        const int64_t begin = block * RX_NS::kSignsPerDraw, end = std::min<int64_t>(begin + RX_NS::kSignsPerDraw, p.count);
        for (int64_t j = begin; j < end; ++j) {
          const int64_t k = j - begin;
          row[j] = (words.w[k / 32] >> (k % 32)) & 1u ? T(1) : T(-1);
        }
      }
    }
  }
};

}  // namespace
}  // namespace rx

STABLE_TORCH_LIBRARY_FRAGMENT(rtrl_ext, m) {
  rx::define_signs(m);
}

STABLE_TORCH_LIBRARY_IMPL(rtrl_ext, CPU, m) {
  m.impl("random_signs", TORCH_BOX(&rx::random_signs<rx::OnCpu>));
}
