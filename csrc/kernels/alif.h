// Launch parameters of ALIF and LIF. No torch here. Shapes as in leaky.h; LIF has null a0, rho, beta, a and their gradients.
// Calls that cover a part of the steps, and what is added in place, are the CPU's alone.
#pragma once
#include "kernels/leaky.h"

namespace rx {

enum class Surrogate : int64_t { Triangular = 0, FastSigmoid = 1, Arctan = 2 };
enum class Reset : int64_t { Subtract = 0, Zero = 1 };

struct AlifShape {
  int64_t L, T, B, n;
  int64_t begin, end;      // the steps of this call; see LeakyShape, and `resume` below
  const int64_t* lengths;  // (B,) or null: row b is active for t < lengths[b]
  double v_th;
  bool scaling;  // the drive is multiplied by 1 - alpha
  Reset reset;
  bool resume = false;  // the call goes on where another one ended
};

template <class T>
struct AlifForward {
  AlifShape s;
  double gamma;
  Surrogate surrogate;
  int64_t refractory;  // steps of silence after a spike
  In<T> pre;           // (L|1, T, B, n); may be psi, whose numbers are written after it is read
  In<T> z0, v0, a0;    // (L|1, B, n) or null: zeros
  In<T> count0;        // (L|1, B, n) or null: zeros
  In<T> w;             // (L|1, n, n), row = postsynaptic
  In<T> alpha;         // (L|1, n)
  In<T> rho, beta;     // (L|1, n)
  T* z;                // (L, T, B, n)
  T* psi;              // (L, T, B, n)
  T* v;                // (L, T, B, n) or null
  T* a;                // (L, T, B, n) or null
  T *v_n, *a_n;        // (L, B, n)
  T* count_n;          // (L, B, n) or null
  In<T> drive;         // (L|1, T, B, n) or null, added to pre
  const T* bias;       // (n) or null, added to pre
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
  In<T> z, v;        // (L|1, T, B, n); read where the reset is to zero, and by `units`
  In<T> psi;         // (L|1, T, B, n)
  In<T> z0, v0;      // (L|1, B, n) or null, zeros; read where the reset is to zero, and by `units`
  In<T> w;           // (L|1, n, n) transport matrix; null for Local
  In<T> alpha;       // (L|1, n)
  In<T> rho, beta;   // (L|1, n)
  T* delta;          // (L, T, B, n), or with `part` (end - begin, rows, delta_row): this call's steps, the tile's rows
  T *gz0, *gv0;      // (L, B, n) or null, written by the call that covers step 0
  T* ga0;            // (L, B, n) or null
  T *dv, *da, *dx;   // (L, T, B, n) or null: adjoints of v, a and v - A
  bool part;
  int64_t delta_row;  // numbers between rows of delta with `part`, at least n
  T* bias;            // (n) or null: the tile adds its sum of delta over rows and steps
  T* units;           // (3, n) or null: the tile adds its gradients of alpha, rho and beta
  In<T> a, a0;        // (L|1, T, B, n), (L|1, B, n) or null, zeros; read by `units`
};

// One instruction set's kernels; `packed` and `scratch` as in LeakyKernels.
template <class T>
struct AlifKernels {
  int64_t (*scratch_size)(int64_t rows, int64_t n);
  void (*forward)(const AlifForward<T>&, RowRange, const T* packed, T* scratch);
  void (*backward)(const AlifBackward<T>&, RowRange, const T* packed, T* scratch);
  // As LeakyKernels' `outer` and to the same bits, fast where most of A's numbers are zero and the others are 1.
  void (*outer)(const Outer<T>&, T* scratch);
};

template <class T>
const AlifKernels<T>& alif_kernels();

}  // namespace rx
