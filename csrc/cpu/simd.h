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
#include <utility>

#include "../common/dtype.h"
#include "integers.h"

#ifndef TW_ISA
#define TW_ISA portable
#define TW_VECTOR_BYTES 16
#endif

#if defined(__AVX__)
#include <immintrin.h>
#endif

// Defined where the compiler contracts a product and a sum of whole vectors into one operation with one rounding.
#if defined(__FMA__) && (TW_VECTOR_BYTES <= 32 || defined(__AVX512F__))
#define TW_CONTRACTS
#endif

#define TW_INLINE static inline __attribute__((always_inline))
#define TW_MEMBER inline __attribute__((always_inline))
// For functions with code for several types or of several callers: one copy, and none for some of their arguments either.
#if defined(__clang__)
#define TW_NOINLINE __attribute__((noinline))
#else
#define TW_NOINLINE __attribute__((noinline, noclone))
#endif

namespace tilewright {
namespace TW_ISA {

using vfloat = float __attribute__((vector_size(TW_VECTOR_BYTES)));
using vdouble = double __attribute__((vector_size(TW_VECTOR_BYTES)));
using vint = int32_t __attribute__((vector_size(TW_VECTOR_BYTES)));
using vuint = uint32_t __attribute__((vector_size(TW_VECTOR_BYTES)));
using vlong = int64_t __attribute__((vector_size(TW_VECTOR_BYTES)));
using vulong = uint64_t __attribute__((vector_size(TW_VECTOR_BYTES)));
using vushort = uint16_t __attribute__((vector_size(TW_VECTOR_BYTES / 2)));

constexpr int kFloatLanes = TW_VECTOR_BYTES / 4;
constexpr int kDoubleLanes = TW_VECTOR_BYTES / 8;

// Simd<float>::type, ::mask (what a comparison gives), ::bytes (one per lane), ::lanes; the same for double.
template <class T>
struct Simd;
template <>
struct Simd<float> {
  using type = vfloat;
  using mask = vint;
  using bytes = uint8_t __attribute__((vector_size(TW_VECTOR_BYTES / 4)));
  static constexpr int lanes = kFloatLanes;
};
template <>
struct Simd<double> {
  using type = vdouble;
  using mask = vlong;
  using bytes = uint8_t __attribute__((vector_size(TW_VECTOR_BYTES / 8)));
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
TW_INLINE vfloat widen(vushort h, BFloat16) { return (vfloat)(__builtin_convertvector(h, vuint) << 16); }
TW_INLINE vfloat widen(vushort h, Half) {
#if defined(__AVX512F__) && TW_VECTOR_BYTES == 64
  return (vfloat)_mm512_cvtph_ps((__m256i)h);
#elif defined(__F16C__) && TW_VECTOR_BYTES == 32
  return (vfloat)_mm256_cvtph_ps((__m128i)h);
#else
  const vuint u = __builtin_convertvector(h, vuint);
  const vuint sign = (u & 0x8000u) << 16, magnitude = u & 0x7FFFu;
  const vuint finite = (vuint)((vfloat)(magnitude << 13) * 0x1p112f);
  const vuint special = 0x7F800000u | (magnitude & 0x3FFu) << 13;
  return (vfloat)(sign | (magnitude >= 0x7C00u ? special : finite));
#endif
}
template <class T>
TW_INLINE vfloat load(const T* p) {
  vushort h;
  std::memcpy(&h, p, sizeof h);
  return widen(h, T{});
}

TW_INLINE void store(float* p, vfloat v) { std::memcpy(p, &v, sizeof v); }
TW_INLINE void store(double* p, vdouble v) { std::memcpy(p, &v, sizeof v); }
// Rounded to nearest, ties to even.
TW_INLINE vushort narrow(vfloat v, BFloat16) {
  const vuint u = (vuint)v;
  const vuint rounded = (u + 0x7FFFu + ((u >> 16) & 1u)) >> 16;
  const vuint nan = (u >> 16) | 0x40u;
  return __builtin_convertvector(v == v ? rounded : nan, vushort);
}
TW_INLINE vushort narrow(vfloat v, Half) {
#if defined(__AVX512F__) && TW_VECTOR_BYTES == 64
  return (vushort)_mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT);
#elif defined(__F16C__) && TW_VECTOR_BYTES == 32
  return (vushort)_mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT);
#else
  vushort h;
  for (int i = 0; i < kFloatLanes; ++i) h[i] = to_half(v[i]).bits;
  return h;
#endif
}
template <class T>
TW_INLINE void store(T* p, vfloat v) {
  const vushort h = narrow(v, T{});
  std::memcpy(p, &h, sizeof h);
}

// A store that bypasses the caches, to a p that is a multiple of the stored vector's size; followed by a stream_fence
// before another thread may read it.
#if defined(__AVX__) && TW_VECTOR_BYTES == 32
TW_INLINE void stream(float* p, vfloat v) { _mm256_stream_ps(p, (__m256)v); }
TW_INLINE void stream(double* p, vdouble v) { _mm256_stream_pd(p, (__m256d)v); }
#elif defined(__AVX512F__) && TW_VECTOR_BYTES == 64
TW_INLINE void stream(float* p, vfloat v) { _mm512_stream_ps(p, (__m512)v); }
TW_INLINE void stream(double* p, vdouble v) { _mm512_stream_pd(p, (__m512d)v); }
#else
TW_INLINE void stream(float* p, vfloat v) { store(p, v); }
TW_INLINE void stream(double* p, vdouble v) { store(p, v); }
#endif
template <class T>
TW_INLINE void stream(T* p, vfloat v) {
#if defined(__AVX__) && TW_VECTOR_BYTES == 32
  _mm_stream_si128(reinterpret_cast<__m128i*>(p), (__m128i)narrow(v, T{}));
#elif defined(__AVX512F__) && TW_VECTOR_BYTES == 64
  _mm256_stream_si256(reinterpret_cast<__m256i*>(p), (__m256i)narrow(v, T{}));
#else
  store(p, v);
#endif
}
TW_INLINE void stream_fence() {
#if defined(__AVX__)
  _mm_sfence();
#endif
}

// The first n lanes (0 <= n <= lanes); the rest are `fill` on a load and untouched on a store.
#if defined(__AVX512F__) && TW_VECTOR_BYTES == 64
TW_INLINE uint32_t first_lanes(int n) { return (1u << n) - 1; }
TW_INLINE vfloat load_partial(const float* p, int n, float fill = 0) {
  return (vfloat)_mm512_mask_loadu_ps((__m512)broadcast<float>(fill), static_cast<__mmask16>(first_lanes(n)), p);
}
TW_INLINE vdouble load_partial(const double* p, int n, double fill = 0) {
  return (vdouble)_mm512_mask_loadu_pd((__m512d)broadcast<double>(fill), static_cast<__mmask8>(first_lanes(n)), p);
}
template <class T>
TW_INLINE vfloat load_partial(const T* p, int n, float fill = 0) {
  const vushort filled = vushort{} + from_accumulator<T>(fill).bits;
  return widen((vushort)_mm256_mask_loadu_epi16((__m256i)filled, static_cast<__mmask16>(first_lanes(n)), p), T{});
}
TW_INLINE void store_partial(float* p, vfloat v, int n) {
  _mm512_mask_storeu_ps(p, static_cast<__mmask16>(first_lanes(n)), (__m512)v);
}
TW_INLINE void store_partial(double* p, vdouble v, int n) {
  _mm512_mask_storeu_pd(p, static_cast<__mmask8>(first_lanes(n)), (__m512d)v);
}
template <class T>
TW_INLINE void store_partial(T* p, vfloat v, int n) {
  _mm256_mask_storeu_epi16(p, static_cast<__mmask16>(first_lanes(n)), (__m256i)narrow(v, T{}));
}
#else
template <class T>
TW_INLINE Vec<Accumulator<T> > load_partial(const T* p, int n, Accumulator<T> fill = 0) {
  Vec<Accumulator<T> > v = broadcast<Accumulator<T> >(fill);
  for (int i = 0; i < n; ++i) v[i] = to_float(p[i]);
  return v;
}
// Converted as a vector: lane by lane, each lane would have a copy of the conversion.
template <class T>
TW_INLINE void store_partial(T* p, Vec<Accumulator<T> > v, int n) {
  alignas(64) T lanes[Simd<Accumulator<T> >::lanes];
  store(lanes, v);
  for (int i = 0; i < n; ++i) p[i] = lanes[i];
}
#endif

// With a NaN on either side both give b.
template <class V>
TW_INLINE V vmax(V a, V b) {
  return a > b ? a : b;
}
template <class V>
TW_INLINE V vmin(V a, V b) {
  return a < b ? a : b;
}
// One instruction, which gcc does not find in the forms above.
#if defined(__AVX__) && TW_VECTOR_BYTES == 32
TW_INLINE vfloat vmax(vfloat a, vfloat b) { return (vfloat)_mm256_max_ps((__m256)a, (__m256)b); }
TW_INLINE vfloat vmin(vfloat a, vfloat b) { return (vfloat)_mm256_min_ps((__m256)a, (__m256)b); }
#elif defined(__AVX512F__) && TW_VECTOR_BYTES == 64
TW_INLINE vfloat vmax(vfloat a, vfloat b) { return (vfloat)_mm512_max_ps((__m512)a, (__m512)b); }
TW_INLINE vfloat vmin(vfloat a, vfloat b) { return (vfloat)_mm512_min_ps((__m512)a, (__m512)b); }
#endif

// Calls f(T{}) with the storage type T that `dtype` names, among those that widen to A.
template <class A, class F>
TW_INLINE void with_dtype(DType dtype, const F& f) {
  if constexpr (sizeof(A) == 8) {
    f(double{});
  } else {
    if (dtype == DType::kFloat32) return f(float{});
    if (dtype == DType::kBFloat16) return f(BFloat16{});
    f(Half{});
  }
}

// Lanes of two vectors by index, the second's counting on from the first's. The one place that names the builtins: GCC
// has Clang's since 12, and Clang has no other.
template <class V, int... I>
TW_INLINE V shuffle(V a, V b, std::integer_sequence<int, I...>) {
#if defined(__clang__) || __GNUC__ >= 12
  return __builtin_shufflevector(a, b, I...);
#else
  using Index = decltype(a < b);
  return __builtin_shuffle(a, b, Index{I...});
#endif
}

// Lane i of the result is lane i ^ W.
template <int W, class V, int... I>
TW_INLINE V swap_lanes(V v, std::integer_sequence<int, I...>) {
  return shuffle(v, v, std::integer_sequence<int, (I ^ W)...>{});
}

// Horizontal reductions, in pairs so that the order does not depend on the compiler.
template <int W, class V>
TW_INLINE V sum_lanes(V v) {
  constexpr int n = sizeof(V) / sizeof(v[0]);
  if constexpr (W >= 1) return sum_lanes<W / 2>(v + swap_lanes<W>(v, std::make_integer_sequence<int, n>{}));
  return v;
}
template <int W, class V>
TW_INLINE V max_lanes(V v) {
  constexpr int n = sizeof(V) / sizeof(v[0]);
  if constexpr (W >= 1) return max_lanes<W / 2>(vmax(v, swap_lanes<W>(v, std::make_integer_sequence<int, n>{})));
  return v;
}
template <class V>
TW_INLINE auto horizontal_sum(V v) {
  return sum_lanes<static_cast<int>(sizeof(V) / sizeof(v[0]) / 2)>(v)[0];
}
template <class V>
TW_INLINE auto horizontal_max(V v) {
  return max_lanes<static_cast<int>(sizeof(V) / sizeof(v[0]) / 2)>(v)[0];
}

// An L x L block in registers, transposed: step S exchanges the off-diagonal blocks of width S between rows i and i + S.
template <int S, class V, int... I>
TW_INLINE void exchange(V& a, V& b, std::integer_sequence<int, I...>) {
  constexpr int n = sizeof...(I);
  const V low = shuffle(a, b, std::integer_sequence<int, ((I & S) != 0 ? n + I - S : I)...>{});
  b = shuffle(a, b, std::integer_sequence<int, ((I & S) != 0 ? n + I : I + S)...>{});
  a = low;
}
template <class A, int S = 1>
TW_INLINE void transpose_block(Vec<A> (&r)[Simd<A>::lanes]) {
  constexpr int L = Simd<A>::lanes;
  if constexpr (S < L) {
    for (int i = 0; i < L; ++i)
      if ((i & S) == 0) exchange<S>(r[i], r[i + S], std::make_integer_sequence<int, L>{});
    transpose_block<A, 2 * S>(r);
  }
}

// e^r for |r| <= ln(2)/2. float: 1 + r + r^2 p(r) with p the minimax polynomial of degree 4 for the relative error
// (Remez exchange in 40 digits): 3.1e-9, a twentieth of a unit in the last place. double: Taylor to r^13, within 5e-18.
TW_INLINE vfloat exp_reduced(vfloat r) {
  vfloat p = broadcast<float>(0.0013814540177f);
  p = p * r + 0.0083687451089f;
  p = p * r + 0.041668390784f;
  p = p * r + 0.16666520399f;
  p = p * r + 0.49999993432f;
  return p * r * r + r + 1.0f;
}
TW_INLINE vdouble exp_reduced(vdouble r) {
  constexpr double inverse_factorial[] = {1.0 / 2,       1.0 / 6,        1.0 / 24,        1.0 / 120,
                                          1.0 / 720,     1.0 / 5040,     1.0 / 40320,     1.0 / 362880,
                                          1.0 / 3628800, 1.0 / 39916800, 1.0 / 479001600, 1.0 / 6227020800.0};
  vdouble p = broadcast<double>(inverse_factorial[11]);
  for (int k = 10; k >= 0; --k) p = p * r + inverse_factorial[k];
  return p * r * r + r + 1.0;
}

// x = n ln 2 + r. Adding 1.5 * 2^23 (2^52 for double) rounds to an integer, which is then in the low bits of the sum.
template <class V>
struct ExpParts {
  V r, shifted;
};
TW_INLINE ExpParts<vfloat> exp_split(vfloat x) {
  const vfloat shifted = x * 1.44269504f + 12582912.0f;
  const vfloat n = shifted - 12582912.0f;
  return {x - n * 0.693359375f + n * 2.12194440e-4f,
          shifted};  // ln 2 in two parts; the first has 9 bits: n * it is exact
}
TW_INLINE ExpParts<vdouble> exp_split(vdouble x) {
  const vdouble shifted = x * 1.4426950408889634 + 6755399441055744.0;
  const vdouble n = shifted - 6755399441055744.0;
  return {x - n * 6.93147180369123816490e-01 - n * 1.90821492927058770002e-10, shifted};
}

// exp(x) to about one unit in the last place. exp(-inf) = 0, NaN stays NaN; results that would be subnormal are flushed
// to 0, and the result saturates at exp(88.72), exp(709.78) for double. The constant comes first in vmin and vmax so
// that they pass NaN on.
TW_INLINE vfloat vexp(vfloat x) {
  const vfloat clamped = vmax(broadcast<float>(-104.0f), vmin(broadcast<float>(88.722839f), x));
  const ExpParts<vfloat> parts = exp_split(clamped);
  // Two steps of 2^n, so that n = 128 does not overflow the exponent field by itself.
  const vint n = (vint)parts.shifted - 0x4B400000;
  const vint half = n >> 1;
  const vfloat result = exp_reduced(parts.r) * (vfloat)((half + 127) << 23) * (vfloat)((n - half + 127) << 23);
  return x < -87.3365f ? vfloat{} : result;
}
TW_INLINE vdouble vexp(vdouble x) {
  const vdouble clamped = vmax(broadcast<double>(-750.0), vmin(broadcast<double>(709.782712893384), x));
  const ExpParts<vdouble> parts = exp_split(clamped);
  const vlong n = (vlong)parts.shifted - 0x4338000000000000;
  const vlong half =
      ((n + 4096) >> 1) - 2048;  // n is positive before the shift: AVX2 has no arithmetic one for 64 bits
  const vdouble result = exp_reduced(parts.r) * (vdouble)((half + 1023) << 52) * (vdouble)((n - half + 1023) << 52);
  return x < -708.3964 ? vdouble{} : result;
}

// exp(x) for x <= 0, a quarter cheaper: the exponent needs one step, whose field reaches 0 at the clamp, which gives
// exp = 0.
TW_INLINE vfloat vexp_nonpositive(vfloat x) {
  const ExpParts<vfloat> parts = exp_split(vmax(broadcast<float>(-88.0f), x));
  return exp_reduced(parts.r) * (vfloat)(((vuint)parts.shifted << 23) + 0x3F800000u);
}
TW_INLINE vdouble vexp_nonpositive(vdouble x) {
  const ExpParts<vdouble> parts = exp_split(vmax(broadcast<double>(-709.0), x));
  return exp_reduced(parts.r) * (vdouble)(((vulong)parts.shifted << 52) + 0x3FF0000000000000u);
}

}  // namespace TW_ISA
}  // namespace tilewright
