// The kernels of the LRU of one instruction set; see leaky_table.cpp.
#include "kernels/cpu/lru_backward.h"
#include "kernels/cpu/lru_scan.h"
#include "kernels/cpu/tables.h"

namespace rx {
namespace RX_NS {

LruKernels<float> lru_table_f32() {
  return {lru_scratch<float>, lru_scan<float>, lru_backward<float>};
}
LruKernels<double> lru_table_f64() {
  return {lru_scratch<double>, lru_scan<double>, lru_backward<double>};
}

}  // namespace RX_NS
}  // namespace rx
