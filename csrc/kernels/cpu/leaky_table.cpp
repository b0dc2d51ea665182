// The LeakyRNN kernels of one instruction set. Compiled once per set, each time with its own flags and its own RX_NS.
#include "kernels/cpu/leaky_backward.h"
#include "kernels/cpu/leaky_forward.h"
#include "kernels/cpu/leaky_jvp.h"
#include "kernels/cpu/outer.h"
#include "kernels/cpu/tables.h"

namespace rx {
namespace RX_NS {

template <class T>
int64_t tile_scratch(int64_t rows, int64_t n) {
  return 4 * rows * scratch_stride<T>(n);
}

template <class T>
LeakyKernels<T> table() {
  return {packed_size<T>, tile_scratch<T>,  panel_count<T>,   pack<T>,           product<T>,           outer_stride<T>,
          outer<T>,       outer_scratch<T>, leaky_forward<T>, leaky_backward<T>, leaky_forward_jvp<T>, leaky_backward_jvp<T>};
}

LeakyKernels<float> leaky_table_f32() {
  return table<float>();
}
LeakyKernels<double> leaky_table_f64() {
  return table<double>();
}

}  // namespace RX_NS
}  // namespace rx
