// A call of attention as its kernels see it: sequences, bounds, and what happens to a score.
#pragma once

#include "../common/params.h"
#include "../common/philox.h"
#include "access.h"

namespace tilewright::gpu {

constexpr float kLog2E = 1.4426950408889634f;
constexpr float kLn2 = 0.6931471805599453f;

// Sequence b: where its rows and keys begin in the packed tensors, and how many it has.
struct Sequence {
  int64_t batch, first_q, first_k;
  int seqlen_q, seqlen_k;
  int shift;  // query i stands at key i + shift
};

TW_DEVICE Sequence find_sequence(const AttentionParams& p, int b) {
  Sequence s{b, 0, 0, static_cast<int>(p.seqlen_q), static_cast<int>(p.seqlen_k), 0};
  if (p.cu_seqlens_q != nullptr) {
    const Global<const int32_t> q{p.cu_seqlens_q}, k{p.cu_seqlens_k};
    s.batch = 0, s.first_q = q.load(b), s.first_k = k.load(b);
    s.seqlen_q = q.load(b + 1) - static_cast<int>(s.first_q);
    s.seqlen_k = k.load(b + 1) - static_cast<int>(s.first_k);
  }
  if (p.seqlens_k != nullptr) s.seqlen_k = Global<const int32_t>{p.seqlens_k}.load(b);
  s.shift = p.causal == Causal::kTopLeft ? 0 : s.seqlen_k - s.seqlen_q;
  return s;
}

// Keys [lo, hi) that some of the queries first to last see, and [lo_all, hi_all) that all of them see. lo is a multiple
// of 16, since dropout's random numbers come in fours and copies in 16 bytes.
struct KeyRange {
  int lo, hi, lo_all, hi_all;
};

TW_DEVICE int clamp(int64_t x, int low, int high) { return x < low ? low : x > high ? high : static_cast<int>(x); }

TW_DEVICE KeyRange find_keys(const AttentionParams& p, const Sequence& s, int first, int last) {
  KeyRange r{0, s.seqlen_k, 0, s.seqlen_k};
  const int64_t right = p.causal != Causal::kNone ? 0 : p.window_right;
  if (right >= 0) {
    r.hi = clamp(last + int64_t{s.shift} + right + 1, 0, s.seqlen_k);
    r.hi_all = clamp(first + int64_t{s.shift} + right + 1, 0, s.seqlen_k);
  }
  if (p.window_left >= 0) {
    r.lo = clamp(first + int64_t{s.shift} - p.window_left, 0, r.hi) / 16 * 16;
    r.lo_all = clamp(last + int64_t{s.shift} - p.window_left, 0, s.seqlen_k);
  }
  return r;
}

TW_DEVICE bool sees(const AttentionParams& p, const Sequence& s, int i, int j) {
  const int64_t right = p.causal != Causal::kNone ? 0 : p.window_right;
  const int64_t distance = int64_t{j} - i - s.shift;
  return i < s.seqlen_q && j < s.seqlen_k && (right < 0 || distance <= right) &&
         (p.window_left < 0 || distance >= -p.window_left);
}

TW_DEVICE float max_of(float a, float b) { return a > b ? a : b; }
// The maximum of scores in units of log 2; nothing stays nothing.
TW_DEVICE float scaled_maximum(float top, float factor) { return top == -kInfinity ? top : top * factor; }

// tanh with full relative accuracy near 0 and no overflow.
TW_DEVICE float tanh_of(float x) {
  const float square = x * x;
  if (square < 0.390625f) {
    // Minimax fit of (tanh(x) - x) / x^3 over |x| < 0.625; beyond, the other form does not cancel.
    float poly = -5.7049869e-3f * square + 2.0639086e-2f;
    poly = poly * square - 5.3739715e-2f;
    poly = poly * square + 1.3331442e-1f;
    poly = poly * square - 3.3333281e-1f;
    return x + x * square * poly;
  }
  const float e = exp_exact(-2.0f * (x < 0.0f ? -x : x));
  const float y = (1.0f - e) / (1.0f + e);
  return x < 0.0f ? -y : y;
}

// Of one query head: what the options add to its scores.
struct Options {
  float scale = 1.0f, softcap = 0.0f, slope = 0.0f;
  int plane = 0;  // of dropout

  TW_DEVICE static Options of(const AttentionParams& p, int b, int head) {
    Options o{static_cast<float>(p.scale), static_cast<float>(p.softcap)};
    if (p.alibi_slopes.data != nullptr)
      o.slope = global<float>(p.alibi_slopes.data).load(b * p.alibi_slopes.stride[0] + head * p.alibi_slopes.stride[1]);
    o.plane = static_cast<int>(b * p.heads + head);
    return o;
  }
};

// The logit of query i and key j from q . k: capped, biased, masked; -inf where the mask says so. capped: tanh of it.
template <class T>
TW_DEVICE float logit(const AttentionParams& p, const Options& o, int b, int head, int i, int j, int shift, float s,
                      float* capped = nullptr) {
  s *= o.scale;
  if (o.softcap > 0.0f) {
    const float t = tanh_of(s / o.softcap);
    if (capped != nullptr) *capped = t;
    s = o.softcap * t;
  }
  if (p.alibi_slopes.data != nullptr) {
    const int distance = i + shift - j;
    s -= o.slope * static_cast<float>(distance < 0 ? -distance : distance);
  }
  if (p.mask.data != nullptr) {
    const int64_t at = b * p.mask.stride[0] + head * p.mask.stride[1] + i * p.mask.stride[2] + j * p.mask.stride[3];
    if (p.mask_dtype == DType::kBool) {
      if (global<uint8_t>(p.mask.data).load(at) == 0) s = -kInfinity;
    } else {
      s += load_float<T>(p.mask.data, p.mask_dtype, at);
    }
  }
  return s;
}

// Two neighbours' random bits: columns j and j + 1, j even.
struct Kept {
  bool first, second;
};
TW_DEVICE Kept kept_by_dropout(uint64_t seed, uint32_t offset, uint32_t threshold, int plane, int i, int j) {
  const Philox4 r =
      philox(seed, static_cast<uint32_t>(j) / 4, static_cast<uint32_t>(i), static_cast<uint32_t>(plane), offset);
  return j % 4 == 0 ? Kept{r.lane[0] >= threshold, r.lane[1] >= threshold}
                    : Kept{r.lane[2] >= threshold, r.lane[3] >= threshold};
}

}  // namespace tilewright::gpu
