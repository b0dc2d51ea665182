// The kernels of gated cells of one instruction set; see leaky_table.cpp.
#include "kernels/cpu/gated_backward.h"
#include "kernels/cpu/gated_forward.h"
#include "kernels/cpu/gated_jvp.h"
#include "kernels/cpu/tables.h"

namespace rx {
namespace RX_NS {

template <class T>
int64_t gated_scratch(int64_t rows, int64_t n) {
  return rows * (2 * gated_stride<T>(n, 1) + 2 * gated_stride<T>(n, 4));
}

GatedKernels<float> gated_table_f32() {
  return {gated_scratch<float>, gated_forward<float>, gated_backward<float>, gated_forward_jvp<float>,
          gated_backward_jvp<float>};
}
GatedKernels<double> gated_table_f64() {
  return {gated_scratch<double>, gated_forward<double>, gated_backward<double>, gated_forward_jvp<double>,
          gated_backward_jvp<double>};
}

}  // namespace RX_NS
}  // namespace rx
