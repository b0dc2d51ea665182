// Launch parameters of the LeakyRNN recurrence: raw pointers, sizes, flags. No torch here.
// T: the type of computation; E: that of arrays which may be half precision (CUDA; elsewhere E is T).
// Shapes: L leading (replicas or tangent directions), T steps, B batch rows, n units. An `In` with lead = false has size 1 in
// the leading dimension and is shared by all L. All arrays are contiguous; outputs never overlap inputs or each other.
#pragma once
#include <cstdint>

#include "cells/transport.h"
#include "kernels/half.h"

namespace rx {

enum class Form : int64_t { Rate = 0, Voltage = 1 };
enum class Activation : int64_t { Tanh = 0, Relu = 1, Softplus = 2, Identity = 3 };
template <class T>
struct In {
  const T* p = nullptr;
  bool lead = false;
};

struct LeakyShape {
  int64_t L, T, B, n;
  Form form;
  Activation act;
  bool unit_leak;          // rate form with leak == 1: phi is y, aux is absent
  const int64_t* lengths;  // (B,) or null: row b is active for t < lengths[b]
  // A call covers the steps [begin, end) of the arrays. One call with [0, T) is the whole; a sequence of calls that cover it
  // piece by piece keeps its scratch between them, and all but the first have `resume` set.
  int64_t begin, end;
  bool resume;
};

template <class T, class E = T>
struct LeakyForward {
  LeakyShape s;
  In<E> pre;      // (L|1, T, B, n)
  In<E> y0, s0;   // (L|1, B, n)
  In<E> w;        // (L|1, n, n) as given, row = postsynaptic
  In<T> leak;     // (L|1, n)
  In<E> drive;    // (L|1, T, B, n) or null, added to pre
  const E* bias;  // (n) or null, added to pre
  E* y;           // (L, T, B, n)
  T* aux;         // (L, T, B, n); rate: phi(u), null with unit_leak; voltage: v
  E* s_n;         // (L, B, n)
};

template <class T, class E = T>
struct LeakyBackward {
  LeakyShape s;
  Transport transport;
  double mu;       // Hop
  int64_t window;  // Full: cut every `window` steps counted from the end, 0 = never
  double decay;    // Local: signal filter
  In<E> gy;        // (L|1, T, B, n) or null
  In<T> gaux;      // (L|1, T, B, n) or null
  In<E> gs_n;      // (L|1, B, n) or null
  In<E> y;         // (L|1, T, B, n)
  In<T> aux;       // (L|1, T, B, n)
  In<E> w;         // (L|1, n, n) transport matrix; null for Local
  In<T> leak;      // (L|1, n)
  E* delta;        // (L, T, B, n), or with `part` (end - begin, rows of the tile, n): the steps of this call alone
  bool part;
  E* gy0;   // (L, B, n) or null, written by the call that covers step 0
  E* gs0;   // (L, B, n) or null
  T* lam;   // (L, T, B, n) or null
  T* bias;  // (tiles, n) or null: each tile adds its sum of delta over rows and steps
};

template <class T, class E = T>
struct LeakyForwardJvp {
  LeakyShape s;
  In<E> dpre;      // (L|1, T, B, n), includes y_{t-1} dW^T
  In<E> dy0, ds0;  // (L|1, B, n)
  In<T> dleak;     // (L|1, n) or null
  In<E> dbias;     // (L|1, n) or null, added to dpre
  In<E> y;         // (L|1, T, B, n)
  In<T> aux;       // (L|1, T, B, n)
  In<E> s0;        // (L|1, B, n) or null: zeros
  In<E> w;         // (L|1, n, n)
  In<T> leak;      // (L|1, n)
  E* dy;           // (L, T, B, n)
  T* daux;         // (L, T, B, n) or null: tangent of aux
  E* ds_n;         // (L, B, n)
  E* du;           // (L, T, B, n) or null: tangent of the pre-activation
  In<T> lam;       // (L|1, T, B, n) or null
  T* bend;         // (L, T, B, n) or null: with lam, the gradient of phi through its slope in reverse over reverse
};

template <class T, class E = T>
struct LeakyBackwardJvp {
  LeakyShape s;
  bool part;    // dgy and ddelta are (L, end - begin, B, n), the steps of this call alone, and may be the same array
  In<E> dgy;    // (L|1, T, B, n), includes delta_{t+1} dW
  In<E> dgs_n;  // (L|1, B, n) or null
  In<T> dleak;  // (L|1, n) or null
  In<E> dy;     // (L|1, T, B, n)
  In<T> daux;   // (L|1, T, B, n)
  In<E> y;      // (L|1, T, B, n)
  In<T> aux;    // (L|1, T, B, n)
  In<T> lam;    // (L|1, T, B, n)
  In<E> delta;  // (L|1, T, B, n)
  In<E> w;      // (L|1, n, n)
  In<T> leak;   // (L|1, n)
  E* ddelta;    // (L, T, B, n)
  E* dgy0;      // (L, B, n)
  E* dgs0;      // (L, B, n)
  T* dlam;      // (L, T, B, n) or null
};

// C (M, N) += A^T B over `steps` times `rows` rows: a matrix's gradient from gradients of outputs (A) and inputs (B). Rows of A
// lie lda apart within a step and a_step from one step to the next; B likewise. Columns [begin, end) of A are rows of C.
template <class T>
struct Outer {
  int64_t steps, rows;
  const T* a;  // (steps, rows, M)
  int64_t lda, a_step;
  const T* b;  // (steps, rows, N)
  int64_t ldb, b_step;
  int64_t begin, end, N;
  T* c;  // (M, ldc), ldc a multiple of the vector; see outer_stride
  int64_t ldc;
};

// C (steps, rows, N) = A B with B (K, N) packed.
template <class T>
struct Product {
  int64_t steps, rows;
  const T* a;  // (steps, rows, K)
  int64_t lda, a_step;
  const T* packed;
  int64_t K, N;
  T* c;  // (steps, rows, N)
  int64_t ldc, c_step;
};

// The tile's number; row r of a tile is row b of the batch under leading index l.
struct RowRange {
  int64_t begin, end;  // in the L * B rows, l = r / B, b = r % B
  int64_t tile;
};

// One instruction set's kernels. `packed` holds the packed recurrent matrices, `stride` numbers apart (0: shared);
// `scratch` is scratch_size numbers owned by the caller for the duration of the call, 64-byte aligned.
template <class T>
struct LeakyKernels {
  int64_t (*packed_size)(int64_t k, int64_t n);
  int64_t (*scratch_size)(int64_t rows, int64_t n);
  // Panels [begin, end) of B (k, n), element (i, j) at b[i * row + j * col]; panel_count of them.
  int64_t (*panel_count)(int64_t n);
  void (*pack)(const T* b, int64_t row, int64_t col, int64_t k, int64_t n, int64_t begin, int64_t end, T* out);
  void (*product)(const Product<T>&);
  int64_t (*outer_stride)(int64_t N);
  void (*outer)(const Outer<T>&, T* scratch /* (outer_scratch(M)) */);
  int64_t (*outer_scratch)(int64_t M);
  void (*forward)(const LeakyForward<T>&, RowRange, const T* packed, T* scratch);
  void (*backward)(const LeakyBackward<T>&, RowRange, const T* packed, T* scratch);
  void (*forward_jvp)(const LeakyForwardJvp<T>&, RowRange, const T* packed, T* scratch);
  void (*backward_jvp)(const LeakyBackwardJvp<T>&, RowRange, const T* packed, T* scratch);
};

// The best instruction set of this machine, chosen once; RTRL_EXT_ISA=baseline|avx2|avx512 lowers the choice.
template <class T>
const LeakyKernels<T>& leaky_kernels();
const char* isa_name();
const char* isa_compiled();

}  // namespace rx
