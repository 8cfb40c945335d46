// From a score and the gradient of its weight to the gradient of its logit; as in FlashAttention's backward (Dao 2023), of
// weights that are computed again.
#pragma once

#include "attention_softmax.h"

namespace tilewright::gpu {

// Of a query: its maximum and 1 / sum from the forward, and delta, the sum of out * dout less dlse. Every weight of a row
// that is not there is 0.
struct RowTerms {
  float top = kInfinity, inverse = 0.0f, delta = 0.0f;
};

// delta is a float for each row of lse, in the workspace: by attention_backward_rows for everybody else.
TW_DEVICE Global<float> delta_of(const AttentionParams& p, const Sequence& s, int head) {
  const int64_t rows = p.cu_seqlens_q != nullptr ? p.total_q : p.seqlen_q;
  return global<float>(p.workspace) + ((s.batch * p.heads + head) * rows + s.first_q);
}
inline int64_t delta_bytes(const AttentionParams& p) {
  return p.heads * (p.cu_seqlens_q != nullptr ? p.total_q : p.batch * p.seqlen_q) * int64_t{sizeof(float)};
}

TW_DEVICE RowTerms load_statistics(const AttentionParams& p, const Sequence& s, int head, int i) {
  const View4& v = p.row_stats;
  const Global<const float> at = global<float>(static_cast<const void*>(v.data)) +
                                 (s.batch * v.stride[0] + head * v.stride[1] + (s.first_q + i) * v.stride[2]);
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
};

// x: q . k; dweight: dout . v; kept: what dropout multiplies the weight by; cut: as in to_logits.
template <class T, bool kOptions>
TW_DEVICE Gradient gradient(const AttentionParams& p, const Sequence& s, const Query& q, int j, const RowTerms& row,
                            float x, float dweight, float kept, float unit, bool cut) {
  if ((cut && !sees(p, s, q.i, j)) || (kOptions && q.i >= s.seqlen_q)) return {};
  float capped = 0.0f;
  if constexpr (kOptions) x = logit<T>(p, s, q, j, x, &capped);
  const float weight_before = weight<T, kOptions>(x, row.top, unit) * row.inverse;
  const float dlogit = weight_before * (dweight * kept - row.delta);
  return {weight_before * kept, dlogit, dlogit * (1.0f - capped * capped)};
}

}  // namespace tilewright::gpu
