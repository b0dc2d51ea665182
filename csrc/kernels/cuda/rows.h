// What CUDA kernels of a recurrence share: four neighbouring columns of a row as one value, and where a row lies.
#pragma once
#include "kernels/cuda/portable.h"
#include "kernels/cuda/strategy.h"
#include "kernels/leaky.h"

namespace rx {
namespace cuda {

template <class T>
struct Quad {
  T v[kColumns];
};

template <class T>
struct alignas(16) Words {  // what one load or store instruction moves
  T v[16 / sizeof(T)];
};

// Four numbers at p, `count` of them inside the row. `vec`: rows are whole quads and 16-byte aligned.
template <class T>
__device__ __forceinline__ Quad<T> load_quad(const T* p, int count, bool vec) {
  Quad<T> q;
  if (vec) {
    constexpr int kWords = kColumns * sizeof(T) / 16;
#pragma unroll
    for (int w = 0; w < kWords; ++w) {
      const Words<T> word = reinterpret_cast<const Words<T>*>(p)[w];
#pragma unroll
      for (int i = 0; i < kColumns / kWords; ++i) q.v[w * (kColumns / kWords) + i] = word.v[i];
    }
    return q;
  }
#pragma unroll
  for (int i = 0; i < kColumns; ++i) q.v[i] = RX_BOUND(1, i < count) ? p[i] : T(0);
  return q;
}
template <class T>
__device__ __forceinline__ void store_quad(T* p, const Quad<T>& q, int count, bool vec) {
  if (vec) {
    constexpr int kWords = kColumns * sizeof(T) / 16;
#pragma unroll
    for (int w = 0; w < kWords; ++w) {
      Words<T> word;
#pragma unroll
      for (int i = 0; i < kColumns / kWords; ++i) word.v[i] = q.v[w * (kColumns / kWords) + i];
      reinterpret_cast<Words<T>*>(p)[w] = word;
    }
    return;
  }
#pragma unroll
  for (int i = 0; i < kColumns; ++i) {
    if (RX_BOUND(2, i < count)) p[i] = q.v[i];
  }
}
template <class T>
__device__ __forceinline__ Quad<T> zero_quad() {
  Quad<T> q;
#pragma unroll
  for (int i = 0; i < kColumns; ++i) q.v[i] = T(0);
  return q;
}

// Four columns of one row: row b of the batch under leading index l, columns j to j + count - 1.
template <class T>
struct Place {
  int64_t l = 0, length = 0, steps = 0;  // steps: numbers from one time step to the next
  // Offsets of the columns in (L, T, B, n), (1, T, B, n) and (1, B, n), (L, B, n).
  int64_t full = 0, alone = 0, flat = 0;
  int j = 0, count = 0;
  bool vec = false;

  Place() = default;
  __device__ __forceinline__ Place(const LeakyShape& s, int64_t row, int column, bool whole) {
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
  __device__ __forceinline__ const T* at(const In<T>& x, int64_t t) const {
    return x.p ? x.p + (x.lead ? full : alone) + t * steps : nullptr;
  }
  __device__ __forceinline__ Quad<T> get(const In<T>& x, int64_t t) const {
    return x.p ? load_quad(at(x, t), count, vec) : zero_quad<T>();
  }
  __device__ __forceinline__ Quad<T> batch(const In<T>& x) const {
    return x.p ? load_quad(x.p + (x.lead ? flat : alone), count, vec) : zero_quad<T>();
  }
  __device__ __forceinline__ Quad<T> unit(const In<T>& x, int64_t n) const {
    return x.p ? load_quad(x.p + (x.lead ? l * n : 0) + j, count, vec) : zero_quad<T>();
  }
  __device__ __forceinline__ void put(T* x, int64_t t, const Quad<T>& q) const {
    if (x) store_quad(x + full + t * steps, q, count, vec);
  }
  __device__ __forceinline__ void put_batch(T* x, const Quad<T>& q) const {
    if (x) store_quad(x + flat, q, count, vec);
  }
};

// What four columns of a row keep from one step to the next.
template <class T>
struct Kept {
  Quad<T> state, extra, carry;  // `carry` is what the recurrent matrix is applied to
};

}  // namespace cuda
}  // namespace rx
