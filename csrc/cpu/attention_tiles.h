// The operands of a block's two products in tiles of bfloat16 (tiles.h). K and V^T are first operands, Q^T and P^T
// second ones: the scores come out transposed as they do in vectors, and P is rounded to bfloat16 for its product alone.
#pragma once

#include "attention_decode.h"
#include "tiles.h"

namespace tilewright {
namespace TW_ISA {

// A strip begins within a tile of keys at a multiple of this: a tile's depth in the second product.
constexpr int64_t kKeyStep = kTileDepth;
// O^T has a multiple of so many rows.
constexpr int64_t kOutStep = kTileSide;
using ProductScope = TileScope;
// Fewer rows than this go the way of attention_decode.h: on a Xeon of 2024 a group of 4 heads took 0.77 of its time in
// tiles, a single row twice as long.
template <class A>
constexpr int64_t kLeastRows = 4;
static_assert(kLeastRows<float> <= kDecodeRows<float> + 1, "its buffers are for so many");

template <class A>
class Operands {
  static constexpr int lanes = kStripLanes<A>;
  static_assert(lanes == 2 * kTileSide, "a strip is two tiles wide");

 public:
  Operands(const AttentionParams& p, int64_t keys, int64_t strips, Carver& carver)
      : p_(p), depth_(ceil_div(p.head_dim, kTileDepth)), outs_(ceil_div(p.head_dim_v, kTileSide)) {
    const int64_t padded = round_up(keys, kTileDepth);
    keys_ = carver.take<BFloat16>(padded * depth_ * kTileDepth);
    values_ = carver.take<BFloat16>(padded * outs_ * kTileSide);
    weights_ = carver.take<BFloat16>(padded * lanes);
    queries_ = carver.take<BFloat16>(strips * depth_ * kTileDepth * lanes);
    rows_ = carver.take<BFloat16>(keys * max64(p.head_dim, p.head_dim_v));
  }

  void load_queries(int64_t strip, const char* const* rows, int count) {
    const float scale = packed_scale<float>(p_);
    BFloat16* dst = queries(strip);
    for (int64_t d = 0; d < p_.head_dim; d += kTileDepth)
      for (int base = 0; base < lanes; base += kTileSide, dst += kTileNumbers) {
        Pairs r[kTileSide] = {};
        for (int i = 0; i < kTileSide && base + i < count; ++i) {
          const auto* row = reinterpret_cast<const BFloat16*>(rows[base + i]) + d;
          const int64_t here = min64(kTileDepth, p_.head_dim - d);
          if (scale == 1) {
            r[i] = load_pairs(row, here);
          } else {
            alignas(64) float scaled[kTileDepth];
            for (int64_t j = 0; j < here; ++j) scaled[j] = to_float(row[j]) * scale;
            r[i] = load_pairs(scaled, here);
          }
        }
        transpose_pairs(r);
        std::memcpy(dst, r, sizeof r);
      }
  }

  void load_keys(const KeyRows& k, const KeyRows& v, int64_t first, int64_t count) {
    int64_t stride;
    const BFloat16* src = in_one_piece(k, first, count, p_.head_dim, &stride);
    BFloat16* dst = keys_;
    // Two tiles of keys at a time, for each step of depth.
    for (int64_t j = 0; j < count; j += 2 * kTileSide)
      for (int64_t d = 0; d < p_.head_dim; d += kTileDepth)
        for (int64_t i = j; i < j + 2 * kTileSide; i += kTileSide, dst += kTileNumbers)
          pack_tile<false>(src + i * stride + d, stride, 1, max64(0, count - i), p_.head_dim - d, dst);
    src = in_one_piece(v, first, count, p_.head_dim_v, &stride);
    dst = values_;
    for (int64_t j = 0; j < count; j += kTileDepth)
      for (int64_t d = 0; d < p_.head_dim_v; d += kTileSide, dst += kTileNumbers)
        pack_tile<false>(src + j * stride + d, 1, stride, p_.head_dim_v - d, count - j, dst);
  }

  void score(int64_t strip, int, int64_t first, int64_t n, A* scores) const {
    const BFloat16* k = keys_ + first * depth_ * kTileDepth;
    for (int64_t j = 0; j < n; j += 2 * kTileSide, k += 2 * depth_ * kTileNumbers)
      multiply_tiles(n - j, depth_, k, 2 * kTileNumbers, queries(strip), scores + j * lanes, lanes, false);
  }

  void weigh(int vectors, int64_t first, int64_t n, const A* weights, const A* alpha, bool started, A* out) const {
    constexpr int L = Simd<A>::lanes;
    BFloat16* dst = weights_;
    for (int64_t j = 0; j < round_up(n, kTileDepth); j += kTileDepth)
      for (int base = 0; base < lanes; base += L)
        for (int64_t i = j; i < j + kTileDepth; i += 2, dst += kTileDepth) {
          const Vec<A> low = i < n ? load(weights + i * lanes + base) : Vec<A>{};
          const Vec<A> high = i + 1 < n ? load(weights + (i + 1) * lanes + base) : Vec<A>{};
          const Pairs pairs = base < vectors * L ? interleave_pairs(low, high) : Pairs{};
          std::memcpy(dst, &pairs, sizeof pairs);
        }
    if (started)
      for (int v = 0; v < vectors; ++v) {
        const Vec<A> factor = load(alpha + v * L);
        for (int64_t d = 0; d < p_.head_dim_v; ++d) {
          A* const o = out + d * lanes + v * L;
          store(o, load(o) * factor);
        }
      }
    const int64_t steps = ceil_div(n, kTileDepth), step = outs_ * kTileNumbers;
    const BFloat16* v = values_ + first / kTileDepth * step;
    for (int64_t d = 0; d < outs_; d += 2)
      multiply_tiles((outs_ - d) * kTileSide, steps, v + d * kTileNumbers, step, weights_, out + d * kTileSide * lanes,
                     lanes, started);
  }

 private:
  BFloat16* queries(int64_t strip) const { return queries_ + strip * depth_ * kTileDepth * lanes; }

  // Rows [first, first + count): where they are, or copied together from pages.
  const BFloat16* in_one_piece(const KeyRows& rows, int64_t first, int64_t count, int64_t dim, int64_t* stride) const {
    if (rows.pages == nullptr) {
      *stride = rows.row_bytes / int64_t{sizeof(BFloat16)};
      return reinterpret_cast<const BFloat16*>(rows.row(first));
    }
    for (int64_t j = 0; j < count; ++j)
      std::memcpy(rows_ + j * dim, rows.row(first + j), static_cast<size_t>(dim) * sizeof(BFloat16));
    *stride = dim;
    return rows_;
  }

  const AttentionParams& p_;
  const int64_t depth_, outs_;  // tiles along the head dims of K and of V
  BFloat16 *keys_, *values_, *weights_, *queries_, *rows_;
};

}  // namespace TW_ISA
}  // namespace tilewright
