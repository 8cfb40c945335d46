// The operands of a block's two products in vectors: tiles of K and V as rows of floats, in place where memory holds
// them so, and Q as strips of lanes.
#pragma once

#include "attention_decode.h"

namespace tilewright {
namespace TW_ISA {

// A strip begins within a tile of keys at a multiple of this, so that a Philox counter's four keys stay together.
constexpr int64_t kKeyStep = 4;
// O^T has a multiple of so many rows.
constexpr int64_t kOutStep = 1;
struct ProductScope {};
// Fewer rows than this go the way of attention_decode.h.
template <class A>
constexpr int64_t kLeastRows = kDecodeRows<A> + 1;

template <class A>
class Operands {
 public:
  Operands(const AttentionParams& p, int64_t keys, int64_t strips, Carver& carver) : p_(p), block_(score_block<A>(p)) {
    keys_ = carver.take<A>(keys * p.head_dim);
    values_ = carver.take<A>(keys * p.head_dim_v);
    queries_ = carver.take<A>(strips * p.head_dim * lanes);
  }

  void load_queries(int64_t strip, const char* const* rows, int count) {
    pack_strip<A>(p_.dtype, rows, count, p_.head_dim, packed_scale<A>(p_), queries(strip));
  }
  void load_keys(const KeyRows& k, const KeyRows& v, int64_t first, int64_t count) {
    k_ = load_rows(p_.dtype, k, first, count, p_.head_dim, keys_);
    v_ = load_rows(p_.dtype, v, first, count, p_.head_dim_v, values_);
  }

  // scores [n][lanes] = K Q^T of the loaded keys [first, first + n).
  void score(int64_t strip, int vectors, int64_t first, int64_t n, A* scores) const {
    gemm<A, false>(n, vectors, p_.head_dim, k_.data + first * k_.stride, k_.stride, queries(strip), lanes, scores,
                   lanes, {}, block_);
  }
  // out [Dv][lanes] = alpha out + V^T P^T of the same keys; nothing is in out before the strip has started.
  void weigh(int vectors, int64_t first, int64_t n, const A* weights, const A* alpha, bool started, A* out) const {
    gemm<A, true>(p_.head_dim_v, vectors, n, v_.data + first * v_.stride, v_.stride, weights, lanes, out, lanes,
                  {started, alpha}, block_);
  }

 private:
  static constexpr int lanes = kStripLanes<A>;
  A* queries(int64_t strip) const { return queries_ + strip * p_.head_dim * lanes; }

  const AttentionParams& p_;
  const int64_t block_;
  A *keys_, *values_, *queries_;
  RowTile<A> k_{}, v_{};
};

}  // namespace TW_ISA
}  // namespace tilewright
