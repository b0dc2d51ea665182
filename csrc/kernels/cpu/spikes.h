// The recurrent product of spikes: where few units spiked, the sum of their rows of the packed matrix. Each number is the same
// sum in the same order as gemm's, whose other terms are zero, so that the choice between the two changes no bit.
#pragma once
#include <vector>

#include "kernels/cpu/gemm.h"
#include "kernels/cpu/rows.h"

namespace rx {
namespace RX_NS {

// Writes the lanes of z that differ from zero to `to`, each as j plus its number, and returns how many they are. Room for a
// whole vector is needed.
template <class V>
RX_FN int64_t nonzero_lanes(V z, int32_t j, int32_t* to) {
#if defined(__AVX512F__)
  uint32_t bits;
  const __m512i lane =
      _mm512_add_epi32(_mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15), _mm512_set1_epi32(j));
  if constexpr (sizeof(z[0]) == 4) {
    bits = _mm512_cmp_ps_mask((__m512)z, _mm512_setzero_ps(), _CMP_NEQ_UQ);
  } else {
    bits = _mm512_cmp_pd_mask((__m512d)z, _mm512_setzero_pd(), _CMP_NEQ_UQ);
  }
  _mm512_storeu_si512(to, _mm512_maskz_compress_epi32(static_cast<__mmask16>(bits), lane));
  return __builtin_popcount(bits);
#else
  int64_t count = 0;
  for (int i = 0; i < lanes<V>(); ++i) {
    to[count] = j + i;
    count += z[i] != 0;
  }
  return count;
#endif
}

template <class T>
class Spikes {
  using V = Vec<T>;
  static constexpr int64_t kLanes = lanes<V>(), kRoom = 16;
  static constexpr int64_t kDense = 2;  // a product of all units costs about as much as that of half of them
  static constexpr int kPanels = 4;     // of two vectors each, summed at once
  int64_t n_, ld_;
  std::vector<int32_t> units_;  // (rows, ld), the first count_[r] of each row, rising
  int64_t count_[kMaxRows];

 public:
  Spikes(int64_t rows, int64_t n) : n_(n), ld_(n + kRoom), units_(static_cast<size_t>(rows * ld_)) {}

  void clear(int64_t r) { count_[r] = 0; }
  // Takes in the columns from j on.
  RX_FN void add(int64_t r, int64_t j, V z) {
    count_[r] += nonzero_lanes(z, static_cast<int32_t>(j), units_.data() + r * ld_ + count_[r]);
  }

  // product (rows, ld) = z (rows, ld) times packed (n, n).
  void multiply(int64_t rows, const T* z, int64_t ld, const T* packed, T* product) const {
    int64_t all = 0;
    for (int64_t r = 0; r < rows; ++r) all += count_[r];
    if (all * kDense > rows * n_) return gemm<T>(rows, z, ld, packed, n_, n_, product, ld, true);
    const int64_t vectors = padded<T>(n_) / kLanes;
    int64_t first = 0;
    for (; first + 2 * kPanels <= vectors; first += 2 * kPanels) {
      sum<2 * kPanels>(rows, z, ld, packed + first * kLanes * n_, product + first * kLanes);
    }
    rest<2 * kPanels - 1>(vectors - first, rows, z, ld, packed + first * kLanes * n_, product + first * kLanes);
  }

 private:
  // The columns of so many vectors; with an odd number the last panel is narrow.
  template <int Vecs>
  void sum(int64_t rows, const T* z, int64_t ld, const T* packed, T* product) const {
    for (int64_t r = 0; r < rows; ++r) {
      V sums[Vecs];
      for (int k = 0; k < Vecs; ++k) sums[k] = V{};
      const int32_t* units = units_.data() + r * ld_;
      for (int64_t s = 0; s < count_[r]; ++s) {
        const int64_t unit = units[s];
        const V x = splat<V>(z[r * ld + unit]);
#pragma GCC unroll 8
        for (int k = 0; k < Vecs; ++k) {
          const int64_t panel = k / 2 * 2, width = panel + 1 < Vecs ? 2 : 1;
          sums[k] += x * load<V>(packed + (panel * n_ + unit * width + k - panel) * kLanes);
        }
      }
      for (int k = 0; k < Vecs; ++k) store<V>(product + r * ld + k * kLanes, sums[k]);
    }
  }
  template <int Vecs>
  void rest(int64_t vectors, int64_t rows, const T* z, int64_t ld, const T* packed, T* product) const {
    if constexpr (Vecs > 0) {
      if (vectors == Vecs) {
        sum<Vecs>(rows, z, ld, packed, product);
      } else {
        rest<Vecs - 1>(vectors, rows, z, ld, packed, product);
      }
    }
  }
};

}  // namespace RX_NS
}  // namespace rx
