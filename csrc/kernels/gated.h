// Launch parameters of gated cells: GRU and LSTM. No torch here. Shapes and element types as in leaky.h; G gates lie side by
// side, (.., G n). Calls that cover a part of the steps, and what is added in place, are the CPU's alone.
#pragma once
#include "kernels/leaky.h"

namespace rx {

enum class GatedCell : int64_t { Gru = 0, Lstm = 1 };

constexpr int64_t gates(GatedCell cell) {
  return cell == GatedCell::Gru ? 3 : 4;
}
// Numbers per unit and step that the forward pass keeps: GRU r, z, q, m; LSTM i, f, g, o, c.
constexpr int64_t kept_values(GatedCell cell) {
  return cell == GatedCell::Gru ? 4 : 5;
}

struct GatedShape {
  int64_t L, T, B, n;
  const int64_t* lengths;  // (B,) or null: row b is active for t < lengths[b]
  int64_t begin, end;      // the steps of this call, and whether it goes on where another one ended; see LeakyShape
  bool resume;
};

template <class T, class E = T>
struct GatedForward {
  GatedShape s;
  GatedCell cell;
  In<E> pre;  // (L|1, T, B, G n), or with `in_place` in the first G n columns of aux's rows
  bool in_place;
  In<E> drive;        // (L|1, T, B, G n) or null, added to pre
  const E* pre_bias;  // (G n) or null, added to pre
  In<E> h0;           // (L|1, B, n) or null: zeros
  In<E> c0;           // (L|1, B, n) or null: zeros; GRU: null
  In<E> w;            // (L|1, G n, n), row = postsynaptic
  In<E> bias;         // (L|1, n): GRU's b_hn, inside the reset; null for LSTM
  E* y;               // (L, T, B, n)
  T* aux;             // (L, T, B, kept_values n)
  E* h_n;             // (L, B, n)
  E* c_n;             // (L, B, n); null for GRU
};

template <class T, class E = T>
struct GatedBackward {
  GatedShape s;
  GatedCell cell;
  Transport transport;  // Full, Local, Diagonal
  int64_t window;       // cut every `window` steps counted from the end, 0 = never
  double decay;         // Local: filter of the signal gy, gh_n
  In<E> gy;             // (L|1, T, B, n) or null
  In<E> gh_n, gc_n;     // (L|1, B, n) or null
  In<E> y;              // (L|1, T, B, n); null for LSTM
  In<T> aux;            // (L|1, T, B, kept_values n)
  In<E> before;         // (L|1, B, n) or null, zeros: GRU h0, LSTM c0
  In<E> w;              // (L|1, G n, n); null for Local
  // (L, T, B, 4 n): gradients of the pre-activations; GRU: r, z, q, and of m. With `part` those of this call's steps and of
  // the tile's rows alone, (end - begin, rows, delta_row).
  E* delta;
  bool part;
  int64_t delta_row;  // numbers between rows of delta, at least 4 n
  E* bias;            // (tiles, 4 n) or null: each tile adds its sum of delta over rows and steps
  E* gh0;             // (L, B, n) or null, written by the call that covers step 0
  E* gc0;             // (L, B, n); null for GRU
  T* lam;             // (L, T, B, n) or null: adjoint of h
  T* to_c;            // (L, T, B, n) or null; LSTM: what reaches c from later steps
};

// Tangents of the forward pass.
template <class T, class E = T>
struct GatedForwardJvp {
  GatedShape s;
  GatedCell cell;
  // (L|1, T, B, 4 n): of what enters beside W dh'; LSTM: the pre-activations; GRU: of r, z, q, and of m. With `in_place` in
  // the first 4 n columns of daux's rows.
  In<E> du;
  bool in_place;
  In<E> dbias;   // (L|1, 4 n) or null, added to du
  In<E> dh0;     // (L|1, B, n) or null: zeros
  In<E> dc0;     // (L|1, B, n) or null: zeros; GRU: null
  In<E> y;       // (L|1, T, B, n); null for LSTM
  In<T> aux;     // (L|1, T, B, kept_values n)
  In<E> before;  // (L|1, B, n) or null, zeros: GRU h0, LSTM c0
  In<E> w;       // (L|1, G n, n)
  E* dy;         // (L, T, B, n)
  T* daux;       // (L, T, B, kept_values n)
  E* dh_n;       // (L, B, n)
  E* dc_n;       // (L, B, n); null for GRU
};

// Tangents of the backward pass under the exact rule.
template <class T, class E = T>
struct GatedBackwardJvp {
  GatedShape s;
  GatedCell cell;
  bool part;              // dgy and ddelta are (L, end - begin, B, ..), the steps of this call alone
  In<E> dgy;              // (L|1, T, B, n), includes what delta_{t+1} sends through dW
  In<E> dgh_n, dgc_n;     // (L|1, B, n) or null
  In<E> y, dy;            // (L|1, T, B, n); null for LSTM
  In<T> aux, daux;        // (L|1, T, B, kept_values n)
  In<E> before, dbefore;  // (L|1, B, n) or null, zeros: GRU h0, LSTM c0
  In<T> lam, to_c;        // (L|1, T, B, n); to_c null for GRU
  In<E> w;                // (L|1, G n, n)
  E* ddelta;              // (L, T, B, 4 n)
  E* dgh0;                // (L, B, n) or null, written by the call that covers step 0
  E* dgc0;                // (L, B, n); null for GRU
};

// One instruction set's kernels; `packed` and `scratch` as in LeakyKernels.
template <class T>
struct GatedKernels {
  int64_t (*scratch_size)(int64_t rows, int64_t n);
  void (*forward)(const GatedForward<T>&, RowRange, const T* packed, T* scratch);
  void (*backward)(const GatedBackward<T>&, RowRange, const T* packed, T* scratch);
  void (*forward_jvp)(const GatedForwardJvp<T>&, RowRange, const T* packed, T* scratch);
  void (*backward_jvp)(const GatedBackwardJvp<T>&, RowRange, const T* packed, T* scratch);
};

template <class T>
const GatedKernels<T>& gated_kernels();

}  // namespace rx
