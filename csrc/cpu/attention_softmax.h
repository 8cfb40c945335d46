// The online softmax over a strip's tile of scores (Milakov and Gimelshein 2018; FlashAttention, Dao et al. 2022).
#pragma once

#include "attention_strip.h"

namespace tilewright {
namespace TW_ISA {

// What a strip carries from tile to tile: O^T [Dv][lanes], and per lane the running maximum, of what is still to be
// multiplied by softmax_scale, and sum.
template <class A>
struct StripState {
  A* out;
  A* max;
  A* sum;
  bool started;
};

// s [n][lanes] turns from scores into exp(scale (s - max)). `alpha` receives what the earlier sums are multiplied by.
// The maximum is one of the scores, not scaled and rounded, so that no exponent is above 0 however large they are.
template <class A, int VECTORS>
void softmax_tile(A* s, int64_t n, A scale, StripState<A>* state, A* alpha) {
  constexpr int L = Simd<A>::lanes, lanes = kStripLanes<A>;
  const Vec<A> none = broadcast<A>(static_cast<A>(-kInfinity));
  Vec<A> max[VECTORS];
  for (int v = 0; v < VECTORS; ++v) max[v] = none;
  for (int64_t j = 0; j < n; ++j)
    for (int v = 0; v < VECTORS; ++v) max[v] = vmax(load(s + j * lanes + v * L), max[v]);
  for (int v = 0; v < VECTORS; ++v) {
    if (state->started) max[v] = vmax(max[v], load(state->max + v * L));
    // A row with no key so far subtracts 0: -inf - -inf would be NaN.
    const Vec<A> base = max[v] == none ? Vec<A>{} : max[v];
    const Vec<A> factor = state->started ? vexp_nonpositive((load(state->max + v * L) - base) * scale) : Vec<A>{};
    store(state->max + v * L, max[v]);
    store(alpha + v * L, factor);
    max[v] = base;
  }
  Vec<A> total[VECTORS] = {};
  for (int64_t j = 0; j < n;) {
    Vec<A> sum[2][VECTORS] = {};
    const auto add = [&](int i) {
      for (int v = 0; v < VECTORS; ++v) {
        const Vec<A> e = vexp_nonpositive((load(s + j * lanes + v * L) - max[v]) * scale);
        store(s + j * lanes + v * L, e);
        sum[i][v] += e;
      }
      ++j;
    };
    for (const int64_t end = min64(j + kShortBlock, n); j < end;) {
      add(0);
      if (j < end) add(1);
    }
    for (int v = 0; v < VECTORS; ++v) total[v] += sum[0][v] + sum[1][v];
  }
  // The earlier tiles' sum joins last: sums of sums round less than one long sum.
  for (int v = 0; v < VECTORS; ++v) {
    if (state->started) total[v] += load(state->sum + v * L) * load(alpha + v * L);
    store(state->sum + v * L, total[v]);
  }
}

template <class A>
inline void softmax_tile(int vectors, A* s, int64_t n, A scale, StripState<A>* state, A* alpha) {
  static_assert(kTileVectors == 2, "a strip is one or two vectors");
  vectors == 1 ? softmax_tile<A, 1>(s, n, scale, state, alpha) : softmax_tile<A, 2>(s, n, scale, state, alpha);
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

// scores [n][lanes] turn from q . k of keys [key, key + n) into what multiplies V.
template <class A>
void weigh_scores(const AttentionParams& p, const Sequence& s, const Strip<A>& strip, int64_t key, int64_t n,
                  const ScoreBuffers<A>& w, StripState<A>* state) {
  constexpr int L = Simd<A>::lanes, lanes = kStripLanes<A>;
  if (p.mask.data != nullptr) load_mask(p, s, strip, key, n, w.mask);
  finish_scores<A>(p, strip, key, n, w.scores, lanes, p.mask.data != nullptr ? w.mask : nullptr, nullptr);
  softmax_tile(strip.vectors, w.scores, n, softmax_scale<A>(p), state, w.alpha);
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
  double max;    // of the logits, and the sink
  double sum;    // 0: the row has no key (and no sink)
  double scale;  // what the row's O is to be multiplied by to count from `max`
};
template <class A>
Denominator denominator(const AttentionParams& p, int64_t head, const StripState<A>& state, int r) {
  Denominator d{-kInfinity, 0, 1};
  if (state.started) d = {double{state.max[r]} * double{softmax_scale<A>(p)}, state.sum[r], 1};
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
