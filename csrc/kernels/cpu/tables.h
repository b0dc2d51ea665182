// Each instruction set's table of kernels, by namespace.
#pragma once
#include "kernels/alif.h"
#include "kernels/gated.h"
#include "kernels/influence.h"
#include "kernels/lru.h"
#include "kernels/trace.h"
#include "kernels/uoro.h"

#define RX_DECLARE_TABLES(NS)                     \
  namespace rx {                                  \
  namespace NS {                                  \
  LeakyKernels<float> leaky_table_f32();          \
  LeakyKernels<double> leaky_table_f64();         \
  GatedKernels<float> gated_table_f32();          \
  GatedKernels<double> gated_table_f64();         \
  AlifKernels<float> alif_table_f32();            \
  AlifKernels<double> alif_table_f64();           \
  LruKernels<float> lru_table_f32();              \
  LruKernels<double> lru_table_f64();             \
  TraceKernels<float> trace_table_f32();          \
  TraceKernels<double> trace_table_f64();         \
  InfluenceKernels<float> influence_table_f32();  \
  InfluenceKernels<double> influence_table_f64(); \
  UoroKernels<float> uoro_table_f32();            \
  UoroKernels<double> uoro_table_f64();           \
  }                                               \
  }

RX_DECLARE_TABLES(baseline)
#ifdef RX_X86
RX_DECLARE_TABLES(avx2)
RX_DECLARE_TABLES(avx512)
#endif
