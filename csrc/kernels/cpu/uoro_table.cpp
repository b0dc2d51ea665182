// The kernels of UORO of one instruction set; see leaky_table.cpp.
#include "kernels/cpu/tables.h"
#include "kernels/cpu/uoro.h"

namespace rx {
namespace RX_NS {

UoroKernels<float> uoro_table_f32() {
  return {uoro_parts<float>, uoro_square<float>, uoro_norms<float>, uoro_move<float>, uoro_weigh<float>, uoro_pass<float>};
}
UoroKernels<double> uoro_table_f64() {
  return {uoro_parts<double>, uoro_square<double>, uoro_norms<double>,
          uoro_move<double>,  uoro_weigh<double>,  uoro_pass<double>};
}

}  // namespace RX_NS
}  // namespace rx
