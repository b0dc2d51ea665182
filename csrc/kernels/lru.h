// Launch parameters of the LRU's scans. No torch here. Shapes as in leaky.h; complex numbers are planes: (.., 2, n) holds n
// real parts, then n imaginary ones.
#pragma once
#include "kernels/leaky.h"

namespace rx {

struct LruShape {
  int64_t L, T, B, n;
  int64_t begin, end;      // 0 and T: a call covers all steps
  const int64_t* lengths;  // (B,) or null: row b is active for t < lengths[b]
};

// s_t = lambda s_{t-1} + u_t; zero after a row's length.
template <class T>
struct LruScan {
  LruShape s;
  In<T> lam;  // (L|1, 2, n)
  In<T> u;    // (L|1, T, B, 2, n)
  In<T> s0;   // (L|1, B, 2, n)
  T* states;  // (L, T, B, 2, n)
  T* s_n;     // (L, B, 2, n), after each row's last step
};

// a_t = gs_t (+ gs_n at a row's last step) + conj(lambda) a_{t+1}; zero after a row's length.
template <class T>
struct LruBackward {
  LruShape s;
  int64_t window;  // cut every `window` steps counted from a row's end, 0 = never
  In<T> lam;       // (L|1, 2, n)
  In<T> gs;        // (L|1, T, B, 2, n) or null
  In<T> gs_n;      // (L|1, B, 2, n) or null
  In<T> states;    // (L|1, T, B, 2, n)
  In<T> s0;        // (L|1, B, 2, n)
  T* a;            // (L, T, B, 2, n)
  T* gs0;          // (L, B, 2, n): conj(lambda) a_0
  T* sums;         // (L, B, 2, n) or null: sum over t of a_t conj(s_{t-1}), row by row
};

// Rows of L * B, at most 64, and the units [first, end) of them: any split gives the same bits.
struct LruPiece {
  RowRange rows;
  int64_t first, end;
};

// One instruction set's kernels; scratch: 64-byte aligned, `scratch_size` numbers.
template <class T>
struct LruKernels {
  int64_t (*scratch_size)(int64_t rows, int64_t units);
  void (*scan)(const LruScan<T>&, const LruPiece&, T* scratch);
  void (*backward)(const LruBackward<T>&, const LruPiece&, T* scratch);
};

template <class T>
const LruKernels<T>& lru_kernels();

}  // namespace rx
