// The elementary operations cells are written with: SIMD vectors on the CPU, plain scalars under nvcc.
#pragma once
#ifdef __CUDACC__
#include "kernels/cuda/scalar.h"
#else
#include "kernels/cpu/simd.h"
#endif
