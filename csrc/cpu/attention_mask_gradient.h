// The gradients of a float mask and of the sinks.
//
// dmask is dS, summed over whatever dimensions the mask is broadcast along. A task owns a tile of the mask's own
// elements and walks over everything that is added into it, recomputing dS (two products), so nothing is shared between
// tasks and every sum has one order.
#pragma once

#include "attention_backward.h"
#include "parallel.h"

namespace tilewright {
namespace TW_ISA {

constexpr int64_t kMaskKeys = 96;
constexpr int64_t kMaskStrips = 4;

template <class A>
struct MaskWorkspace {
  A *keys, *values, *queries, *grads, *probs, *ds;
  double* sums;  // over whole batches, which cancel: an element may be the sum of everything
  Strip<A>* strip;
  TileBuffers<A> buffers;
  MaskWorkspace(const AttentionParams& p, Carver& carver) : buffers(p, kMaskKeys, kStripLanes<A>, carver) {
    constexpr int lanes = kStripLanes<A>;
    keys = carver.take<A>(kMaskKeys * p.head_dim);
    values = carver.take<A>(kMaskKeys * p.head_dim_v);
    queries = carver.take<A>(p.head_dim * lanes);
    grads = carver.take<A>(p.head_dim_v * lanes);
    probs = carver.take<A>(kMaskKeys * lanes);
    ds = carver.take<A>(kMaskKeys * lanes);
    sums = carver.take<double>(kMaskStrips * kMaskKeys * lanes);
    strip = carver.take<Strip<A>>(1);
  }
};

// Tiles along each dimension of the mask; one where it is broadcast.
struct MaskTiles {
  int64_t batch, heads, rows, keys;
};
template <class A>
MaskTiles mask_tiles(const AttentionParams& p) {
  const int64_t* stride = p.dmask.stride;
  const int64_t rows = kMaskStrips * kStripLanes<A>;
  return {stride[0] != 0 ? p.batch : 1, stride[1] != 0 ? p.heads : 1,
          stride[2] != 0 ? (p.seqlen_q + rows - 1) / rows : 1,
          stride[3] != 0 ? (p.seqlen_k + kMaskKeys - 1) / kMaskKeys : 1};
}
template <class A>
int64_t mask_gradient_tasks(const AttentionParams& p) {
  const MaskTiles tiles = mask_tiles<A>(p);
  return tiles.batch * tiles.heads * tiles.rows * tiles.keys;
}

// The strip of one head whose first row is `row`, and its statistics; of lanes without a row those of no weight.
template <class A>
struct HeadStrip {
  static constexpr int lanes = kStripLanes<A>;
  alignas(64) A max[lanes], inverse[lanes], delta[lanes], dlse[lanes];

  HeadStrip(const AttentionParams& p, const Sequence& s, RowStats<A> all_stats, int64_t padded_rows, int64_t head,
            int64_t row, MaskWorkspace<A>& w) {
    make_strip(p, s, single_head(p, head), row, w.strip);
    for (int r = 0; r < lanes; ++r) {
      const bool used = r < w.strip->count;
      const RowStats<A> at = all_stats.at(stats_row(p, padded_rows, s.batch, head, used ? row + r : row));
      max[r] = used ? *at.max : static_cast<A>(kInfinity);
      inverse[r] = used ? *at.inverse : A{0};
      delta[r] = used ? *at.delta : A{0};
      dlse[r] = used ? *at.dlse : A{0};
    }
    pack_query_strip(p, s, *w.strip, w.queries, w.grads);
  }
  RowStats<A> stats() { return {max, inverse, delta, dlse}; }
};

// dS^T [n][lanes] of keys [key, key + n) to w.ds.
template <class A>
void mask_tile(const AttentionParams& p, const Sequence& s, RowStats<A> stats, int64_t kv_head, int64_t key, int64_t n,
               MaskWorkspace<A>& w) {
  const RowTile<A> kt = load_rows(p.dtype, key_rows(p, p.k, s, kv_head), key, n, p.head_dim, w.keys);
  const RowTile<A> vt = load_rows(p.dtype, key_rows(p, p.v, s, kv_head), key, n, p.head_dim_v, w.values);
  gradient_tile<A>(p, s, *w.strip, stats, w.queries, w.grads, kt, vt, key, n, true, true, w.buffers, w.probs, w.ds,
                   kStripLanes<A>);
}

// delta of a strip's rows once more, as sum P dP - dlse: an element of dmask may be the sum of a row's dS, in which the
// rounding of O would not cancel; and dQ has an error of delta's times the keys' mean, which stands out in a narrow head. The
// mask's gradient takes it so anyway where a strip's keys are one tile.
template <class A>
void exact_delta(const AttentionParams& p, RowStats<A> all_stats, int64_t padded_rows, int64_t task,
                 MaskWorkspace<A>& w) {
  constexpr int lanes = kStripLanes<A>;
  const int64_t strips = (p.seqlen_q + lanes - 1) / lanes, head = task / strips % p.heads, row = task % strips * lanes;
  const Sequence s = sequence_of(p, task / strips / p.heads);
  if (row >= s.len_q) return;
  HeadStrip<A> strip(p, s, all_stats, padded_rows, head, row, w);
  const int64_t begin = w.strip->first_key / kMaskKeys * kMaskKeys, end = w.strip->last_key;
  if (end - begin <= kMaskKeys && !is_narrow(p)) return;
  RowStats<A> none = strip.stats();
  for (int r = 0; r < lanes; ++r) none.delta[r] = 0;
  none.dlse = nullptr;
  double sum[lanes] = {};
  for (int64_t key = begin; key < end; key += kMaskKeys) {
    const int64_t n = min64(kMaskKeys, end - key);
    mask_tile(p, s, none, single_head(p, head).kv, key, n, w);
    for (int64_t j = 0; j < n; ++j)
      for (int r = 0; r < w.strip->count; ++r) sum[r] += double{w.ds[j * lanes + r]};
  }
  for (int r = 0; r < w.strip->count; ++r)
    *all_stats.at(stats_row(p, padded_rows, s.batch, head, row + r)).delta =
        static_cast<A>(sum[r] - double{strip.dlse[r]});
}
inline bool wants_exact_delta(const AttentionParams& p) { return p.dmask.data != nullptr || is_narrow(p); }
template <class A>
int64_t exact_delta_tasks(const AttentionParams& p) {
  return p.batch * p.heads * ((p.seqlen_q + kStripLanes<A> - 1) / kStripLanes<A>);
}

template <class A>
void mask_gradient(const AttentionParams& p, RowStats<A> all_stats, int64_t padded_rows, int64_t task,
                   MaskWorkspace<A>& w) {
  constexpr int L = Simd<A>::lanes, lanes = kStripLanes<A>;
  const MaskTiles tiles = mask_tiles<A>(p);
  const int64_t* step = p.dmask.stride;
  const int64_t key_tile = task % tiles.keys, row_tile = task / tiles.keys % tiles.rows;
  const int64_t head = task / tiles.keys / tiles.rows % tiles.heads,
                batch = task / tiles.keys / tiles.rows / tiles.heads;
  const int64_t first_row = step[2] != 0 ? row_tile * kMaskStrips * lanes : 0;
  const int64_t slots = step[2] != 0 ? kMaskStrips : 1, slot_size = kMaskKeys * lanes;
  std::memset(w.sums, 0, static_cast<size_t>(slots * slot_size) * sizeof(double));

  for (int64_t b = step[0] != 0 ? batch : 0; b < (step[0] != 0 ? batch + 1 : p.batch); ++b) {
    const Sequence s = sequence_of(p, b);
    for (int64_t h = step[1] != 0 ? head : 0; h < (step[1] != 0 ? head + 1 : p.heads); ++h) {
      int64_t row_end = step[2] != 0 ? first_row + kMaskStrips * lanes : s.len_q;
      if (row_end > s.len_q) row_end = s.len_q;
      for (int64_t row = first_row; row < row_end; row += lanes) {
        HeadStrip<A> strip(p, s, all_stats, padded_rows, h, row, w);
        double* sums = w.sums + (step[2] != 0 ? (row - first_row) / lanes * slot_size : 0);
        const int64_t key_end =
            step[3] != 0 && (key_tile + 1) * kMaskKeys < s.len_k ? (key_tile + 1) * kMaskKeys : s.len_k;
        for (int64_t key = step[3] != 0 ? key_tile * kMaskKeys : 0; key < key_end; key += kMaskKeys) {
          if (key >= w.strip->last_key || key + kMaskKeys <= w.strip->first_key) continue;
          const int64_t n = key + kMaskKeys < key_end ? kMaskKeys : key_end - key;
          mask_tile(p, s, strip.stats(), single_head(p, h).kv, key, n, w);
          for (int64_t j = 0; j < n; ++j)
            for (int r = 0; r < w.strip->vectors * L; ++r) sums[j * lanes + r] += double{w.ds[j * lanes + r]};
        }
      }
    }
  }

  if (step[3] == 0)
    for (int64_t n = kMaskKeys; n > 1; n -= n / 2)
      for (int64_t slot = 0; slot < slots; ++slot)
        for (int64_t i = 0; i < n / 2 * lanes; ++i)
          w.sums[slot * slot_size + i] += w.sums[slot * slot_size + (n - n / 2) * lanes + i];
  if (step[2] == 0)
    for (int64_t half = lanes / 2; half >= 1; half /= 2)
      for (int64_t j = 0; j < kMaskKeys; ++j)
        for (int64_t r = 0; r < half; ++r) w.sums[j * lanes + r] += w.sums[j * lanes + r + half];

  const int64_t rows_here = step[2] != 0 ? p.seqlen_q - first_row : 1;
  const int64_t keys_here = step[3] != 0 ? p.seqlen_k - key_tile * kMaskKeys : 1;
  A* out = static_cast<A*>(p.dmask.data) + batch * step[0] + head * step[1] + first_row * step[2] +
           key_tile * kMaskKeys * step[3];
  for (int64_t slot = 0; slot < slots; ++slot)
    for (int64_t j = 0; j < kMaskKeys && j < keys_here; ++j)
      for (int64_t r = 0; r < lanes && slot * lanes + r < rows_here; ++r)
        out[(slot * lanes + r) * step[2] + j * step[3]] += static_cast<A>(w.sums[slot * slot_size + j * lanes + r]);
}

// What of a row's weight its sink has: exp(sink - lse). max: of the scores; +inf where the row has no key.
template <class A>
double sink_weight(const AttentionParams& p, double sink, A max, A inverse) {
  if (sink == -kInfinity) return 0;
  const double above = sink - double{max} * double{softmax_scale<A>(p)};
  // Far above all keys it has everything, and `inverse` may be 0.
  return max == static_cast<A>(kInfinity) || above > 80 ? 1 : std::exp(above) * double{inverse};
}

// dsink_h = -sum over its rows of the sink's weight * delta.
template <class A>
void sink_gradient(const AttentionParams& p, RowStats<A> all_stats, int64_t padded_rows, int threads) {
  parallel_for(p.heads, threads, [&](int64_t h, int) {
    const double sink = sink_of<A>(p, h);
    double sum = 0;
    for (int64_t b = 0; b < p.batch; ++b) {
      const Sequence s = sequence_of(p, b);
      for (int64_t i = 0; i < s.len_q; ++i) {
        const RowStats<A> at = all_stats.at(stats_row(p, padded_rows, b, h, i));
        sum -= sink_weight(p, sink, *at.max, *at.inverse) * double{*at.delta};
      }
    }
    static_cast<A*>(p.dsinks.data)[h * p.dsinks.stride[0]] += static_cast<A>(sum);
  });
}

}  // namespace TW_ISA
}  // namespace tilewright
