// From a score and the gradient of its weight to the gradient of its logit; as in FlashAttention's backward (Dao 2023), of
// weights that are computed again.
#pragma once

#include "attention_softmax.h"

namespace tilewright::gpu {

// Of a query: its largest score and 1 / sum from the forward (RowEnd), and delta, the sum of out * dout less dlse. Every weight of a row
// that is not there is 0.
struct RowTerms {
  float top = kInfinity, inverse = 0.0f, delta = 0.0f;
};

// delta is a float for each row of lse, in the workspace: by attention_backward_rows for everybody else.
TW_DEVICE Global<float> delta_of(const AttentionParams& p, const Sequence& s, int head) {
  const int64_t row = p.cu_seqlens_q != nullptr ? head * p.total_q : (s.b * p.heads + head) * p.seqlen_q;
  return global<float>(p.workspace) + (row + s.first_q);
}
inline int64_t delta_bytes(const AttentionParams& p) {
  return p.heads * (p.cu_seqlens_q != nullptr ? p.total_q : p.batch * p.seqlen_q) * int64_t{sizeof(float)};
}

TW_DEVICE RowTerms load_statistics(const AttentionParams& p, const Sequence& s, int head, int i) {
  const View4& v = p.row_stats;
  const Global<const float> at = global<float>(static_cast<const void*>(v.data)) +
                                 (s.b * v.stride[0] + head * v.stride[1] + (s.first_q + i) * v.stride[2]);
  return {at.load(0), at.load(1), 0.0f};
}
TW_DEVICE RowTerms load_terms(const AttentionParams& p, const Sequence& s, int head, int i) {
  if (i >= s.seqlen_q) return {};
  RowTerms r = load_statistics(p, s, head, i);
  r.delta = delta_of(p, s, head).load(i);
  return r;
}

struct Gradient {
  float weight;        // after dropout
  float logit, score;  // gradients; that of a score is still to be multiplied by the scale
  float product;       // of the weight and its own gradient
};

// Of tiles of pairs of a query and a key: use(n, e, gradient). x: q . k, which becomes logits; dweight: dout . v; kept: a
// bit for each weight that dropout keeps; cut: length, causal bound or window exclude some.
template <class T, bool kOptions, int kTiles, class QueryOf, class KeyOf, class RowOf, class Use>
TW_DEVICE void to_gradients(float (&x)[kTiles][4], const float (&dweight)[kTiles][4], const AttentionParams& p,
                            const Sequence& s, QueryOf query_of, KeyOf key_of, RowOf row_of, uint32_t kept,
                            float dropout_scale, float unit, bool cut, Use use) {
  float dcap[kTiles][4];
  TW_UNROLL for (int n = 0; n < kTiles; ++n) TW_UNROLL for (int e = 0; e < 4; ++e) dcap[n][e] = 1.0f;
  if constexpr (kOptions) to_logits<T>(x, dcap, p, s, query_of, key_of);
  TW_UNROLL for (int n = 0; n < kTiles; ++n) TW_UNROLL for (int e = 0; e < 4; ++e) {
    const RowTerms row = row_of(n, e);
    // Chosen, not multiplied by 0: what is dropped may be NaN.
    const bool keep = kept >> (4 * n + e) & 1;
    const float dweight_before = keep ? dweight[n][e] * dropout_scale : 0.0f;
    // The scores may have been summed in another order than the forward's, and the largest round to above its maximum.
    const float weight_before = weight(least_of(x[n][e], row.top), row.top, unit) * row.inverse;
    const float dlogit = weight_before * (dweight_before - row.delta);
    const float after = keep ? weight_before * dropout_scale : 0.0f;
    Gradient g{after, dlogit, dlogit * dcap[n][e], weight_before * dweight_before};
    if (kOptions && x[n][e] == -kInfinity) g = {};
    if (cut && !sees(s, query_of(n, e).i, key_of(n, e))) g = {};
    use(n, e, g);
  }
}

}  // namespace tilewright::gpu
