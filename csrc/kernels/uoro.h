// Parameters of a step of UORO (unbiased online recurrent optimization). No torch here. B batch rows, n units, S states a unit;
// state s of unit u is number s * n + u. Arrays are contiguous; those that are written overlap no other.
#pragma once
#include <cstdint>

namespace rx {

constexpr int64_t kUoroBlocks = 16;  // at most, in one call
constexpr int64_t kUoroPad = 16;     // numbers of the longest vector

// A matrix of parameters, (R, Q): row r belongs to unit r mod n, so that R is a multiple of n.
template <class T>
struct UoroBlock {
  int64_t R, Q;
  const T* psi;  // (B, S, R): d state / d parameter is psi[b, s, r] pre[b, q]
  const T* pre;  // (B, Q)
  T* theta;      // (B, R, Q)
  T* grad;       // (R, Q), added to, or null
  T* a;          // (B, R) scratch: nu^T I is a[b, r] pre[b, q]; then over rho1
  T* sums;       // (B, parts) scratch: the squares of a part of theta, summed
  T* padded;     // (B, Q + 2 kUoroPad) scratch on the CPU: pre between zeros
};

template <class T>
struct Uoro {
  int64_t B, S, n;
  const T* jacobian;  // (B, S n, S n): row = new state
  const T* signs;     // (B, S n): nu
  const T* signal;    // (B, S n) or null
  const bool* keep;   // (B,) or null: false where J and theta count as zero
  T* s;               // (B, S n)
  T* norm;            // (B,): of all blocks of theta together
  T* moved;           // (B, S n) scratch: J s
  T* scale;           // (B,) scratch: 1 / rho0
  T* weight;          // (B,) scratch: signal . s
  const UoroBlock<T>* blocks;
  int64_t count;
};

// One instruction set's kernels; a step calls move, weigh, pass and norms, in this order. A block is cut into parts by
// its shape alone.
template <class T>
struct UoroKernels {
  int64_t (*parts)(int64_t R, int64_t Q);
  // sums of the parts [first, last) of a block as it is; then `norms` gives the norm before a step
  void (*square)(const Uoro<T>&, const UoroBlock<T>&, int64_t first, int64_t last);
  // norm from sums, of all batch rows
  void (*norms)(const Uoro<T>&);
  // moved, of the states [first, last) of B * S n
  void (*move)(const Uoro<T>&, int64_t first, int64_t last);
  // a, scale, s and weight of the batch rows [first, last)
  void (*weigh)(const Uoro<T>&, int64_t first, int64_t last);
  // theta, sums and grad, of the parts [first, last) of a block
  void (*pass)(const Uoro<T>&, const UoroBlock<T>&, int64_t first, int64_t last);
};

template <class T>
const UoroKernels<T>& uoro_kernels();

}  // namespace rx
