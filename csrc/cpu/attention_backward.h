// What the passes of attention's backward share: the statistics of a strip's rows, and one tile of P^T and dS^T.
#pragma once

#include "attention_softmax.h"

namespace tilewright {
namespace TW_ISA {

// Per query row, kept for the whole call. p = exp((s - max) - log_sum): normally max is the lse that the forward pass
// gave and log_sum is 0, but where the lse is so large that its rounding is felt (masks of finfo.min, logits of 1e4)
// the two are computed anew. A row without keys has max = +inf, so that every p is 0.
template <class A>
struct RowStats {
  A *max, *log_sum, *delta;
  RowStats at(int64_t row) const { return {max + row, log_sum + row, delta + row}; }
};

// Where a row's statistics are: groups are padded to whole strips.
inline int64_t stats_row(const AttentionParams& p, int64_t padded_rows, int64_t batch, int64_t head, int64_t i) {
  const int64_t size = p.heads / p.heads_kv;
  return (batch * p.heads_kv + head / size) * padded_rows + i * size + head % size;
}

// Room for the steps between the products, for tiles of [keys][stride] scores.
template <class A>
struct TileBuffers {
  A *mask, *capped;
  uint32_t* bits;
  TileBuffers(const AttentionParams& p, int64_t keys, int64_t stride, Carver& carver) {
    mask = carver.take<A>(p.mask.data != nullptr ? keys * kStripLanes<A> : 0);
    capped = carver.take<A>(p.softcap > 0 ? keys * stride : 0);
    bits = carver.take<uint32_t>(p.dropout_p > 0 ? keys * kStripLanes<A> : 0);
  }
};

// dS^T = P^T * (dP^T - delta) without dropout and softcap; probs holds the scores and becomes P^T, ds holds dP^T.
template <class A>
void plain_gradient(int vectors, RowStats<A> stats, int64_t n, A* probs, A* ds, int64_t stride) {
  constexpr int L = Simd<A>::lanes;
  for (int v = 0; v < vectors; ++v) {
    const Vec<A> max = load(stats.max + v * L), log_sum = load(stats.log_sum + v * L), delta = load(stats.delta + v * L);
    for (int64_t j = 0; j < n; ++j) {
      A *x = probs + j * stride + v * L, *g = ds + j * stride + v * L;
      const Vec<A> e = exp_below(load(x) - max - log_sum);
      store(x, e);
      store(g, e * (load(g) - delta));
    }
  }
}

// probs [n][stride] = P^T after dropout (its scale 1 / (1 - p) left to the caller), ds [n][stride] = dS^T of keys
// [key, key + n), with respect to the masked logits, or to scale * q . k when `through_softcap`.
template <class A>
void gradient_tile(const AttentionParams& p, const Sequence& s, const Strip<A>& strip, RowStats<A> stats,
                   const A* queries, const A* grads, const A* k, int64_t k_stride, const A* v, int64_t v_stride,
                   int64_t key, int64_t n, bool through_softcap, TileBuffers<A>& buffers, A* probs, A* ds,
                   int64_t stride) {
  constexpr int L = Simd<A>::lanes, lanes = kStripLanes<A>;
  gemm<A, false>(n, strip.vectors, p.head_dim, k, k_stride, queries, lanes, probs, stride, {});
  gemm<A, false>(n, strip.vectors, p.head_dim_v, v, v_stride, grads, lanes, ds, stride, {});
  const A* mask = p.mask.data != nullptr ? buffers.mask : nullptr;
  if (mask != nullptr) load_mask(p, s, strip, key, n, buffers.mask);
  finish_scores<A>(p, strip, key, n, probs, stride, mask, buffers.capped);
  const bool dropout = p.dropout_p > 0, cap = p.softcap > 0 && through_softcap;
  if (!dropout && !cap) return plain_gradient<A>(strip.vectors, stats, n, probs, ds, stride);

  const uint32_t threshold = dropout_threshold(p.dropout_p);
  const A scale = static_cast<A>(dropout ? dropout_scale(p.dropout_p) : 1);
  if (dropout) dropout_bits(p, s, strip, key, n, buffers.bits);
  for (int v_ = 0; v_ < strip.vectors; ++v_) {
    const Vec<A> max = load(stats.max + v_ * L), log_sum = load(stats.log_sum + v_ * L),
                 delta = load(stats.delta + v_ * L);
    for (int64_t j = 0; j < n; ++j) {
      const int64_t at = j * stride + v_ * L;
      Vec<A> e = exp_below(load(probs + at) - max - log_sum), dp = load(ds + at) * scale, after = e;
      if (dropout) {
        const uint32_t* bits = buffers.bits + j * lanes + v_ * L;
        dp = kept(bits, threshold, dp);
        after = kept(bits, threshold, e);
      }
      Vec<A> g = e * (dp - delta);
      if (cap) {
        const Vec<A> t = load(buffers.capped + at);
        g *= A{1} - t * t;
      }
      store(probs + at, after);
      store(ds + at, g);
    }
  }
}

// Q^T (scaled) and dO^T of a strip.
template <class A>
void pack_query_strip(const AttentionParams& p, const Sequence& s, const Strip<A>& strip, A* queries, A* grads) {
  const char *q[kStripLanes<A>], *g[kStripLanes<A>];
  for (int r = 0; r < strip.count; ++r) {
    q[r] = query_row(p, p.q, s, strip.head[r], strip.row[r]);
    g[r] = query_row(p, p.dout, s, strip.head[r], strip.row[r]);
  }
  pack_strip<A>(p.dtype, q, strip.count, p.head_dim, static_cast<A>(p.scale), queries);
  pack_strip<A>(p.dtype, g, strip.count, p.head_dim_v, A{1}, grads);
}

}  // namespace TW_ISA
}  // namespace tilewright
