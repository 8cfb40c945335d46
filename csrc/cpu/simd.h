// Vectors for the CPU kernels: compiler vector extensions, so that kernels read like scalar code and one source serves
// every instruction set. Each kernel file is compiled once per instruction set, with TW_ISA naming the namespace and
// TW_VECTOR_BYTES the register width; the right copy is chosen at run time (see isa.h).
//
// Everything here is inside that namespace and internal to it. Kernel files must not instantiate templates from the
// standard library that could be emitted out of line: the linker would keep one copy for all instruction sets, and an
// AVX-512 copy would crash an older CPU. Plain arrays, cstring and cmath only.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "../common/dtype.h"

#ifndef TW_ISA
#define TW_ISA portable
#define TW_VECTOR_BYTES 16
#endif

#if defined(__F16C__)
#include <immintrin.h>
#endif

#define TW_INLINE static inline __attribute__((always_inline))

namespace tilewright {
namespace TW_ISA {

using vfloat = float __attribute__((vector_size(TW_VECTOR_BYTES)));
using vdouble = double __attribute__((vector_size(TW_VECTOR_BYTES)));
using vint = int32_t __attribute__((vector_size(TW_VECTOR_BYTES)));
using vuint = uint32_t __attribute__((vector_size(TW_VECTOR_BYTES)));
using vlong = int64_t __attribute__((vector_size(TW_VECTOR_BYTES)));
using vushort = uint16_t __attribute__((vector_size(TW_VECTOR_BYTES / 2)));

constexpr int kFloatLanes = TW_VECTOR_BYTES / 4;
constexpr int kDoubleLanes = TW_VECTOR_BYTES / 8;

// Simd<float>::type, ::mask (what a comparison gives), ::lanes; the same for double.
template <class T>
struct Simd;
template <>
struct Simd<float> {
  using type = vfloat;
  using mask = vint;
  static constexpr int lanes = kFloatLanes;
};
template <>
struct Simd<double> {
  using type = vdouble;
  using mask = vlong;
  static constexpr int lanes = kDoubleLanes;
};
template <class T>
using Vec = typename Simd<T>::type;

template <class T>
TW_INLINE Vec<T> broadcast(T x) {
  return Vec<T>{} + x;
}

// load<A>(p): one vector of A (float or double) from storage of any type, unaligned, widened.
TW_INLINE vfloat load(const float* p) {
  vfloat v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
TW_INLINE vdouble load(const double* p) {
  vdouble v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
TW_INLINE vfloat load(const BFloat16* p) {
  vushort h;
  std::memcpy(&h, p, sizeof h);
  return (vfloat)(__builtin_convertvector(h, vuint) << 16);
}
TW_INLINE vfloat load(const Half* p) {
#if defined(__AVX512F__) && TW_VECTOR_BYTES == 64
  return (vfloat)_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
#elif defined(__F16C__) && TW_VECTOR_BYTES == 32
  return (vfloat)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#else
  vushort h;
  std::memcpy(&h, p, sizeof h);
  const vuint u = __builtin_convertvector(h, vuint);
  const vuint sign = (u & 0x8000u) << 16, magnitude = u & 0x7FFFu;
  const vuint finite = (vuint)((vfloat)(magnitude << 13) * 0x1p112f);
  const vuint special = 0x7F800000u | (magnitude & 0x3FFu) << 13;
  return (vfloat)(sign | (magnitude >= 0x7C00u ? special : finite));
#endif
}

TW_INLINE void store(float* p, vfloat v) { std::memcpy(p, &v, sizeof v); }
TW_INLINE void store(double* p, vdouble v) { std::memcpy(p, &v, sizeof v); }
TW_INLINE void store(BFloat16* p, vfloat v) {
  const vuint u = (vuint)v;
  const vuint rounded = (u + 0x7FFFu + ((u >> 16) & 1u)) >> 16;
  const vuint nan = (u >> 16) | 0x40u;
  const vushort h = __builtin_convertvector((u & 0x7FFFFFFFu) > 0x7F800000u ? nan : rounded, vushort);
  std::memcpy(p, &h, sizeof h);
}
TW_INLINE void store(Half* p, vfloat v) {
#if defined(__AVX512F__) && TW_VECTOR_BYTES == 64
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT));
#elif defined(__F16C__) && TW_VECTOR_BYTES == 32
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT));
#else
  for (int i = 0; i < kFloatLanes; ++i) p[i] = to_half(v[i]);
#endif
}

// The first n lanes (0 <= n <= lanes); the rest are `fill` on a load and untouched on a store.
template <class T>
TW_INLINE Vec<Accumulator<T>> load_partial(const T* p, int n, Accumulator<T> fill = 0) {
  Vec<Accumulator<T>> v = broadcast<Accumulator<T>>(fill);
  for (int i = 0; i < n; ++i) v[i] = to_float(p[i]);
  return v;
}
template <class T>
TW_INLINE void store_partial(T* p, Vec<Accumulator<T>> v, int n) {
  for (int i = 0; i < n; ++i) p[i] = from_accumulator<T>(v[i]);
}

template <class V>
TW_INLINE V vmax(V a, V b) {
  return a > b ? a : b;
}
template <class V>
TW_INLINE V vmin(V a, V b) {
  return a < b ? a : b;
}

// Horizontal reductions, in pairs so that the order does not depend on the compiler.
template <class V>
TW_INLINE auto horizontal_sum(V v) {
  constexpr int n = sizeof(V) / sizeof(v[0]);
  auto t = v;
  for (int width = n / 2; width >= 1; width /= 2)
    for (int i = 0; i < width; ++i) t[i] += t[i + width];
  return t[0];
}
template <class V>
TW_INLINE auto horizontal_max(V v) {
  auto m = v[0];
  for (unsigned i = 1; i < sizeof(V) / sizeof(v[0]); ++i) m = v[i] > m ? v[i] : m;
  return m;
}

// exp(x) to about one unit in the last place: x = n ln 2 + r, a polynomial in r, then the exponent is put in place.
// Underflows to 0 (below -87.34 the result would be subnormal), saturates above 88.72; exp(-inf) = 0 and NaN stays NaN.
TW_INLINE vfloat vexp(vfloat x) {
  const vfloat magic = broadcast<float>(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
  vfloat clamped = vmin(x, broadcast<float>(88.722839f));
  clamped = vmax(clamped, broadcast<float>(-104.0f));
  const vfloat shifted = clamped * 1.44269504f + magic;
  const vfloat n = shifted - magic;
  vfloat r = clamped - n * 0.693359375f;
  r = r + n * 2.12194440e-4f;
  // Taylor coefficients nudged by a minimax fit over [-ln2/2, ln2/2].
  vfloat p = broadcast<float>(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  // Two steps of 2^n, so that n = 128 does not overflow the exponent field by itself.
  const vint ni = (vint)shifted - 0x4B400000;
  const vint half = ni >> 1;
  const vfloat result = p * (vfloat)((half + 127) << 23) * (vfloat)((ni - half + 127) << 23);
  const vfloat flushed = x < -87.3365f ? vfloat{} : result;
  return x == x ? flushed : x;
}
// float64 is the verification dtype: accuracy over speed.
TW_INLINE vdouble vexp(vdouble x) {
  for (int i = 0; i < kDoubleLanes; ++i) x[i] = std::exp(x[i]);
  return x;
}

}  // namespace TW_ISA
}  // namespace tilewright
