// Vectors of the width this translation unit is compiled for (GCC/Clang vector extensions) and the elementary functions on
// them.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

#include "kernels/config.h"
#if defined(__AVX__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // of _mm512_undefined_ps, which is meant to be
#include <immintrin.h>
#pragma GCC diagnostic pop
#endif

namespace rx {
namespace RX_NS {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

typedef float VecF __attribute__((vector_size(kVectorBytes)));
typedef double VecD __attribute__((vector_size(kVectorBytes)));
typedef int32_t VecI __attribute__((vector_size(kVectorBytes)));

template <class T>
struct VecOf;
template <>
struct VecOf<float> {
  using type = VecF;
};
template <>
struct VecOf<double> {
  using type = VecD;
};
template <class T>
using Vec = typename VecOf<T>::type;

template <class V>
struct Lane;
template <>
struct Lane<VecF> {
  using type = float;
};
template <>
struct Lane<VecD> {
  using type = double;
};
template <class V>
constexpr int lanes() {
  return static_cast<int>(sizeof(V) / sizeof(typename Lane<V>::type));
}

template <class V>
RX_FN V splat(typename Lane<V>::type x) {
  return x - V{};
}
template <class V>
RX_FN V load(const typename Lane<V>::type* p) {
  V v;
  std::memcpy(&v, p, sizeof(V));
  return v;
}
template <class V>
RX_FN void store(typename Lane<V>::type* p, V v) {
  std::memcpy(p, &v, sizeof(V));
}

// The first `count` lanes only (0 < count < lanes); the others read as 0 and are not written.
#if defined(__AVX512F__)
RX_FN VecF load_part(const float* p, int count) {
  return (VecF)_mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << count) - 1u), p);
}
RX_FN VecD load_part(const double* p, int count) {
  return (VecD)_mm512_maskz_loadu_pd(static_cast<__mmask8>((1u << count) - 1u), p);
}
RX_FN void store_part(float* p, VecF v, int count) {
  _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << count) - 1u), (__m512)v);
}
RX_FN void store_part(double* p, VecD v, int count) {
  _mm512_mask_storeu_pd(p, static_cast<__mmask8>((1u << count) - 1u), (__m512d)v);
}
#else
template <class T>
RX_FN Vec<T> load_part(const T* p, int count) {
  Vec<T> v{};
  for (int i = 0; i < count; ++i) v[i] = p[i];
  return v;
}
template <class V>
RX_FN void store_part(typename Lane<V>::type* p, V v, int count) {
  for (int i = 0; i < count; ++i) p[i] = v[i];
}
#endif

template <bool Full, class V>
RX_FN V read(const typename Lane<V>::type* p, int count) {
  if constexpr (Full) return load<V>(p);
  return load_part(p, count);
}
template <bool Full, class V>
RX_FN void write(typename Lane<V>::type* p, V v, int count) {
  if constexpr (Full) {
    store<V>(p, v);
  } else {
    store_part(p, v, count);
  }
}

// x y + z, rounded once where the instruction set can: where results must not depend on what the compiler fuses.
#if defined(__AVX512F__)
RX_FN VecF fused(VecF x, VecF y, VecF z) {
  return (VecF)_mm512_fmadd_ps((__m512)x, (__m512)y, (__m512)z);
}
RX_FN VecD fused(VecD x, VecD y, VecD z) {
  return (VecD)_mm512_fmadd_pd((__m512d)x, (__m512d)y, (__m512d)z);
}
#elif defined(__FMA__)
RX_FN VecF fused(VecF x, VecF y, VecF z) {
  return (VecF)_mm256_fmadd_ps((__m256)x, (__m256)y, (__m256)z);
}
RX_FN VecD fused(VecD x, VecD y, VecD z) {
  return (VecD)_mm256_fmadd_pd((__m256d)x, (__m256d)y, (__m256d)z);
}
#else
template <class V>
RX_FN V fused(V x, V y, V z) {
  return x * y + z;
}
#endif

template <class V>
RX_FN V one_like(V) {
  return splat<V>(1);
}
template <class V>
RX_FN V one_minus(V x) {
  return 1 - x;
}
template <class V>
RX_FN V max0(V x) {
  // a NaN is kept: the comparison is false for it
  return x <= 0 ? V{} : x;
}
template <class V>
RX_FN V step(V x) {
  return x > 0 ? splat<V>(1) : V{};
}

// x where it is positive, else 1: for divisions by the leak, which reads as 0 in the lanes past n.
template <class V>
RX_FN V positive(V x) {
  return x > 0 ? x : splat<V>(1);
}

// min and max keep a NaN in the second argument, and quotient(a, b) is a / b for b >= 1.
#if defined(__AVX512F__)
RX_FN VecF lesser(VecF bound, VecF x) {
  return (VecF)_mm512_min_ps((__m512)bound, (__m512)x);
}
RX_FN VecF greater(VecF bound, VecF x) {
  return (VecF)_mm512_max_ps((__m512)bound, (__m512)x);
}
// A division of 16 numbers takes 16 cycles; an estimate to 14 bits and one Newton step take 3 and are right to 1 ulp.
RX_FN VecF quotient(VecF a, VecF b) {
  const VecF r = (VecF)_mm512_rcp14_ps((__m512)b), y = a * r;
  return y + r * (a - b * y);
}
#else
RX_FN VecF lesser(VecF bound, VecF x) {
  return x > bound ? bound : x;
}
RX_FN VecF greater(VecF bound, VecF x) {
  return x < bound ? bound : x;
}
RX_FN VecF quotient(VecF a, VecF b) {
  return a / b;
}
#endif

// Rational approximation of tanh, odd numerator of degree 9 over an even denominator of degree 8 on |x| <= 9.01, fitted by
// reweighted least squares to a relative error of 2.1e-8; in float32 at most 6 ulp (python_tests/kernels/test_activations.py).
RX_FN VecF tanh_(VecF x) {
  const VecF bound = splat<VecF>(9.01f), one = splat<VecF>(1.0f);
  const VecF c = greater(-bound, lesser(bound, x));
  const VecF z = c * c;
  VecF p = z * 1.333688995345004e-08f + 2.0596306817951217e-05f;
  p = p * z + 3.4948131665158938e-03f;
  p = p * z + 0.13380373414489305f;
  p = p * z + 0.9999999792519878f;
  VecF q = z * 7.76930093182897e-07f + 3.284366606994081e-04f;
  q = q * z + 0.025874034915322707f;
  q = q * z + 0.46713688835632455f;
  q = q * z + 1.0f;
  return greater(-one, lesser(one, quotient(c * p, q)));
}

// exp for float: 2^i times a degree-6 polynomial on [-ln2/2, ln2/2]; relative error below 2e-7. Arguments are clamped to [-87,
// 88].
RX_FN VecF exp_(VecF x) {
  const VecF high = x > splat<VecF>(88.0f) ? splat<VecF>(88.0f) : x;
  const VecF c = high < splat<VecF>(-87.0f) ? splat<VecF>(-87.0f) : high;
  const VecF magic = splat<VecF>(12582912.0f);  // 1.5 * 2^23: adding it rounds to the nearest integer
  const VecF shifted = c * 1.44269504088896341f + magic;
  const VecF i = shifted - magic;
  const VecF r = (c - i * 0.693359375f) - i * -2.12194440e-4f;
  VecF p = r * (1.0f / 720.0f) + (1.0f / 120.0f);
  p = p * r + (1.0f / 24.0f);
  p = p * r + (1.0f / 6.0f);
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  const VecI exponent = ((VecI)shifted - (VecI)magic + 127) << 23;
  return p * (VecF)exponent;
}

template <class V, class F>
RX_FN V each_lane(V x, F f) {
  for (int i = 0; i < lanes<V>(); ++i) x[i] = f(x[i]);
  return x;
}
// float64 is the dtype of proofs, not of speed: the C library's functions, lane by lane.
RX_FN VecD tanh_(VecD x) {
  return each_lane(x, [](double u) { return std::tanh(u); });
}
RX_FN VecD softplus_(VecD x) {
  return each_lane(x, [](double u) { return (u > 0 ? u : 0) + std::log1p(std::exp(u > 0 ? -u : u)); });
}
RX_FN VecD one_minus_exp_neg(VecD x) {
  return each_lane(x, [](double u) { return -std::expm1(-u); });
}
RX_FN VecF softplus_(VecF x) {
  return each_lane(x, [](float u) { return (u > 0 ? u : 0) + std::log1p(std::exp(u > 0 ? -u : u)); });
}
// 1 - exp(-x) for x >= 0; a short series near 0, where the difference would cancel.
RX_FN VecF one_minus_exp_neg(VecF x) {
  const VecF direct = 1.0f - exp_(-x);
  const VecF small = splat<VecF>(0.125f);
  return x < small ? x * (1.0f - x * (0.5f - x * ((1.0f / 6.0f) - x * ((1.0f / 24.0f) - x * (1.0f / 120.0f))))) : direct;
}

}  // namespace RX_NS
}  // namespace rx
