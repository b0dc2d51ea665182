// Vector types, __half and __nv_bfloat16 with the names of the CUDA headers, for kernels run by the emulator. Only what a
// kernel needs: operators of half types are left out, and conversions from and to float are explicit.
#pragma once
#include <cstdint>
#include <cstring>

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned a = 1, unsigned b = 1, unsigned c = 1) : x(a), y(b), z(c) {}
};

#define RX_VECTOR2(type, T, bytes)    \
  struct alignas(bytes) type {        \
    T x, y;                           \
  };                                  \
  inline type make_##type(T x, T y) { \
    return {x, y};                    \
  }
#define RX_VECTOR4(type, T, bytes)              \
  struct alignas(bytes) type {                  \
    T x, y, z, w;                               \
  };                                            \
  inline type make_##type(T x, T y, T z, T w) { \
    return {x, y, z, w};                        \
  }
RX_VECTOR2(char2, signed char, 2)
RX_VECTOR2(uchar2, unsigned char, 2)
RX_VECTOR2(short2, short, 4)
RX_VECTOR2(ushort2, unsigned short, 4)
RX_VECTOR2(int2, int, 8)
RX_VECTOR2(uint2, unsigned, 8)
RX_VECTOR2(longlong2, long long, 16)
RX_VECTOR2(ulonglong2, unsigned long long, 16)
RX_VECTOR2(float2, float, 8)
RX_VECTOR2(double2, double, 16)
RX_VECTOR4(char4, signed char, 4)
RX_VECTOR4(uchar4, unsigned char, 4)
RX_VECTOR4(short4, short, 8)
RX_VECTOR4(ushort4, unsigned short, 8)
RX_VECTOR4(int4, int, 16)
RX_VECTOR4(uint4, unsigned, 16)
RX_VECTOR4(float4, float, 16)
#undef RX_VECTOR2
#undef RX_VECTOR4
struct float3 {
  float x, y, z;
};
inline float3 make_float3(float x, float y, float z) {
  return {x, y, z};
}
inline uint3 make_uint3(unsigned x, unsigned y, unsigned z) {
  return {x, y, z};
}

namespace rx::emulator {

template <class To, class From>
To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From), "both of one size");
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

// Round to nearest, ties to even. A NaN becomes 0x7fff, as in the CUDA headers.
inline uint16_t bfloat16_bits(float value) {
  const uint32_t u = bits_as<uint32_t>(value);
  if ((u & 0x7fffffffu) > 0x7f800000u) return 0x7fff;
  return static_cast<uint16_t>((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
}
inline float bfloat16_value(uint16_t bits) {
  return bits_as<float>(static_cast<uint32_t>(bits) << 16);
}

inline uint16_t half_bits(float value) {
  const uint32_t u = bits_as<uint32_t>(value), magnitude = u & 0x7fffffffu, sign = (u >> 16) & 0x8000u;
  if (magnitude > 0x7f800000u) return 0x7fff;
  if (magnitude >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);  // 65520 and above: infinity
  if (magnitude < 0x33000000u) return static_cast<uint16_t>(sign);             // below 2^-25: zero
  const uint32_t exponent = magnitude >> 23;
  uint32_t mantissa = magnitude & 0x7fffffu, shift = 13, base = 0;
  if (exponent >= 113) {  // normal
    base = (exponent - 112) << 10;
  } else {  // subnormal: the mantissa with its leading one, shifted into units of 2^-24
    mantissa |= 0x800000u;
    shift = 126 - exponent;
  }
  const uint32_t kept = mantissa >> shift, rest = mantissa & ((1u << shift) - 1), tie = 1u << (shift - 1);
  const uint32_t up = rest > tie || (rest == tie && (kept & 1u)) ? 1 : 0;
  return static_cast<uint16_t>(sign | (base + kept + up));  // a carry runs into the exponent, as it should
}
inline float half_value(uint16_t bits) {
  const uint32_t sign = (bits & 0x8000u) << 16, exponent = (bits >> 10) & 31u, mantissa = bits & 0x3ffu;
  if (exponent == 31) return bits_as<float>(sign | 0x7f800000u | mantissa << 13);
  if (exponent != 0) return bits_as<float>(sign | (exponent + 112) << 23 | mantissa << 13);
  const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;
  return sign ? -magnitude : magnitude;
}

}  // namespace rx::emulator

struct alignas(2) __half {
  uint16_t bits;
  __half() = default;
  explicit __half(float value) : bits(rx::emulator::half_bits(value)) {}
  explicit operator float() const { return rx::emulator::half_value(bits); }
};
struct alignas(2) __nv_bfloat16 {
  uint16_t bits;
  __nv_bfloat16() = default;
  explicit __nv_bfloat16(float value) : bits(rx::emulator::bfloat16_bits(value)) {}
  explicit operator float() const { return rx::emulator::bfloat16_value(bits); }
};
struct alignas(4) __half2 {
  __half x, y;
};
struct alignas(4) __nv_bfloat162 {
  __nv_bfloat16 x, y;
};
using half = __half;
using half2 = __half2;
using nv_bfloat16 = __nv_bfloat16;
using nv_bfloat162 = __nv_bfloat162;

inline __half __float2half_rn(float value) {
  return __half(value);
}
inline __half __float2half(float value) {
  return __half(value);
}
inline float __half2float(__half value) {
  return static_cast<float>(value);
}
inline __half __ushort_as_half(unsigned short bits) {
  __half value;
  value.bits = bits;
  return value;
}
inline unsigned short __half_as_ushort(__half value) {
  return value.bits;
}
inline __half2 __halves2half2(__half x, __half y) {
  return {x, y};
}
inline __half2 __floats2half2_rn(float x, float y) {
  return {__half(x), __half(y)};
}
inline float2 __half22float2(__half2 value) {
  return {__half2float(value.x), __half2float(value.y)};
}

inline __nv_bfloat16 __float2bfloat16_rn(float value) {
  return __nv_bfloat16(value);
}
inline __nv_bfloat16 __float2bfloat16(float value) {
  return __nv_bfloat16(value);
}
inline float __bfloat162float(__nv_bfloat16 value) {
  return static_cast<float>(value);
}
inline __nv_bfloat16 __ushort_as_bfloat16(unsigned short bits) {
  __nv_bfloat16 value;
  value.bits = bits;
  return value;
}
inline unsigned short __bfloat16_as_ushort(__nv_bfloat16 value) {
  return value.bits;
}
inline __nv_bfloat162 __halves2bfloat162(__nv_bfloat16 x, __nv_bfloat16 y) {
  return {x, y};
}
inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y) {
  return {__nv_bfloat16(x), __nv_bfloat16(y)};
}
inline float2 __bfloat1622float2(__nv_bfloat162 value) {
  return {__bfloat162float(value.x), __bfloat162float(value.y)};
}

inline unsigned __float_as_uint(float value) {
  return rx::emulator::bits_as<unsigned>(value);
}
inline int __float_as_int(float value) {
  return rx::emulator::bits_as<int>(value);
}
inline float __uint_as_float(unsigned bits) {
  return rx::emulator::bits_as<float>(bits);
}
inline float __int_as_float(int bits) {
  return rx::emulator::bits_as<float>(bits);
}
inline long long __double_as_longlong(double value) {
  return rx::emulator::bits_as<long long>(value);
}
inline double __longlong_as_double(long long bits) {
  return rx::emulator::bits_as<double>(bits);
}
