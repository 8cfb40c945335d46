// Activations of the feed-forward block and their derivatives, on vectors.
#pragma once

#include "simd.h"

namespace tilewright {
namespace TW_ISA {

// The logistic function s(x) = 1 / (1 + exp(-x)), with full relative accuracy on both sides and no overflow: s(x), s(-x),
// and y s(x), which is one rounding better than their product.
template <class V>
struct Logistic {
  V of_x, of_minus_x, weighted;
};
template <class V>
TW_INLINE Logistic<V> logistic(V x, V y) {
  const V one = V{} + 1, e = vexp_nonpositive(x < V{} ? x : -x), sum = e + 1;
  return {(x < V{} ? e : one) / sum, (x < V{} ? one : e) / sum, (x < V{} ? y * e : y) / sum};
}

// The normal distribution function P(X <= x).
//
// float: |x| < 1.5: 1/2 + x p(x^2), p of degree 6; beyond, the upper tail is exp(-x^2 / 2) t q(t) with t = 1 / (|x| +
// 2), q of degree 7, fitted over [1.5, 14]. Both are minimax fits of the relative error by Remez exchange in 40
// digits: 2.7e-9 and 4.2e-9. Rounding included, the result is within 2 units in the last place for x > -1.5; the
// exponent's rounding adds x^2 / 2 of them in the lower tail.
TW_INLINE vfloat normal_cdf(vfloat x) {
  const vfloat y = x * x, size = x < vfloat{} ? -x : x;
  vfloat p = broadcast<float>(4.1155595168e-7f);
  p = p * y - 8.7183036851e-6f;
  p = p * y + 0.00011435638927f;
  p = p * y - 0.00118648849f;
  p = p * y + 0.0099732413073f;
  p = p * y - 0.066490335027f;
  p = p * y + 0.39894227934f;
  const vfloat t = 1.0f / (size + 2.0f);
  vfloat q = broadcast<float>(-37.689055107f);
  q = q * t + 54.130451514f;
  q = q * t - 25.064888067f;
  q = q * t + 1.0760611846f;
  q = q * t + 0.47706043671f;
  q = q * t + 1.2170487308f;
  q = q * t + 0.79717849063f;
  q = q * t + 0.39895274655f;
  const vfloat tail = vexp_nonpositive(y * -0.5f) * t * q;
  return size < 1.5f ? x * p + 0.5f : x < vfloat{} ? tail : 1.0f - tail;
}
// float64 is the verification dtype: the library's function, lane by lane.
TW_INLINE vdouble normal_cdf(vdouble x) {
  for (int i = 0; i < kDoubleLanes; ++i) x[i] = 0.5 * std::erfc(x[i] * -0.70710678118654752440);
  return x;
}

template <class V>
struct Activated {
  V value, slope;
};

// gelu_tanh's 1/2 (1 + tanh(u)) is sigmoid(2u), u = sqrt(2/pi) (x + 0.044715 x^3), without the cancellation for
// negative x.
constexpr double kTwoRootTwoOverPi = 1.59576912160573071176;
constexpr double kCubic = 0.044715;
constexpr double kInverseRootTwoPi = 0.39894228040143267794;

// act(x) and act'(x), of the gate's function for a gated activation.
template <class A>
TW_INLINE Activated<Vec<A>> activate(Activation activation, Vec<A> x) {
  using V = Vec<A>;
  const V zero{};
  switch (activation) {
    case Activation::kRelu:
    case Activation::kReglu: return {x < zero ? zero : x, x > zero ? zero + 1 : zero};  // NaN < 0 is false: NaN passes
    case Activation::kRelu2: {
      const V r = x < zero ? zero : x;
      return {r * r, 2 * r};
    }
    case Activation::kGelu:
    case Activation::kGeglu: {
      const V cdf = normal_cdf(x);
      return {x * cdf, cdf + x * static_cast<A>(kInverseRootTwoPi) * vexp_nonpositive(x * x * A(-0.5))};
    }
    case Activation::kGeluTanh:
    case Activation::kGegluTanh: {
      const V y = x * x;
      const V argument = x * static_cast<A>(kTwoRootTwoOverPi) * (y * static_cast<A>(kCubic) + 1);
      const Logistic<V> s = logistic(argument, x);
      const V argument_slope = static_cast<A>(kTwoRootTwoOverPi) * (y * static_cast<A>(3 * kCubic) + 1);
      return {s.weighted, s.of_x + s.weighted * s.of_minus_x * argument_slope};
    }
    case Activation::kSilu:
    case Activation::kSwiglu: {
      const Logistic<V> s = logistic(x, x);
      return {s.weighted, s.of_x + s.weighted * s.of_minus_x};
    }
  }
  return {zero, zero};
}

}  // namespace TW_ISA
}  // namespace tilewright
