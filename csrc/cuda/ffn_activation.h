// Activations of the feed-forward block and their derivatives.
#pragma once

#include <primitives/number.h>

#include "../common/params.h"

namespace tilewright::gpu {

struct Activated {
  float value, slope;
};

// e^x for x <= 0, and quotients with a denominator between 1 and 1e38: to the last bits where T has them.
template <class T>
TW_DEVICE float exp_negative(float x) {
  if constexpr (sizeof(T) == 4) return exp_exact(x);
  return exp2_fast(x * 1.4426950408889634f);
}
template <class T>
TW_DEVICE float quotient(float x, float y) {
  if constexpr (sizeof(T) == 4) return x / y;
  return divide_fast(x, y);
}

// x between -size and size; NaN stays NaN.
TW_DEVICE float bounded(float x, float size) { return x < -size ? -size : x > size ? size : x; }

// The logistic function of u, s(u) = 1 / (1 + e^-u), without cancellation on either side: s(u), s(-u) and x s(u).
struct Logistic {
  float below, above, weighted;
};
template <class T>
TW_DEVICE Logistic logistic(float u, float x) {
  const float e = exp_negative<T>(u < 0.0f ? u : -u), sum = 1.0f + e;
  const float large = quotient<T>(1.0f, sum), small = quotient<T>(e, sum);
  const bool negative = u < 0.0f;
  return {negative ? small : large, negative ? large : small, quotient<T>(negative ? x * e : x, sum)};
}

// The normal distribution function. The fits are those of csrc/cpu/ffn_math.h: 1/2 + x p(x^2) in the middle, e^(-x^2 / 2)
// t q(t) in the tails, where 1 + erf would cancel for negative x. tail: e^(-x^2 / 2).
template <class T>
TW_DEVICE float normal_cdf(float x, float tail) {
  const float square = x * x, size = x < 0.0f ? -x : x;
  if (size < 1.5f) {
    float p = 4.1155595168e-7f * square - 8.7183036851e-6f;
    p = p * square + 0.00011435638927f;
    p = p * square - 0.00118648849f;
    p = p * square + 0.0099732413073f;
    p = p * square - 0.066490335027f;
    p = p * square + 0.39894227934f;
    return x * p + 0.5f;
  }
  const float t = quotient<T>(1.0f, size + 2.0f);
  float q = -37.689055107f * t + 54.130451514f;
  q = q * t - 25.064888067f;
  q = q * t + 1.0760611846f;
  q = q * t + 0.47706043671f;
  q = q * t + 1.2170487308f;
  q = q * t + 0.79717849063f;
  q = q * t + 0.39895274655f;
  const float outside = tail * t * q;
  return x < 0.0f ? outside : 1.0f - outside;
}

// act(x) and act'(x), of the gate's function for a gated activation; rounded to T later. Infinities give limits, not NaN.
template <class T>
TW_DEVICE Activated activate(Activation activation, float x) {
  constexpr float kTwoRootTwoOverPi = 1.5957691216057308f, kCubic = 0.044715f, kInverseRootTwoPi = 0.3989422804014327f;
  // From here on all functions but relu's are 0, or x, and their slopes 0 or 1.
  constexpr float kFar = 32.0f;
  const float finite = x < kLowest ? kLowest : x;  // -inf times 0 would be NaN
  switch (activation) {
    case Activation::kRelu:
    case Activation::kReglu: return {x < 0.0f ? 0.0f : x, x > 0.0f ? 1.0f : 0.0f};
    case Activation::kRelu2: {
      const float positive = x < 0.0f ? 0.0f : x;
      return {positive * positive, 2.0f * positive};
    }
    case Activation::kGelu:
    case Activation::kGeglu: {
      const float near = bounded(x, kFar), tail = exp_negative<T>(-0.5f * near * near);
      const float cdf = normal_cdf<T>(near, tail);
      return {finite * cdf, cdf + near * tail * kInverseRootTwoPi};
    }
    case Activation::kGeluTanh:
    case Activation::kGegluTanh: {
      // (1 + tanh(u)) / 2 is the logistic function of 2 u, u = sqrt(2 / pi) (x + 0.044715 x^3).
      const float near = bounded(x, kFar), square = near * near;
      const Logistic s = logistic<T>(near * kTwoRootTwoOverPi * (square * kCubic + 1.0f), finite);
      const float slope = kTwoRootTwoOverPi * (square * (3.0f * kCubic) + 1.0f);
      return {s.weighted, s.below + near * s.below * s.above * slope};
    }
    case Activation::kSilu:
    case Activation::kSwiglu: {
      const Logistic s = logistic<T>(x, finite);
      return {s.weighted, s.below + bounded(x, 128.0f) * s.below * s.above};
    }
  }
  return {0.0f, 0.0f};
}

}  // namespace tilewright::gpu
