// Half-precision storage types and their scalar conversions. Arithmetic is always done in float.
#pragma once

#include <cstdint>
#include <cstring>

#include "params.h"

// The CPU kernels are compiled once per instruction set, and the linker keeps one copy of a function that several of
// them emit out of line: it could be the one with the newest instructions. So what they share is always inlined.
#define TW_SHARED_INLINE inline __attribute__((always_inline))

namespace tilewright {

struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

namespace detail {
TW_SHARED_INLINE float as_float(uint32_t u) {
  float f;
  std::memcpy(&f, &u, sizeof f);
  return f;
}
TW_SHARED_INLINE uint32_t as_bits(float f) {
  uint32_t u;
  std::memcpy(&u, &f, sizeof u);
  return u;
}
}  // namespace detail

TW_SHARED_INLINE float to_float(BFloat16 x) { return detail::as_float(static_cast<uint32_t>(x.bits) << 16); }

// Round to nearest, ties to even. NaN keeps its sign and becomes quiet.
TW_SHARED_INLINE BFloat16 to_bfloat16(float f) {
  const uint32_t u = detail::as_bits(f);
  if ((u & 0x7FFFFFFFu) > 0x7F800000u) return {static_cast<uint16_t>((u >> 16) | 0x40u)};
  return {static_cast<uint16_t>((u + 0x7FFFu + ((u >> 16) & 1u)) >> 16)};
}

TW_SHARED_INLINE float to_float(Half x) {
  const uint32_t sign = static_cast<uint32_t>(x.bits & 0x8000u) << 16;
  const uint32_t magnitude = x.bits & 0x7FFFu;
  if (magnitude >= 0x7C00u) return detail::as_float(sign | 0x7F800000u | (magnitude & 0x3FFu) << 13);
  // Place exponent and mantissa, then multiply by 2^112 to move the bias from 15 to 127: exact, subnormals included.
  return detail::as_float(sign | detail::as_bits(detail::as_float(magnitude << 13) * detail::as_float(0x77800000u)));
}

// Round to nearest, ties to even; overflows to infinity.
TW_SHARED_INLINE Half to_half(float f) {
  const uint32_t u = detail::as_bits(f);
  const uint16_t sign = static_cast<uint16_t>((u >> 16) & 0x8000u);
  const uint32_t magnitude = u & 0x7FFFFFFFu;
  if (magnitude > 0x7F800000u) return {static_cast<uint16_t>(sign | 0x7E00u)};
  if (magnitude >= 0x47800000u) return {static_cast<uint16_t>(sign | 0x7C00u)};
  if (magnitude < 0x38800000u) {  // subnormal: adding 0.5 rounds the mantissa at 2^-24 and leaves it in the low bits
    const uint32_t r = detail::as_bits(detail::as_float(magnitude) + 0.5f) - detail::as_bits(0.5f);
    return {static_cast<uint16_t>(sign | r)};
  }
  const uint32_t r = magnitude - 0x38000000u + 0xFFFu + ((magnitude >> 13) & 1u);
  return {static_cast<uint16_t>(sign | (r >> 13))};
}

TW_SHARED_INLINE double to_float(double x) { return x; }
TW_SHARED_INLINE float to_float(float x) { return x; }

template <class T>
struct AccumulatorOf {
  using type = float;
};
template <>
struct AccumulatorOf<double> {
  using type = double;
};
template <class T>
using Accumulator = typename AccumulatorOf<T>::type;

template <class T>
TW_SHARED_INLINE T from_accumulator(Accumulator<T> x) {
  return x;
}
template <>
TW_SHARED_INLINE Half from_accumulator<Half>(float x) {
  return to_half(x);
}
template <>
TW_SHARED_INLINE BFloat16 from_accumulator<BFloat16>(float x) {
  return to_bfloat16(x);
}

TW_SHARED_INLINE int64_t size_of(DType t) {
  switch (t) {
    case DType::kFloat32: return 4;
    case DType::kFloat16:
    case DType::kBFloat16: return 2;
    case DType::kFloat64: return 8;
    case DType::kBool: return 1;
  }
  return 0;
}

}  // namespace tilewright
