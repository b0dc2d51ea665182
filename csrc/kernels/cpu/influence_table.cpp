// The kernels of RTRL and SnAp of one instruction set; see leaky_table.cpp.
#include "kernels/cpu/rtrl_step.h"
#include "kernels/cpu/snap_step.h"
#include "kernels/cpu/tables.h"

namespace rx {
namespace RX_NS {

InfluenceKernels<float> influence_table_f32() {
  return {influence_tile_columns<float>(),
          rtrl_scratch<float>,
          rtrl_panel<float>,
          snap_values<float>,
          snap_scratch<float>,
          snap_owners<float>};
}
InfluenceKernels<double> influence_table_f64() {
  return {influence_tile_columns<double>(),
          rtrl_scratch<double>,
          rtrl_panel<double>,
          snap_values<double>,
          snap_scratch<double>,
          snap_owners<double>};
}

}  // namespace RX_NS
}  // namespace rx
