// The online softmax over a strip's tile of scores (Milakov and Gimelshein 2018; FlashAttention, Dao et al. 2022).
#pragma once

#include "attention_strip.h"

namespace tilewright {
namespace TW_ISA {

// exp(x) for the softmax, where x is at most about 0: no saturation at the top, and one multiply puts the exponent in
// place. At n = -127 that factor is exactly 0, so masked scores need no test. NaN stays NaN. Error below 1 ulp.
TW_INLINE vfloat exp_below(vfloat x) {
  const vfloat floor = broadcast<float>(-88.1f);
  x = floor > x ? floor : x;  // in this order, NaN passes
  const vfloat magic = broadcast<float>(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
  const vfloat shifted = x * 1.44269504f + magic;
  const vfloat n = shifted - magic;
  vfloat r = x - n * 0.693359375f;
  r = r + n * 2.12194440e-4f;
  vfloat p = broadcast<float>(1.3814599e-3f);  // minimax fit of (e^r - 1 - r) / r^2 over |r| < ln2 / 2
  p = p * r + 8.3687166e-3f;
  p = p * r + 4.1668388e-2f;
  p = p * r + 1.6666521e-1f;
  p = p * r + 4.9999994e-1f;
  p = p * (r * r) + (r + 1.0f);
  return p * (vfloat)(((vint)shifted - (0x4B400000 - 127)) << 23);
}
TW_INLINE vdouble exp_below(vdouble x) { return vexp(x); }

// What a strip carries from tile to tile: O^T [Dv][lanes], and per lane the running maximum and sum.
template <class A>
struct StripState {
  A* out;
  A* max;
  A* sum;
  bool started;
};

// s [n][lanes] turns from scores into exp(s - max). `alpha` receives what the earlier sums are multiplied by.
template <class A, int VECTORS>
void softmax_tile(A* s, int64_t n, StripState<A>* state, A* alpha) {
  constexpr int L = Simd<A>::lanes, lanes = kStripLanes<A>;
  const Vec<A> none = broadcast<A>(static_cast<A>(-kInfinity));
  Vec<A> max[VECTORS], sum[2][VECTORS];
  for (int v = 0; v < VECTORS; ++v) {
    max[v] = state->started ? load(state->max + v * L) : none;
    sum[0][v] = sum[1][v] = Vec<A>{};
  }
  for (int64_t j = 0; j < n; ++j)
    for (int v = 0; v < VECTORS; ++v) max[v] = vmax(load(s + j * lanes + v * L), max[v]);
  for (int v = 0; v < VECTORS; ++v) {
    // A row with no key so far subtracts 0: -inf - -inf would be NaN.
    const Vec<A> base = max[v] == none ? Vec<A>{} : max[v];
    const Vec<A> factor = state->started ? exp_below(load(state->max + v * L) - base) : Vec<A>{};
    store(state->max + v * L, max[v]);
    store(alpha + v * L, factor);
    max[v] = base;
  }
  int64_t j = 0;
  for (; j + 2 <= n; j += 2)
    for (int i = 0; i < 2; ++i)
      for (int v = 0; v < VECTORS; ++v) {
        const Vec<A> e = exp_below(load(s + (j + i) * lanes + v * L) - max[v]);
        store(s + (j + i) * lanes + v * L, e);
        sum[i][v] += e;
      }
  for (; j < n; ++j)
    for (int v = 0; v < VECTORS; ++v) {
      const Vec<A> e = exp_below(load(s + j * lanes + v * L) - max[v]);
      store(s + j * lanes + v * L, e);
      sum[0][v] += e;
    }
  for (int v = 0; v < VECTORS; ++v) {
    const Vec<A> before = state->started ? load(state->sum + v * L) * load(alpha + v * L) : Vec<A>{};
    store(state->sum + v * L, before + (sum[0][v] + sum[1][v]));
  }
}

template <class A>
inline void softmax_tile(int vectors, A* s, int64_t n, StripState<A>* state, A* alpha) {
  static_assert(kTileVectors == 2, "a strip is one or two vectors");
  vectors == 1 ? softmax_tile<A, 1>(s, n, state, alpha) : softmax_tile<A, 2>(s, n, state, alpha);
}

// Adds the head's sink to a row's denominator; returns what the row's O is to be multiplied by.
template <class A>
inline A join_sink(const AttentionParams& p, int64_t head, A* max, A* sum) {
  if (p.sinks.data == nullptr) return 1;
  const A sink = sink_of<A>(p, head), joint = sink > *max ? sink : *max;
  if (joint == static_cast<A>(-kInfinity)) return 1;
  const A scale = std::exp(*max - joint);
  *sum = *sum * scale + std::exp(sink - joint);
  *max = joint;
  return scale;
}

}  // namespace TW_ISA
}  // namespace tilewright
