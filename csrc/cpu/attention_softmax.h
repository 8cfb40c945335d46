// The online softmax over a strip's tile of scores (Milakov and Gimelshein 2018; FlashAttention, Dao et al. 2022).
#pragma once

#include "attention_strip.h"

namespace tilewright {
namespace TW_ISA {

constexpr double kLog2e = 1.4426950408889634, kLn2 = 0.6931471805599453;

// Whether row maxima are kept in units of log 2, and exp(s - max) is exp2(s log2(e) - max), whose range reduction is one
// subtraction. The product is not rounded before the difference is taken (one FMA), so that large scores keep the
// precision of their differences; it may not join the scale that Q is packed with. Not where something is added to the
// scores: log2(e) times a mask's finfo.min would overflow.
template <class A>
inline bool base2_scores(const AttentionParams& p) {
  const bool adds = p.mask.data != nullptr && p.mask_dtype != DType::kBool;
  return sizeof(A) == 4 && !adds && p.softcap <= 0 && p.alibi_slopes.data == nullptr;
}
// What turns a row maximum into a natural logarithm.
template <class A>
inline double natural_log(const AttentionParams& p) {
  return base2_scores<A>(p) ? kLn2 : 1;
}

// 2^x for x <= 0. The clamp makes the exponent field 0, and the result with it; the constant comes first to pass NaN.
TW_INLINE vfloat exp2_nonpositive(vfloat x) {
  x = vmax(broadcast<float>(-127.0f), x);
  const vfloat shifted = x + 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  const vfloat r = x - (shifted - 12582912.0f);
  vfloat p = broadcast<float>(1.53533416e-4f);  // minimax fit of (2^r - 1) / r over |r| < 1/2: 2e-9
  p = p * r + 1.33989006e-3f;
  p = p * r + 9.61843785e-3f;
  p = p * r + 5.55033237e-2f;
  p = p * r + 2.40226477e-1f;
  p = p * r + 6.93147182e-1f;
  p = p * r + 1.0f;
  return p * (vfloat)(((vuint)shifted << 23) + 0x3F800000u);
}

template <bool BASE2>
TW_INLINE vfloat exp_nonpositive(vfloat x) {
  return BASE2 ? exp2_nonpositive(x) : vexp_nonpositive(x);
}
template <bool BASE2>
TW_INLINE vdouble exp_nonpositive(vdouble x) {
  return vexp_nonpositive(x);
}

// s - max, in the units of max.
template <bool BASE2, class V>
TW_INLINE V below(V s, V max) {
  if constexpr (BASE2) return s * 1.44269504f - max;
  return s - max;
}

// What a strip carries from tile to tile: O^T [Dv][lanes], and per lane the running maximum and sum.
template <class A>
struct StripState {
  A* out;
  A* max;
  A* sum;
  bool started;
};

// s [n][lanes] turns from scores into exp(s - max). `alpha` receives what the earlier sums are multiplied by.
template <class A, int VECTORS, bool BASE2>
void softmax_tile(A* s, int64_t n, StripState<A>* state, A* alpha) {
  constexpr int L = Simd<A>::lanes, lanes = kStripLanes<A>;
  const Vec<A> none = broadcast<A>(static_cast<A>(-kInfinity));
  Vec<A> max[VECTORS], sum[2][VECTORS];
  for (int v = 0; v < VECTORS; ++v) {
    max[v] = none;
    sum[0][v] = sum[1][v] = Vec<A>{};
  }
  for (int64_t j = 0; j < n; ++j)
    for (int v = 0; v < VECTORS; ++v) max[v] = vmax(load(s + j * lanes + v * L), max[v]);
  for (int v = 0; v < VECTORS; ++v) {
    if constexpr (BASE2) max[v] *= 1.44269504f;
    if (state->started) max[v] = vmax(max[v], load(state->max + v * L));
    // A row with no key so far subtracts 0: -inf - -inf would be NaN.
    const Vec<A> base = max[v] == none ? Vec<A>{} : max[v];
    const Vec<A> factor = state->started ? exp_nonpositive<BASE2>(load(state->max + v * L) - base) : Vec<A>{};
    store(state->max + v * L, max[v]);
    store(alpha + v * L, factor);
    max[v] = base;
  }
  int64_t j = 0;
  for (; j + 2 <= n; j += 2)
    for (int i = 0; i < 2; ++i)
      for (int v = 0; v < VECTORS; ++v) {
        const Vec<A> e = exp_nonpositive<BASE2>(below<BASE2>(load(s + (j + i) * lanes + v * L), max[v]));
        store(s + (j + i) * lanes + v * L, e);
        sum[i][v] += e;
      }
  for (; j < n; ++j)
    for (int v = 0; v < VECTORS; ++v) {
      const Vec<A> e = exp_nonpositive<BASE2>(below<BASE2>(load(s + j * lanes + v * L), max[v]));
      store(s + j * lanes + v * L, e);
      sum[0][v] += e;
    }
  for (int v = 0; v < VECTORS; ++v) {
    const Vec<A> before = state->started ? load(state->sum + v * L) * load(alpha + v * L) : Vec<A>{};
    store(state->sum + v * L, before + (sum[0][v] + sum[1][v]));
  }
}

template <class A>
inline void softmax_tile(const AttentionParams& p, int vectors, A* s, int64_t n, StripState<A>* state, A* alpha) {
  static_assert(kTileVectors == 2, "a strip is one or two vectors");
  if constexpr (sizeof(A) == 4) {
    if (base2_scores<A>(p))
      return vectors == 1 ? softmax_tile<A, 1, true>(s, n, state, alpha) : softmax_tile<A, 2, true>(s, n, state, alpha);
  }
  vectors == 1 ? softmax_tile<A, 1, false>(s, n, state, alpha) : softmax_tile<A, 2, false>(s, n, state, alpha);
}

// Room for one strip's tile of scores and what is done to it.
template <class A>
struct ScoreBuffers {
  A *scores, *alpha, *mask;
  uint32_t* bits;
  ScoreBuffers(const AttentionParams& p, int64_t keys, Carver& carver) {
    constexpr int lanes = kStripLanes<A>;
    scores = carver.take<A>(keys * lanes);
    alpha = carver.take<A>(lanes);
    mask = carver.take<A>(p.mask.data != nullptr ? keys * lanes : 0);
    bits = carver.take<uint32_t>(p.dropout_p > 0 ? keys * lanes : 0);
  }
};

// scores [n][lanes] turn from scale * q . k of keys [key, key + n) into what multiplies V.
template <class A>
void weigh_scores(const AttentionParams& p, const Sequence& s, const Strip<A>& strip, int64_t key, int64_t n,
                  const ScoreBuffers<A>& w, StripState<A>* state) {
  constexpr int L = Simd<A>::lanes, lanes = kStripLanes<A>;
  if (p.mask.data != nullptr) load_mask(p, s, strip, key, n, w.mask);
  finish_scores<A>(p, strip, key, n, w.scores, lanes, p.mask.data != nullptr ? w.mask : nullptr, nullptr);
  softmax_tile<A>(p, strip.vectors, w.scores, n, state, w.alpha);
  if (p.dropout_p <= 0) return;
  // The scale 1 / (1 - p) is applied once, with the sum, at the end.
  const uint32_t threshold = dropout_threshold(p.dropout_p);
  dropout_bits(p, s, strip, key, n, w.bits);
  for (int64_t j = 0; j < n; ++j)
    for (int base = 0; base < strip.vectors * L; base += L) {
      A* x = w.scores + j * lanes + base;
      store(x, kept(w.bits + j * lanes + base, threshold, load(x)));
    }
}

// A row's softmax denominator, exp(max) * sum, with the head's sink in it.
struct Denominator {
  double max;    // a natural logarithm
  double sum;    // 0: the row has no key (and no sink)
  double scale;  // what the row's O is to be multiplied by to count from `max`
};
template <class A>
Denominator denominator(const AttentionParams& p, int64_t head, const StripState<A>& state, int r) {
  Denominator d{-kInfinity, 0, 1};
  if (state.started) d = {state.max[r] * natural_log<A>(p), state.sum[r], 1};
  if (p.sinks.data == nullptr) return d;
  const double sink = sink_of<A>(p, head), joint = sink > d.max ? sink : d.max;
  if (joint == -kInfinity) return d;
  d.scale = std::exp(d.max - joint);
  d.sum = d.sum * d.scale + std::exp(sink - joint);
  d.max = joint;
  return d;
}

}  // namespace TW_ISA
}  // namespace tilewright
