// Rows and keys whose sums are not finite, taken again pair by pair: one of weight 0 has no part, whatever it holds, where in
// a product of matrices 0 times an infinity makes NaN of the sum.
//
// By a warp, after it has written what the tiles gave, so that little is kept in registers for this while they are worked on;
// lanes have columns. Sums are in another order than the tensor cores'. It takes many times as long, and is as rare as
// such numbers are.
#pragma once

#include "attention_gradient.h"

namespace tilewright::gpu {

// Columns of a lane: lane + 32 n.
constexpr int kLaneColumns = 256 / kWarpSize;

// Nothing of what has no weight.
TW_DEVICE float share(float weight, float x) { return weight == 0.0f ? 0.0f : weight * x; }

TW_DEVICE bool all_of_warp(bool mine) {
  float all = mine ? 1.0f : 0.0f;
  TW_UNROLL for (int step = kWarpSize / 2; step > 0; step /= 2) all *= shuffle_xor(all, step);
  return all != 0.0f;
}
// Whether some pairs may have no part in the sums.
TW_DEVICE bool may_exclude(const AttentionParams& p) {
  return p.mask.data != nullptr || p.causal != Causal::kNone || p.window_left >= 0 || p.window_right >= 0 ||
         p.rng != nullptr;
}
// Whether what a warp has summed up stays as it is: it is finite, or all pairs have a part in it.
template <int kColumnTiles>
TW_DEVICE bool stands(const AttentionParams& p, const float (&d)[kColumnTiles][4]) {
  if (!may_exclude(p)) return true;
  float seen = 0.0f;
  TW_UNROLL for (int c = 0; c < kColumnTiles; ++c) TW_UNROLL for (int e = 0; e < 4; ++e) seen += d[c][e] - d[c][e];
  return all_of_warp(seen == 0.0f);
}

// The products of one row with rows `start` to `start` + 7 of another matrix, of which there are `count`.
template <class T>
TW_DEVICE void dots(float (&x)[2][4], Global<const T> one, const Rows<const T>& rows, int start, int count, int width) {
  Global<const T> other[8];
  TW_UNROLL for (int r = 0; r < 8; ++r) other[r] = rows(start + r < count ? start + r : start);
  TW_UNROLL for (int r = 0; r < 8; ++r) x[r / 4][r % 4] = 0.0f;
  TW_UNROLL_BY(1) for (int c = lane_index(); c < width; c += kWarpSize) {
    const float factor = widen(one.load(c));
    TW_UNROLL for (int r = 0; r < 8; ++r) x[r / 4][r % 4] += factor * widen(other[r].load(c));
  }
  TW_UNROLL for (int r = 0; r < 8; ++r) TW_UNROLL for (int step = kWarpSize / 2; step > 0; step /= 2) x[r / 4][r % 4] +=
      shuffle_xor(x[r / 4][r % 4], step);
}

// Adds rows `start` to `start` + 7, each with its weight, to the lanes' columns from `column` on.
template <class T, int kColumns>
TW_DEVICE void add_rows(float (&sum)[kColumns], const float (&weight)[2][4], const Rows<const T>& rows, int start,
                        int count, int column, int width) {
  TW_UNROLL for (int r = 0; r < 8; ++r) {
    const float mine = weight[r / 4][r % 4];
    if (mine == 0.0f || start + r >= count) continue;
    const Global<const T> row = rows(start + r);
    TW_UNROLL for (int n = 0; n < kColumns; ++n) {
      const int c = column + lane_index() + kWarpSize * n;
      if (c < width) sum[n] += mine * widen(row.load(c));
    }
  }
}

template <class T, int kColumns>
TW_DEVICE void write_row(Global<T> to, const float (&x)[kColumns], float scale, int column, int width) {
  TW_UNROLL for (int n = 0; n < kColumns; ++n) {
    const int c = column + lane_index() + kWarpSize * n;
    if (c < width) to.store(c, narrow<T>(share(scale, x[n])));
  }
}

// A query over keys [lo, hi): its maximum and sum, and in `out` the sum of weights times values. Twice over the keys: first
// for the maximum alone.
template <class T, bool kOptions>
TW_DEVICE RowState sum_row(const AttentionParams& p, const Sequence& s, const Query& q, int lo, int hi,
                           float (&out)[kLaneColumns]) {
  const int kv_head = q.head / group_of(p), head_dim = static_cast<int>(p.head_dim);
  const auto query = find_rows<const T>(p.q, s, q.head, s.first_q)(q.i);
  const auto k = find_key_rows<const T>(p, p.k, s, kv_head), v = find_key_rows<const T>(p, p.v, s, kv_head);
  const float unit = logit_unit<kOptions>(p);
  const Dropout dropout = kOptions ? Dropout::of(p) : Dropout{};
  RowState state;
  TW_UNROLL for (int n = 0; n < kLaneColumns; ++n) out[n] = 0.0f;
  TW_UNROLL_BY(1) for (int pass = 0; pass < 2; ++pass) TW_UNROLL_BY(1) for (int start = lo; start < hi; start += 8) {
    float x[2][4], dcap[2][4];
    dots(x, query, k, start, s.seqlen_k, head_dim);
    const auto key_of = [&](int n, int e) { return start + 4 * n + e; };
    if constexpr (kOptions) to_logits<T>(x, dcap, p, s, [&](int, int) -> const Query& { return q; }, key_of);
    const uint32_t kept = dropout.on && pass == 1 ? dropout.kept_of_row(p, s, q, start) : ~0u;
    TW_UNROLL for (int n = 0; n < 2; ++n) TW_UNROLL for (int e = 0; e < 4; ++e) {
      if (!sees(s, q.i, key_of(n, e)) || key_of(n, e) >= hi) x[n][e] = -kInfinity;
      if (pass == 0) {
        state.top = max_of(state.top, x[n][e]);
      } else {
        x[n][e] = x[n][e] == -kInfinity ? 0.0f : weight(x[n][e], finite(state.top), unit);
        state.sum += x[n][e];
        if ((kept >> (4 * n + e) & 1) == 0) x[n][e] = 0.0f;
      }
    }
    if (pass == 1) add_rows(out, x, v, start, s.seqlen_k, 0, static_cast<int>(p.head_dim_v));
  }
  return state;
}

// A query over keys [lo, hi): dQ, without its scale. Of the forward's maximum and sum, and the delta that is there.
template <class T, bool kOptions>
TW_DEVICE void sum_row_gradient(const AttentionParams& p, const Sequence& s, const Query& q, int lo, int hi,
                                float (&dq)[kLaneColumns]) {
  const int kv_head = q.head / group_of(p);
  const auto query = find_rows<const T>(p.q, s, q.head, s.first_q)(q.i);
  const auto dout = find_rows<const T>(p.dout, s, q.head, s.first_q)(q.i);
  const auto k = find_key_rows<const T>(p, p.k, s, kv_head), v = find_key_rows<const T>(p, p.v, s, kv_head);
  const Dropout dropout = kOptions ? Dropout::of(p) : Dropout{};
  const RowTerms row = load_terms(p, s, q.head, q.i);
  TW_UNROLL for (int n = 0; n < kLaneColumns; ++n) dq[n] = 0.0f;
  TW_UNROLL_BY(1) for (int start = lo; start < hi; start += 8) {
    float x[2][4], dx[2][4];
    dots(x, query, k, start, s.seqlen_k, static_cast<int>(p.head_dim));
    dots(dx, dout, v, start, s.seqlen_k, static_cast<int>(p.head_dim_v));
    to_gradients<T, kOptions>(
        x, dx, p, s, [&](int, int) -> const Query& { return q; }, [&](int n, int e) { return start + 4 * n + e; },
        [&](int, int) { return row; }, dropout.on ? dropout.kept_of_row(p, s, q, start) : ~0u, dropout.scale,
        logit_unit<kOptions>(p), true, [&](int n, int e, const Gradient& g) { dx[n][e] = g.score; });
    add_rows(dq, dx, k, start, s.seqlen_k, 0, static_cast<int>(p.head_dim));
  }
}

// A key over queries [lo, hi) of the heads of its group: dK without its scale, and dV, from column `column` on.
template <class T, bool kOptions, int kColumns>
TW_DEVICE void sum_key_gradients(const AttentionParams& p, const Sequence& s, int kv_head, int j, int lo, int hi,
                                 int column, float (&dk)[kColumns], float (&dv)[kColumns]) {
  const auto key = find_key_rows<const T>(p, p.k, s, kv_head)(j), value = find_key_rows<const T>(p, p.v, s, kv_head)(j);
  const int group = group_of(p), head_dim = static_cast<int>(p.head_dim), head_dim_v = static_cast<int>(p.head_dim_v);
  const Dropout dropout = kOptions ? Dropout::of(p) : Dropout{};
  TW_UNROLL for (int n = 0; n < kColumns; ++n) dk[n] = dv[n] = 0.0f;
  TW_UNROLL_BY(1)
  for (int head = kv_head * group; head < (kv_head + 1) * group; ++head)
    TW_UNROLL_BY(1) for (int start = lo; start < hi; start += 8) {
      const auto q = find_rows<const T>(p.q, s, head, s.first_q), dout = find_rows<const T>(p.dout, s, head, s.first_q);
      const Query query = Query::of(p, s, head, 0);
      float x[2][4], dx[2][4];
      dots(x, key, q, start, s.seqlen_q, head_dim);
      dots(dx, value, dout, start, s.seqlen_q, head_dim_v);
      const auto query_of = [&](int n, int e) { return Query{start + 4 * n + e, head, query.slope}; };
      to_gradients<T, kOptions>(
          x, dx, p, s, query_of, [&](int, int) { return j; },
          [&](int n, int e) { return load_terms(p, s, head, start + 4 * n + e); },
          dropout.on ? dropout.kept_of_key(p, s, head, start, j) : ~0u, dropout.scale, logit_unit<kOptions>(p), true,
          [&](int n, int e, const Gradient& g) { x[n][e] = g.weight, dx[n][e] = g.score; });
      add_rows(dv, x, dout, start, s.seqlen_q, column, head_dim_v);
      add_rows(dk, dx, q, start, s.seqlen_q, column, head_dim);
    }
}

}  // namespace tilewright::gpu
