// The gradient of a recurrent matrix that has read spikes, C += A^T B with spikes for A: the sum of the rows of B at which a
// unit spiked, kept in registers. Each number is the same sum in the same order as outer's, whose other terms are zero.
#pragma once
#include <memory>

#include "kernels/cpu/outer.h"
#include "kernels/cpu/spikes.h"

namespace rx {
namespace RX_NS {

constexpr int64_t kSpikeBlock = 256;  // rows in a block; their numbers fit a byte
constexpr int64_t kSpikeDense = 4;    // the product of all units costs about as much as the sum of a fourth of them
constexpr int kSpikeVecs = 8;         // sums in flight

// Rows at which a unit spiked: their numbers in the block, and where a row of that number lies in B.
struct SpikeRows {
  const uint8_t* rows;
  int64_t count;
  const int64_t* offsets;
};

// c (Vecs vectors) += those rows of B; the last vector has `last` numbers.
template <class T, int Vecs, bool Full>
inline void spike_sum(const T* b, const SpikeRows& at, int last, T* c) {
  using V = Vec<T>;
  constexpr int v = lanes<V>();
  V sums[Vecs];
#pragma GCC unroll 8
  for (int k = 0; k < Vecs; ++k) sums[k] = load<V>(c + k * v);
  for (int64_t s = 0; s < at.count; ++s) {
    const T* row = b + at.offsets[at.rows[s]];
#pragma GCC unroll 8
    for (int k = 0; k + 1 < Vecs; ++k) sums[k] += load<V>(row + k * v);
    sums[Vecs - 1] += read<Full, V>(row + (Vecs - 1) * v, last);
  }
#pragma GCC unroll 8
  for (int k = 0; k < Vecs; ++k) store<V>(c + k * v, sums[k]);
}

// The same for so many vectors as there are, at most Vecs.
template <class T, int Vecs>
void spike_columns(int64_t vectors, const T* b, const SpikeRows& at, int last, T* c) {
  if constexpr (Vecs > 0) {
    if (vectors < Vecs) return spike_columns<T, Vecs - 1>(vectors, b, at, last, c);
    if (last == lanes<Vec<T>>()) return spike_sum<T, Vecs, true>(b, at, last, c);
    spike_sum<T, Vecs, false>(b, at, last, c);
  }
}

// A block of at most kSpikeBlock rows. `lists` (units, kSpikeBlock), `counts` (units), `found` (units + 16) of the units begin
// to end.
template <class T>
void spike_block(const Outer<T>& p, uint8_t* lists, int32_t* counts, int32_t* found, T* scratch) {
  using V = Vec<T>;
  constexpr int64_t v = lanes<V>();
  const int64_t units = p.end - p.begin;
  std::fill(counts, counts + units, 0);
  int64_t all = 0, row = 0, offsets[kSpikeBlock];
  for (int64_t s = 0; s < p.steps; ++s) {
    for (int64_t i = 0; i < p.rows; ++i, ++row) {
      const T* z = p.a + s * p.a_step + i * p.lda + p.begin;
      offsets[row] = s * p.b_step + i * p.ldb;
      int64_t number = 0;
      columns<T>(units, [&](int64_t j, int count, auto full) __attribute__((always_inline)) {
        number += nonzero_lanes(read<decltype(full)::value, V>(z + j, count), static_cast<int32_t>(j), found + number);
      });
      for (int64_t k = 0; k < number; ++k) {
        const int32_t unit = found[k];
        lists[unit * kSpikeBlock + counts[unit]++] = static_cast<uint8_t>(row);
      }
      all += number;
    }
  }
  if (all * kSpikeDense > p.steps * p.rows * units) return outer(p, scratch);
  for (int64_t i = 0; i < units; ++i) {
    T* c = p.c + (p.begin + i) * p.ldc;
    for (int64_t j = 0; counts[i] && j < p.N; j += kSpikeVecs * v) {
      const int64_t vectors = std::min<int64_t>(kSpikeVecs, (p.N - j + v - 1) / v);
      const int last = static_cast<int>(std::min<int64_t>(v, p.N - j - (vectors - 1) * v));
      spike_columns<T, kSpikeVecs>(vectors, p.b + j, {lists + i * kSpikeBlock, counts[i], offsets}, last, c + j);
    }
  }
}

template <class T>
void outer_spikes(const Outer<T>& p, T* scratch) {
  const int64_t units = p.end - p.begin, rows = std::min(p.rows, kSpikeBlock), steps = std::max<int64_t>(1, kSpikeBlock / rows);
  const std::unique_ptr<int32_t[]> space(new int32_t[2 * units + 16]);
  const std::unique_ptr<uint8_t[]> lists(new uint8_t[units * kSpikeBlock]);
  int32_t *counts = space.get(), *found = counts + units;
  for (int64_t s = 0; s < p.steps; s += steps) {
    for (int64_t i = 0; i < p.rows; i += rows) {
      Outer<T> block = p;
      block.steps = std::min(steps, p.steps - s);
      block.rows = std::min(rows, p.rows - i);
      block.a = p.a + s * p.a_step + i * p.lda;
      block.b = p.b + s * p.b_step + i * p.ldb;
      spike_block(block, lists.get(), counts, found, scratch);
    }
  }
}

}  // namespace RX_NS
}  // namespace rx
