// Arithmetic that is an instruction of its own, and the 16-bit types: by their instructions, since CUDA's own headers for
// them are a third of a second in each file.
#pragma once

#include <cstdint>

#include "../../common/dtype.h"
#include "thread.h"

namespace tilewright::gpu {

constexpr float kInfinity = __builtin_huge_valf(), kNaN = __builtin_nanf("");
constexpr float kLowest = -3.4028234663852886e38f;

TW_DEVICE uint32_t bits_of(float x) { return __float_as_uint(x); }
TW_DEVICE float float_of(uint32_t x) { return __uint_as_float(x); }

TW_DEVICE bool is_finite(float x) { return fabsf(x) < kInfinity; }

TW_DEVICE float widen(float x) { return x; }
TW_DEVICE float widen(Half x) {
  float y;
  asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
  return y;
}
TW_DEVICE float widen(BFloat16 x) { return float_of(uint32_t{x.bits} << 16); }

// Rounded to nearest, ties to even.
template <class T>
TW_DEVICE T narrow(float x);
template <>
TW_DEVICE float narrow<float>(float x) {
  return x;
}
template <>
TW_DEVICE Half narrow<Half>(float x) {
  Half y;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
  return y;
}
template <>
TW_DEVICE BFloat16 narrow<BFloat16>(float x) {
  BFloat16 y;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
  return y;
}

// Two numbers of 16 bits in a word.
template <class T>
TW_DEVICE uint32_t pack(float low, float high);
template <>
TW_DEVICE uint32_t pack<Half>(float low, float high) {
  uint32_t both;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
  return both;
}
template <>
TW_DEVICE uint32_t pack<BFloat16>(float low, float high) {
  uint32_t both;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
  return both;
}

// To a unit or two in the last place.
TW_DEVICE float exp_exact(float x) { return expf(x); }
TW_DEVICE float log_exact(float x) { return logf(x); }

// Accurate to 2 units in the last place, and to 2^-22.
TW_DEVICE float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
TW_DEVICE float log2_fast(float x) { return __log2f(x); }
TW_DEVICE float divide_fast(float x, float y) { return __fdividef(x, y); }
// A product that the compiler does not join with a later addition: what is compared with it has been rounded as well.
TW_DEVICE float rounded_product(float a, float b) { return __fmul_rn(a, b); }
TW_DEVICE float least_of(float a, float b) { return fminf(a, b); }

// Rounds to nearest, ties away from zero, to the 10 bits of TF32's mantissa.
TW_DEVICE uint32_t to_tf32(float x) {
  uint32_t y;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(y) : "f"(x));
  return y;
}

}  // namespace tilewright::gpu
