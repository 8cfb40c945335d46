// What the passes of attention's backward share: the statistics of a strip's rows, and one tile of P^T and dS^T.
#pragma once

#include "attention_softmax.h"
#include "sums.h"

namespace tilewright {
namespace TW_ISA {

// Per query row, kept for the whole call: p = exp(s - max) * inverse, with the forward pass's own maximum and sum. From
// lse alone p would be less accurate than a softmax that is kept: its rounding grows with |lse|, and so does that of
// s - lse. A row without keys has max = +inf, so that every p is 0.
//
// delta = dO . O - dlse. O has been rounded, so where one key has nearly all the weight dP - delta is mostly the rounding
// of both. A tile that holds all keys of its strip takes delta = sum p dP - dlse instead, with dP's own rounding in it, unless
// dlse is null.
template <class A>
struct RowStats {
  A *max, *inverse, *delta, *dlse;
  RowStats at(int64_t row) const { return {max + row, inverse + row, delta + row, dlse + row}; }
};

// Where a row's statistics are: groups are padded to whole strips.
inline int64_t stats_row(const AttentionParams& p, int64_t padded_rows, int64_t batch, int64_t head, int64_t i) {
  const int64_t size = p.heads / p.heads_kv;
  return (batch * p.heads_kv + head / size) * padded_rows + i * size + head % size;
}

// Room for the steps between the products, for tiles of [keys][stride] scores.
template <class A>
struct TileBuffers {
  A *mask, *dcap;
  uint32_t* bits;
  TileBuffers(const AttentionParams& p, int64_t keys, int64_t stride, Carver& carver) {
    mask = carver.take<A>(p.mask.data != nullptr ? keys * kStripLanes<A> : 0);
    dcap = carver.take<A>(p.softcap > 0 ? keys * stride : 0);
    bits = carver.take<uint32_t>(p.dropout_p > 0 ? keys * kStripLanes<A> : 0);
  }
};

// From scores and dP^T to P^T and dS^T, in place. With `select` both are 0 where a pair is excluded, whatever dP is.
template <class A>
void differentiate_tile(const AttentionParams& p, int vectors, RowStats<A> stats, int64_t n, bool whole, bool select,
                        bool through_softcap, const TileBuffers<A>& buffers, A* probs, A* ds, int64_t stride) {
  constexpr int L = Simd<A>::lanes, lanes = kStripLanes<A>;
  const bool dropout = p.dropout_p > 0;
  const uint32_t threshold = dropout_threshold(p.dropout_p);
  const A score = softmax_scale<A>(p), scale = static_cast<A>(dropout ? dropout_scale(p.dropout_p) : 1);
  for (int base = 0; base < vectors * L; base += L) {
    const Vec<A> max = load(stats.max + base), inverse = load(stats.inverse + base);
    Vec<A> delta = load(stats.delta + base);
    // The scores may have been summed in another order than the forward's, and the largest round to above its maximum.
    const auto probability = [&](const A* x) {
      return vexp_nonpositive(vmin(Vec<A>{}, (load(x) - max) * score)) * inverse;
    };
    A *x = probs + base, *g = ds + base;
    for (int64_t j = 0; j < n && select; ++j) {
      const auto excluded = (load(x + j * stride) == broadcast<A>(static_cast<A>(-kInfinity))) |
                            (max == broadcast<A>(static_cast<A>(kInfinity)));
      store(x + j * stride, excluded ? Vec<A>{} : probability(x + j * stride));
      store(g + j * stride, excluded ? Vec<A>{} : load(g + j * stride));
    }
    if (!dropout && !through_softcap && !whole && !select) {
      for (int64_t j = 0; j < n; ++j, x += stride, g += stride) {
        const Vec<A> e = probability(x);
        store(x, e);
        store(g, e * (load(g) - delta));
      }
      continue;
    }
    const auto dropped = [&](int64_t j, Vec<A> y) {
      return dropout ? kept(buffers.bits + j * lanes + base, threshold, y) : y;
    };
    if (whole) {
      const Vec<A> sum = sum_of_terms<Vec<A>>(n, [&](int64_t j) {
        const Vec<A> e = select ? load(x + j * stride) : probability(x + j * stride);
        store(x + j * stride, e);
        return e * dropped(j, load(g + j * stride) * scale);
      });
      delta = sum - load(stats.dlse + base);
    }
    for (int64_t j = 0; j < n; ++j, x += stride, g += stride) {
      const Vec<A> e = whole || select ? load(x) : probability(x);
      Vec<A> gradient = e * (dropped(j, load(g) * scale) - delta);
      if (through_softcap) gradient *= load(buffers.dcap + j * stride + base);
      if (select) gradient = e == Vec<A>{} ? e : gradient;
      store(x, dropped(j, e));
      store(g, gradient);
    }
  }
}

// probs [n][stride] = P^T after dropout (its scale 1 / (1 - p) left to the caller), ds [n][stride] = dS^T of keys
// [key, key + n): with respect to scale * q . k, or, for the mask, to the logits that it is added to. Not inlined: two
// passes call it.
template <class A>
TW_NOINLINE void gradient_tile(const AttentionParams& p, const Sequence& s, const Strip<A>& strip, RowStats<A> stats,
                               const A* queries, const A* grads, RowTile<A> k, RowTile<A> v, int64_t key, int64_t n,
                               bool of_mask, bool select, TileBuffers<A>& buffers, A* probs, A* ds, int64_t stride) {
  constexpr int lanes = kStripLanes<A>;
  gemm<A, false>(n, strip.vectors, p.head_dim, k.data, k.stride, queries, lanes, probs, stride, {}, score_block<A>(p));
  // dP - delta cancels.
  gemm<A, false>(n, strip.vectors, p.head_dim_v, v.data, v.stride, grads, lanes, ds, stride, {}, kShortBlock);
  const A* mask = p.mask.data != nullptr ? buffers.mask : nullptr;
  if (mask != nullptr) load_mask(p, s, strip, key, n, buffers.mask);
  finish_scores<A>(p, strip, key, n, probs, stride, mask, buffers.dcap);
  if (p.dropout_p > 0) dropout_bits(p, s, strip, key, n, buffers.bits);
  const bool whole = stats.dlse != nullptr && strip.first_key >= key && strip.last_key <= key + n;
  const bool through_softcap = p.softcap > 0 && !of_mask;
  differentiate_tile(p, strip.vectors, stats, n, whole, select || of_mask, through_softcap, buffers, probs, ds, stride);
}

// Q^T and dO^T of a strip.
template <class A>
void pack_query_strip(const AttentionParams& p, const Sequence& s, const Strip<A>& strip, A* queries, A* grads) {
  char* rows[kStripLanes<A>];
  strip_rows(p, p.q, s, strip, rows);
  pack_strip<A>(p.dtype, rows, strip.count, p.head_dim, packed_scale<A>(p), queries);
  strip_rows(p, p.dout, s, strip, rows);
  pack_strip<A>(p.dtype, rows, strip.count, p.head_dim_v, A{1}, grads);
}

}  // namespace TW_ISA
}  // namespace tilewright
