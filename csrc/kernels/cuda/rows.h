// What CUDA kernels of a recurrence share: four neighbouring columns of a row as one value, and where a row lies.
#pragma once
#include "kernels/cuda/half.h"
#include "kernels/cuda/portable.h"
#include "kernels/cuda/strategy.h"
#include "kernels/leaky.h"

namespace rx {
namespace cuda {

template <class T>
struct Quad {
  T v[kColumns];
};

// What one load or store instruction moves: at most 16 bytes of a quad.
template <class E>
struct alignas(kColumns * sizeof(E) < 16 ? kColumns * sizeof(E) : 16) Words {
  static constexpr int kCount = static_cast<int>(sizeof(E) > 4 ? 16 / sizeof(E) : kColumns);
  E v[kCount];
};

// Four numbers at p, `count` of them inside the row. `vec`: rows are whole quads and 16-byte aligned.
template <class E>
__device__ __forceinline__ Quad<ComputeOf<E>> load_quad(const E* p, int count, bool vec) {
  Quad<ComputeOf<E>> q;
  if (vec) {
    constexpr int kCount = Words<E>::kCount;
#pragma unroll
    for (int w = 0; w < kColumns / kCount; ++w) {
      const Words<E> word = reinterpret_cast<const Words<E>*>(p)[w];
#pragma unroll
      for (int i = 0; i < kCount; ++i) q.v[w * kCount + i] = widen(word.v[i]);
    }
    return q;
  }
#pragma unroll
  for (int i = 0; i < kColumns; ++i) q.v[i] = RX_BOUND(1, i < count) ? widen(p[i]) : ComputeOf<E>(0);
  return q;
}
template <class E>
__device__ __forceinline__ void store_quad(E* p, const Quad<ComputeOf<E>>& q, int count, bool vec) {
  if (vec) {
    constexpr int kCount = Words<E>::kCount;
#pragma unroll
    for (int w = 0; w < kColumns / kCount; ++w) {
      Words<E> word;
#pragma unroll
      for (int i = 0; i < kCount; ++i) word.v[i] = narrow<E>(q.v[w * kCount + i]);
      reinterpret_cast<Words<E>*>(p)[w] = word;
    }
    return;
  }
#pragma unroll
  for (int i = 0; i < kColumns; ++i) {
    if (RX_BOUND(2, i < count)) p[i] = narrow<E>(q.v[i]);
  }
}
template <class T>
__device__ __forceinline__ Quad<T> zero_quad() {
  Quad<T> q;
#pragma unroll
  for (int i = 0; i < kColumns; ++i) q.v[i] = T(0);
  return q;
}

// Four columns of one row: row b of the batch under leading index l, columns j to j + count - 1. Its functions read and write
// them in arrays of any element type, as numbers of the type of computation.
struct Place {
  int64_t l = 0, length = 0, steps = 0;  // steps: numbers from one time step to the next
  // Offsets of the columns in (L, T, B, n), (1, T, B, n) and (1, B, n), (L, B, n).
  int64_t full = 0, alone = 0, flat = 0;
  int j = 0, count = 0;
  bool vec = false;

  Place() = default;
  template <class Shape>
  __device__ __forceinline__ Place(const Shape& s, int64_t row, int column, bool whole) {
    l = row / s.B;
    const int64_t b = row % s.B;
    length = s.lengths ? s.lengths[b] : s.T;
    steps = s.B * s.n;
    j = column;
    count = static_cast<int>(s.n - column < kColumns ? s.n - column : kColumns);
    alone = b * s.n + column;
    full = l * s.T * steps + alone;
    flat = l * steps + alone;
    vec = whole;
  }
  // x (L|1, T, B, n) at step t, zeros if null.
  template <class E>
  __device__ __forceinline__ Quad<ComputeOf<E>> get(const In<E>& x, int64_t t) const {
    if (x.p == nullptr) return zero_quad<ComputeOf<E>>();
    return load_quad(x.p + (x.lead ? full : alone) + t * steps, count, vec);
  }
  // Value k of `Wide` for each unit in x (L|1, T, B, Wide n) at step t.
  template <int Wide, class E>
  __device__ __forceinline__ Quad<ComputeOf<E>> get(const In<E>& x, int64_t t, int k, int64_t n) const {
    return load_quad(x.p + wide(x.lead ? full : alone, t, Wide, k, n), count, vec);
  }
  // x (L|1, B, n), zeros if null.
  template <class E>
  __device__ __forceinline__ Quad<ComputeOf<E>> batch(const In<E>& x) const {
    return x.p ? load_quad(x.p + (x.lead ? flat : alone), count, vec) : zero_quad<ComputeOf<E>>();
  }
  // x (L|1, n), zeros if null.
  template <class E>
  __device__ __forceinline__ Quad<ComputeOf<E>> unit(const In<E>& x, int64_t n) const {
    return x.p ? load_quad(x.p + (x.lead ? l * n : 0) + j, count, vec) : zero_quad<ComputeOf<E>>();
  }
  template <class E>
  __device__ __forceinline__ void put(E* x, int64_t t, const Quad<ComputeOf<E>>& q) const {
    if (x) store_quad(x + full + t * steps, q, count, vec);
  }
  template <int Wide, class E>
  __device__ __forceinline__ void put(E* x, int64_t t, int k, int64_t n, const Quad<ComputeOf<E>>& q) const {
    store_quad(x + wide(full, t, Wide, k, n), q, count, vec);
  }
  template <class E>
  __device__ __forceinline__ void put_batch(E* x, const Quad<ComputeOf<E>>& q) const {
    if (x) store_quad(x + flat, q, count, vec);
  }

 private:
  __device__ __forceinline__ int64_t wide(int64_t from, int64_t t, int values, int k, int64_t n) const {
    return (from - j + t * steps) * values + k * n + j;
  }
};

// What four columns of a row keep from one step to the next: `Carries` quads that the recurrent matrix is applied to, one for
// each gate in backward passes, and `Extras` that `begin` makes.
template <class T, int Carries = 1, int Extras = 1>
struct Kept {
  Quad<T> state, extra[Extras > 0 ? Extras : 1], carry[Carries];
};
template <class Step>
using KeptOf = Kept<typename Step::T, Step::kCarries, Step::kExtras>;

}  // namespace cuda
}  // namespace rx
