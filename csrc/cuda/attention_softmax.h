// Softmax over tiles of scores in registers, tile by tile (Milakov & Gimelshein 2018; Dao et al. 2022).
//
// A lane has two rows, h = 0 and 1, as in operand.h: elements 2 h and 2 h + 1 of each tile of scores.
#pragma once

#include "attention_call.h"
#include "operand.h"

namespace tilewright::gpu {

// The running maximum, in what softmax works on, and the sum of exp(logit - maximum).
struct RowState {
  float top = -kInfinity, sum = 0.0f;
};

// What turns the numbers that softmax works on into logits; see has_options.
template <bool kOptions>
TW_HOST_DEVICE float logit_unit(const AttentionParams& p) {
  return kOptions ? 1.0f : static_cast<float>(p.scale);
}
// exp(logit - top) of x and a maximum as softmax works on them, the latter finite. The difference comes first: of a maximum
// that is scaled and rounded before, it would be above 0 by the rounding, which of scores of 1e9 is an exponent of 60. So the
// largest weight is exactly 1, however large the scores are.
TW_DEVICE float weight(float x, float top, float unit) { return exp2_fast((x - top) * (unit * kLog2E)); }
// -inf - -inf would be NaN.
TW_DEVICE float finite(float top) { return top == -kInfinity ? 0.0f : top; }

// Tiles of q . k, keys from `start` on, become logits; -inf where a pair is excluded. cut: length, causal bound or window
// exclude some.
template <class T, bool kOptions, int kTiles>
TW_DEVICE void tiles_to_logits(float (&x)[kTiles][4], const AttentionParams& p, const Sequence& s, const Query (&q)[2],
                               int start, bool cut) {
  const auto query_of = [&](int, int e) -> const Query& { return q[e / 2]; };
  const auto key_of = [&](int n, int e) { return start + 8 * n + 2 * (lane_index() % 4) + e % 2; };
  if constexpr (kOptions) {
    float dcap[kTiles][4];
    to_logits<T>(x, dcap, p, s, query_of, key_of);
  }
  if (cut)
    TW_UNROLL for (int n = 0; n < kTiles; ++n)
        TW_UNROLL for (int e = 0; e < 4; ++e) if (!sees(s, query_of(n, e).i, key_of(n, e))) x[n][e] = -kInfinity;
}

// Logits become weights relative to the row's maximum so far; what was summed up before is rescaled to it.
template <class T, int kTiles, int kColumnTiles>
TW_DEVICE void to_weights(float (&x)[kTiles][4], RowState (&state)[2], float (&out)[kColumnTiles][4], float unit) {
  TW_UNROLL for (int h = 0; h < 2; ++h) {
    float top = -kInfinity;
    TW_UNROLL for (int n = 0; n < kTiles; ++n) top = max_of(top, max_of(x[n][2 * h], x[n][2 * h + 1]));
    top = max_of(top, shuffle_xor(top, 1));
    top = max_of(top, shuffle_xor(top, 2));
    const float old = state[h].top;
    state[h].top = max_of(old, top);
    const float base = finite(state[h].top), rescale = weight(old, base, unit);
    TW_UNROLL for (int c = 0; c < kColumnTiles; ++c) out[c][2 * h] *= rescale, out[c][2 * h + 1] *= rescale;
    // Sums of sums round less than one long sum, which only float32 shows, and are one more number to hold.
    constexpr bool kJoinLast = sizeof(T) == 4;
    const float before = state[h].sum;
    float sum = kJoinLast ? 0.0f : before * rescale;
    TW_UNROLL for (int n = 0; n < kTiles; ++n) TW_UNROLL for (int e = 2 * h; e < 2 * h + 2; ++e) {
      x[n][e] = weight(x[n][e], base, unit);
      sum += x[n][e];
    }
    state[h].sum = kJoinLast ? before * rescale + sum : sum;
  }
}

template <int kTiles>
TW_DEVICE void drop(float (&x)[kTiles][4], const AttentionParams& p, const Sequence& s, const Dropout& dropout,
                    const Query (&q)[2], int start) {
  const uint32_t kept = dropout.kept<kTiles>(p, s, q, start);
  TW_UNROLL for (int n = 0; n < kTiles; ++n) TW_UNROLL for (int e = 0; e < 4; ++e) if ((kept >> (4 * n + e) & 1) == 0)
      x[n][e] = 0.0f;
}

// What becomes of a finished row: `scale` its weighted sum; top, as softmax works on it, and inverse are what the backward
// reads: of a row without keys +inf and 0, by which every weight is 0. Where a sum is NaN, so is top, of which scores of NaN
// have no part.
struct RowEnd {
  float scale, lse, top, inverse;
};
template <class T>
TW_DEVICE RowEnd end_row(const AttentionParams& p, RowState state, int head, float unit) {
  const float top = state.top == -kInfinity ? kInfinity : state.top;
  state.top *= unit;
  float rescale = 1.0f;
  if (p.sinks.data != nullptr) {
    const float sink = load_float<T>(p.sinks.data, p.sinks_dtype, head * p.sinks.stride[0]);
    const float joined = max_of(state.top, sink), base = finite(joined);
    rescale = weight(state.top, base, 1.0f);
    state = {joined, state.sum * rescale + weight(sink, base, 1.0f)};
  }
  const float kept = p.rng != nullptr ? static_cast<float>(dropout_scale(p.dropout_p)) : 1.0f;
  if (state.sum == 0.0f) return {0.0f, -kInfinity, kInfinity, 0.0f};
  const float inverse = rescale / state.sum;
  return {inverse * kept, state.top + log_exact(state.sum), inverse == inverse ? top : kNaN, inverse};
}

// By one lane of a row.
TW_DEVICE void store_statistics(const AttentionParams& p, const Sequence& s, const Query& q, const RowEnd& end) {
  const auto at = [&](const View4& v) {
    return s.b * v.stride[0] + q.head * v.stride[1] + (s.first_q + q.i) * v.stride[2];
  };
  global<float>(p.lse.data).store(at(p.lse), end.lse);
  if (p.row_stats.data == nullptr) return;
  const Global<float> stats = global<float>(p.row_stats.data) + at(p.row_stats);
  stats.store(0, end.top);
  stats.store(1, end.inverse);
}

}  // namespace tilewright::gpu
