// The elementary operations cells are written with: SIMD vectors on the CPU, plain scalars in CUDA kernels.
#pragma once
#if defined(__CUDACC__) || defined(RX_CUDA_ON_CPU)
#include "kernels/cuda/scalar.h"
#else
#include "kernels/cpu/simd.h"
#endif
