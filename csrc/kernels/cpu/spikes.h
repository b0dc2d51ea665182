// The recurrent product of spikes: where few units spiked, the sum of their rows of the packed matrix. Each number is the same
// sum in the same order as gemm's, whose other terms are zero, so that the choice between the two changes no bit.
#pragma once
#include <vector>

#include "kernels/cpu/gemm.h"
#include "kernels/cpu/rows.h"

namespace rx {
namespace RX_NS {

// Bit i tells whether lane i differs from zero.
template <class V>
RX_FN uint32_t nonzero_lanes(V x) {
#if defined(__AVX512F__)
  if constexpr (sizeof(x[0]) == 4) {
    return _mm512_cmp_ps_mask((__m512)x, _mm512_setzero_ps(), _CMP_NEQ_UQ);
  } else {
    return _mm512_cmp_pd_mask((__m512d)x, _mm512_setzero_pd(), _CMP_NEQ_UQ);
  }
#elif defined(__AVX__)
  if constexpr (sizeof(x[0]) == 4) {
    return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_cmp_ps((__m256)x, _mm256_setzero_ps(), _CMP_NEQ_UQ)));
  } else {
    return static_cast<uint32_t>(_mm256_movemask_pd(_mm256_cmp_pd((__m256d)x, _mm256_setzero_pd(), _CMP_NEQ_UQ)));
  }
#else
  uint32_t bits = 0;
  for (int i = 0; i < lanes<V>(); ++i) bits |= static_cast<uint32_t>(x[i] != 0) << i;
  return bits;
#endif
}

template <class T>
class Spikes {
  int64_t n_;
  std::vector<int32_t> units_;  // (rows, n), the first count_[r] of each row, rising
  int64_t count_[kMaxRows];

 public:
  Spikes(int64_t rows, int64_t n) : n_(n), units_(static_cast<size_t>(rows * n)) {}

  void clear(int64_t r) { count_[r] = 0; }
  // Takes in the columns from j on.
  template <class V>
  RX_FN void add(int64_t r, int64_t j, V z) {
    uint32_t bits = nonzero_lanes(z);
    int32_t* to = units_.data() + r * n_;
    int64_t count = count_[r];
    for (; bits; bits &= bits - 1) to[count++] = static_cast<int32_t>(j) + __builtin_ctz(bits);
    count_[r] = count;
  }

  // product (rows, ld) = z (rows, ld) times packed (n, n).
  void multiply(int64_t rows, const T* z, int64_t ld, const T* packed, T* product) const {
    int64_t all = 0;
    for (int64_t r = 0; r < rows; ++r) all += count_[r];
    if (all * kDense > rows * n_) return gemm<T>(rows, z, ld, packed, n_, n_, product, ld, true);
    constexpr int64_t v = lanes<Vec<T>>();
    const int64_t width = padded<T>(n_);
    for (int64_t j = 0; j < width; j += 2 * v) {
      if (j + v < width) {
        panel<2>(rows, z, ld, packed + j * n_, product + j);
      } else {
        panel<1>(rows, z, ld, packed + j * n_, product + j);
      }
    }
  }

 private:
  static constexpr int64_t kDense = 3;  // a product of all units costs as much as that of this share of them

  template <int Vecs>
  void panel(int64_t rows, const T* z, int64_t ld, const T* packed, T* product) const {
    using V = Vec<T>;
    constexpr int64_t v = lanes<V>();
    for (int64_t r = 0; r < rows; ++r) {
      V sum[Vecs] = {};
      const int32_t* units = units_.data() + r * n_;
      for (int64_t i = 0; i < count_[r]; ++i) {
        const T* row = packed + units[i] * Vecs * v;
        const V x = splat<V>(z[r * ld + units[i]]);
        for (int k = 0; k < Vecs; ++k) sum[k] += x * load<V>(row + k * v);
      }
      for (int k = 0; k < Vecs; ++k) store<V>(product + r * ld + k * v, sum[k]);
    }
  }
};

}  // namespace RX_NS
}  // namespace rx
