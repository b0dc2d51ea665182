// Launch parameters of ALIF and LIF. No torch here. Shapes as in leaky.h; LIF has null a0, rho, beta, a and their gradients.
#pragma once
#include "kernels/leaky.h"

namespace rx {

enum class Surrogate : int64_t { Triangular = 0, FastSigmoid = 1, Arctan = 2 };
enum class Reset : int64_t { Subtract = 0, Zero = 1 };

struct AlifShape {
  int64_t L, T, B, n;
  int64_t begin, end;      // 0 and T: a call covers all steps
  const int64_t* lengths;  // (B,) or null: row b is active for t < lengths[b]
  double v_th;
  bool scaling;  // the drive is multiplied by 1 - alpha
  Reset reset;
};

template <class T>
struct AlifForward {
  AlifShape s;
  double gamma;
  Surrogate surrogate;
  int64_t refractory;  // steps of silence after a spike
  In<T> pre;           // (L|1, T, B, n)
  In<T> z0, v0, a0;    // (L|1, B, n)
  In<T> count0;        // (L|1, B, n) or null: no refractory period
  In<T> w;             // (L|1, n, n), row = postsynaptic
  In<T> alpha;         // (L|1, n)
  In<T> rho, beta;     // (L|1, n)
  T* z;                // (L, T, B, n)
  T* psi;              // (L, T, B, n)
  T* v;                // (L, T, B, n) or null
  T* a;                // (L, T, B, n) or null
  T *v_n, *a_n;        // (L, B, n)
  T* count_n;          // (L, B, n) or null
};

template <class T>
struct AlifBackward {
  AlifShape s;
  Transport transport;
  double mu;         // Hop
  int64_t window;    // Full, Local: cut every `window` steps counted from the end, 0 = never
  double decay;      // Local: signal filter
  In<T> gz;          // (L|1, T, B, n) or null
  In<T> gv_n, ga_n;  // (L|1, B, n) or null
  In<T> z, v;        // (L|1, T, B, n); read where the reset is to zero
  In<T> psi;         // (L|1, T, B, n)
  In<T> z0, v0;      // (L|1, B, n); read where the reset is to zero
  In<T> w;           // (L|1, n, n) transport matrix; null for Local
  In<T> alpha;       // (L|1, n)
  In<T> rho, beta;   // (L|1, n)
  T* delta;          // (L, T, B, n)
  T *gz0, *gv0;      // (L, B, n)
  T* ga0;            // (L, B, n)
  T *dv, *da, *dx;   // (L, T, B, n) or null: adjoints of v, a and v - A
};

// One instruction set's kernels; `packed` and `scratch` as in LeakyKernels.
template <class T>
struct AlifKernels {
  int64_t (*scratch_size)(int64_t rows, int64_t n);
  void (*forward)(const AlifForward<T>&, RowRange, const T* packed, T* scratch);
  void (*backward)(const AlifBackward<T>&, RowRange, const T* packed, T* scratch);
};

template <class T>
const AlifKernels<T>& alif_kernels();

}  // namespace rx
