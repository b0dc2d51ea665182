// Controls of the emulated operations (csrc/ops/*_cuda.cpp under RX_CUDA_ON_CPU), and the rule of
// csrc/kernels/cuda/strategy.h as a function, for Python tests.
#include <torch/csrc/stable/library.h>

#include <string>
#include <tuple>

#include "emulator.h"
#include "kernels/cuda/strategy.h"

namespace {

// Order of threads and blocks (0 forward, 1 reversed, 2 random), its seed, and the architecture whose limits hold.
void emulate(int64_t order, int64_t seed, int64_t architecture) {
  rx::emulator::options().order = static_cast<rx::emulator::Order>(order);
  rx::emulator::options().seed = static_cast<uint64_t>(seed);
  STD_TORCH_CHECK(rx::emulator::set_architecture(static_cast<int>(architecture)), "unknown architecture");
}

// The shared memory and processors that a block and a card of this architecture have.
std::tuple<int64_t, int64_t> card(int64_t architecture) {
  const auto before = rx::emulator::options().limits;
  STD_TORCH_CHECK(rx::emulator::set_architecture(static_cast<int>(architecture)), "unknown architecture");
  const auto found = rx::emulator::options().limits;
  rx::emulator::options().limits = before;
  return {found.max_dynamic_shared, found.sm_count};
}

// (strategy, rows of a tile, bytes) for these sizes; asked as in cuda_strategy.
std::tuple<int64_t, int64_t, int64_t> rule(int64_t asked, int64_t shared, int64_t processors, int64_t n, int64_t gates,
                                           int64_t carries, int64_t weight, int64_t number, int64_t rows, bool multiplies) {
  const rx::cuda::Card card{shared, static_cast<int>(processors)};
  const rx::cuda::Sizes sizes{n, gates, carries, weight, number};
  const bool fits = rx::cuda::persistent_fits(card, sizes);
  const auto strategy = rx::cuda::choose(static_cast<rx::cuda::Strategy>(asked), multiplies, fits);
  return {static_cast<int64_t>(strategy), rx::cuda::tile_rows(card, weight, rows),
          rx::cuda::persistent_bytes(sizes, rx::cuda::kRowsMax)};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(rtrl_ext_emulated, m) {
  m.def("emulate(int order, int seed, int architecture) -> ()");
  m.def("card(int architecture) -> (int, int)");
  m.def(
      "rule(int asked, int shared, int processors, int n, int gates, int carries, int weight, int number, int rows, bool "
      "multiplies) "
      "-> (int, int, int)");
}
STABLE_TORCH_LIBRARY_IMPL(rtrl_ext_emulated, CompositeExplicitAutograd, m) {
  m.impl("emulate", TORCH_BOX(&emulate));
  m.impl("card", TORCH_BOX(&card));
  m.impl("rule", TORCH_BOX(&rule));
}
