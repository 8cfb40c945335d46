// Arithmetic that is an instruction of its own, emulated. See csrc/cuda/primitives/number.h.
#pragma once

#include <cmath>
#include <cstring>

#include "../../common/dtype.h"
#include "thread.h"

namespace tilewright::gpu {

constexpr float kInfinity = __builtin_huge_valf(), kNaN = __builtin_nanf("");
constexpr float kLowest = -3.4028234663852886e38f;

template <class T>
float widen(T x) {
  return to_float(x);
}
template <class T>
T narrow(float x) {
  return from_accumulator<T>(x);
}

template <class T>
uint32_t pack(float low, float high) {
  static_assert(sizeof(T) == 2);
  return uint32_t{narrow<T>(low).bits} | uint32_t{narrow<T>(high).bits} << 16;
}

inline uint32_t bits_of(float x) { return tilewright::detail::as_bits(x); }
inline float float_of(uint32_t x) { return tilewright::detail::as_float(x); }

inline bool is_finite(float x) { return std::fabs(x) < kInfinity; }

inline float exp_exact(float x) { return std::exp(x); }
inline float log_exact(float x) { return std::log(x); }

// The hardware's are accurate to 2 units in the last place (exp2) and to 2^-22 (log2).
inline float exp2_fast(float x) { return std::exp2(x); }
inline float log2_fast(float x) { return std::log2(x); }
inline float divide_fast(float x, float y) { return x / y; }
inline float rounded_product(float a, float b) { return a * b; }
inline float least_of(float a, float b) { return std::fmin(a, b); }

// Rounds to nearest, ties away from zero, to the 10 bits of TF32's mantissa.
inline uint32_t to_tf32(float x) { return (bits_of(x) + 0x1000u) & 0xFFFFE000u; }

}  // namespace tilewright::gpu
