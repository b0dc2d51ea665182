// Chooses the instruction set once per process.
#include <cstdlib>
#include <cstring>

#include "kernels/cpu/tables.h"

namespace rx {
namespace {

enum Isa { kBaseline, kAvx2, kAvx512 };
const char* const kNames[] = {"baseline", "avx2", "avx512"};

Isa detect() {
  Isa best = kBaseline;
#ifdef RX_X86
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) best = kAvx2;
  if (best == kAvx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw")) {
    best = kAvx512;
  }
#endif
  if (const char* wanted = std::getenv("RTRL_EXT_ISA")) {
    for (int i = 0; i < best; ++i) {
      if (std::strcmp(wanted, kNames[i]) == 0) return static_cast<Isa>(i);
    }
  }
  return best;
}

Isa isa() {
  static const Isa chosen = detect();
  return chosen;
}

}  // namespace

// The table of the instruction set in use.
#ifdef RX_X86
#define RX_CHOOSE(table) (isa() == kAvx512 ? avx512::table() : isa() == kAvx2 ? avx2::table() : baseline::table())
#else
#define RX_CHOOSE(table) baseline::table()
#endif

template <>
const LeakyKernels<float>& leaky_kernels<float>() {
  static const LeakyKernels<float> table = RX_CHOOSE(leaky_table_f32);
  return table;
}
template <>
const LeakyKernels<double>& leaky_kernels<double>() {
  static const LeakyKernels<double> table = RX_CHOOSE(leaky_table_f64);
  return table;
}
template <>
const GatedKernels<float>& gated_kernels<float>() {
  static const GatedKernels<float> table = RX_CHOOSE(gated_table_f32);
  return table;
}
template <>
const GatedKernels<double>& gated_kernels<double>() {
  static const GatedKernels<double> table = RX_CHOOSE(gated_table_f64);
  return table;
}
template <>
const AlifKernels<float>& alif_kernels<float>() {
  static const AlifKernels<float> table = RX_CHOOSE(alif_table_f32);
  return table;
}
template <>
const AlifKernels<double>& alif_kernels<double>() {
  static const AlifKernels<double> table = RX_CHOOSE(alif_table_f64);
  return table;
}
template <>
const LruKernels<float>& lru_kernels<float>() {
  static const LruKernels<float> table = RX_CHOOSE(lru_table_f32);
  return table;
}
template <>
const LruKernels<double>& lru_kernels<double>() {
  static const LruKernels<double> table = RX_CHOOSE(lru_table_f64);
  return table;
}
template <>
const TraceKernels<float>& trace_kernels<float>() {
  static const TraceKernels<float> table = RX_CHOOSE(trace_table_f32);
  return table;
}
template <>
const TraceKernels<double>& trace_kernels<double>() {
  static const TraceKernels<double> table = RX_CHOOSE(trace_table_f64);
  return table;
}
template <>
const InfluenceKernels<float>& influence_kernels<float>() {
  static const InfluenceKernels<float> table = RX_CHOOSE(influence_table_f32);
  return table;
}
template <>
const InfluenceKernels<double>& influence_kernels<double>() {
  static const InfluenceKernels<double> table = RX_CHOOSE(influence_table_f64);
  return table;
}
template <>
const UoroKernels<float>& uoro_kernels<float>() {
  static const UoroKernels<float> table = RX_CHOOSE(uoro_table_f32);
  return table;
}
template <>
const UoroKernels<double>& uoro_kernels<double>() {
  static const UoroKernels<double> table = RX_CHOOSE(uoro_table_f64);
  return table;
}

const char* isa_name() {
  return kNames[isa()];
}
const char* isa_compiled() {
#ifdef RX_X86
  return "baseline avx2 avx512";
#else
  return "baseline";
#endif
}

}  // namespace rx
