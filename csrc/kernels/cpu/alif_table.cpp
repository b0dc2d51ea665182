// The kernels of ALIF and LIF of one instruction set; see leaky_table.cpp.
#include "kernels/cpu/alif_backward.h"
#include "kernels/cpu/alif_forward.h"
#include "kernels/cpu/outer_spikes.h"
#include "kernels/cpu/tables.h"

namespace rx {
namespace RX_NS {

template <class T>
int64_t alif_scratch(int64_t rows, int64_t n) {
  return rows * 5 * scratch_stride<T>(n);
}

AlifKernels<float> alif_table_f32() {
  return {alif_scratch<float>, alif_forward<float>, alif_backward<float>, outer_spikes<float>};
}
AlifKernels<double> alif_table_f64() {
  return {alif_scratch<double>, alif_forward<double>, alif_backward<double>, outer_spikes<double>};
}

}  // namespace RX_NS
}  // namespace rx
