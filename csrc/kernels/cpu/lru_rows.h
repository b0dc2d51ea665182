// What the scans of the LRU share on the CPU: planes of complex numbers, and loops over a piece's units.
#pragma once
#include "cells/lru.h"
#include "kernels/cpu/rows.h"
#include "kernels/lru.h"

namespace rx {
namespace RX_NS {

template <bool F, class V, class T>
RX_FN Complex<V> read_planes(const T* p, int64_t j, int64_t plane, int count) {
  return {read<F, V>(p + j, count), read<F, V>(p + plane + j, count)};
}
template <bool F, class V, class T>
RX_FN void write_planes(T* p, int64_t j, int64_t plane, Complex<V> x, int count) {
  write<F, V>(p + j, x.re, count);
  write<F, V>(p + plane + j, x.im, count);
}

// f(unit, count, full) over a piece's units; pieces begin at whole vectors.
template <class T, class F>
inline __attribute__((always_inline)) void units(const LruPiece& piece, F&& f) {
  columns<T>(piece.end - piece.first,
             [&](int64_t j, int count, auto full) __attribute__((always_inline)) { f(piece.first + j, count, full); });
}

template <class T>
void zero_planes(T* p, const LruPiece& piece, int64_t n) {
  zero_row(p + piece.first, piece.end - piece.first);
  zero_row(p + n + piece.first, piece.end - piece.first);
}
template <class T>
void copy_planes(T* to, const T* from, const LruPiece& piece, int64_t n) {
  std::memcpy(to + piece.first, from + piece.first, sizeof(T) * (piece.end - piece.first));
  std::memcpy(to + n + piece.first, from + n + piece.first, sizeof(T) * (piece.end - piece.first));
}

}  // namespace RX_NS
}  // namespace rx
