// The kernels of traces of one instruction set; see leaky_table.cpp.
#include "kernels/cpu/tables.h"
#include "kernels/cpu/trace_rank1.h"
#include "kernels/cpu/trace_step.h"

namespace rx {
namespace RX_NS {

template <class T>
TraceKernels<T> trace_table() {
  return {trace_scratch<T>, trace_step<T>, rank_one_filter<T>, rank_one_scratch<T>, rank_one_contract<T>};
}

TraceKernels<float> trace_table_f32() {
  return trace_table<float>();
}
TraceKernels<double> trace_table_f64() {
  return trace_table<double>();
}

}  // namespace RX_NS
}  // namespace rx
