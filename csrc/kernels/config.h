// Names that differ between builds of the same source: the namespace (one per instruction set) and function qualifiers.
#pragma once

#ifndef RX_NS
#define RX_NS host
#endif

#ifdef __CUDACC__
#define RX_BOTH __host__ __device__  // of constexpr functions
#define RX_FN __host__ __device__ __forceinline__
#else
#define RX_BOTH
#define RX_FN inline __attribute__((always_inline))
#endif
