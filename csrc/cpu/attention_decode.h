// A few query rows against many keys, as in decoding: bound by reading K and V once.
//
// With lanes for query rows most of a vector would be idle, so here the lanes run along the head dimension, for Q K^T
// and for P V, and along the keys in between; only where there is more to do to the scores than scaling are they laid out
// as everywhere else, so that masks, dropout and the rest are shared. Rows of K and V are read in memory order, in place
// when they hold A and fill whole vectors, and serve all heads of the group.
#pragma once

#include "attention_forward.h"
#include "attention_softmax.h"

namespace tilewright {
namespace TW_ISA {

// Beyond these many rows whole strips are worth their lanes. They are one strip in any case.
template <class A>
constexpr int kDecodeRows = kStripLanes<A> < 8 ? kStripLanes<A> : 8;
constexpr int64_t kDecodeTile = 64;  // keys: V's tile is still in L1 or L2 for the second row
// The hardware's own prefetching loses its way between the rows that are read side by side: +10% bandwidth on a Zen 3
// core with 8 to 32 rows alike.
constexpr int64_t kPrefetchRows = 32;
constexpr int kDecodeVectors = 8;  // of O held in registers: a row of 64 floats under AVX2

template <class A>
struct DecodeBuffers {
  A *queries, *keys, *values, *out;
  DecodeBuffers(const AttentionParams& p, Carver& carver) {
    constexpr int L = Simd<A>::lanes;
    const int64_t width = round_up(p.head_dim, L), width_v = round_up(p.head_dim_v, L);
    queries = carver.take<A>(kDecodeRows<A> * width);
    keys = carver.take<A>(L * width);
    values = carver.take<A>(kDecodeTile * width_v);
    out = carver.take<A>(kDecodeRows<A> * width_v);
  }
};

// The rows as A, whole vectors long: rows[i] stays, or is widened into buffer [count][width] and replaced.
template <class A>
void decode_rows(DType dtype, const KeyRows& source, int64_t begin, int64_t count, int64_t dim, A* buffer,
                 const A** rows) {
  constexpr int L = Simd<A>::lanes;
  char* raw[kDecodeTile];
  source.rows(begin, count, raw);
  const bool in_place = size_of(dtype) == static_cast<int64_t>(sizeof(A)) && dim % L == 0;
  const int64_t width = round_up(dim, L);
  const uintptr_t ahead = static_cast<uintptr_t>(kPrefetchRows * source.row_bytes);
  for (int64_t i = 0; i < count; ++i) {
    if (source.pages == nullptr)
      for (int64_t d = 0; d < dim * size_of(dtype); d += 64)
        __builtin_prefetch(reinterpret_cast<const void*>(reinterpret_cast<uintptr_t>(raw[i]) + ahead + d));
    if (!in_place) widen_row<A>(dtype, raw[i], dim, width, buffer + i * width);
    rows[i] = in_place ? reinterpret_cast<const A*>(raw[i]) : buffer + i * width;
  }
}

// q . k_j for L keys at once: their L accumulators are summed across by a transposition.
template <class A>
TW_INLINE Vec<A> decode_dots(const A* q, const A* const* k, int64_t width) {
  constexpr int L = Simd<A>::lanes;
  Vec<A> sum[L];
  for (int j = 0; j < L; ++j) sum[j] = Vec<A>{};
  for (int64_t d = 0; d < width; d += L) {
    const Vec<A> x = load(q + d);
    for (int j = 0; j < L; ++j) sum[j] += x * load(k[j] + d);
  }
  transpose<A>(sum);
  for (int step = L / 2; step > 0; step /= 2)
    for (int j = 0; j < step; ++j) sum[j] += sum[j + step];
  return sum[0];
}

// Row r's scores of n keys, a whole number of vectors, turn into exp(scale s - max); as softmax_tile.
template <class A>
void decode_softmax(A* s, int64_t n, A scale, int r, StripState<A>* state, A* alpha) {
  constexpr int L = Simd<A>::lanes;
  Vec<A> max = load(s);
  for (int64_t j = L; j < n; j += L) max = vmax(load(s + j), max);
  A top = horizontal_max(max) * scale;
  if (state->started && !(state->max[r] <= top)) top = state->max[r];
  const A base = top == static_cast<A>(-kInfinity) ? A{0} : top;
  alpha[r] = state->started ? vexp_nonpositive(broadcast<A>(state->max[r] - base))[0] : A{0};
  Vec<A> sum{};
  for (int64_t j = 0; j < n; j += L) {
    const Vec<A> e = vexp_nonpositive(load(s + j) * scale - base);
    store(s + j, e);
    sum += e;
  }
  state->sum[r] = horizontal_sum(sum) + (state->started ? state->sum[r] * alpha[r] : A{0});
  state->max[r] = top;
}

// out [VECTORS vectors] = alpha * out + sum over keys of weights[j * stride] * v_j.
template <class A, int VECTORS>
TW_INLINE void decode_sum(const A* weights, int64_t stride, const A* const* v, int64_t offset, int64_t count, bool keep,
                          A alpha, A* out) {
  constexpr int L = Simd<A>::lanes;
  Vec<A> sum[VECTORS];
  for (int i = 0; i < VECTORS; ++i) sum[i] = Vec<A>{};
  for (int64_t j = 0; j < count; ++j) {
    const A weight = weights[j * stride];
    for (int i = 0; i < VECTORS; ++i) sum[i] += weight * load(v[j] + offset + i * L);
  }
  for (int i = 0; i < VECTORS; ++i) {
    A* o = out + offset + i * L;
    store(o, keep ? load(o) * alpha + sum[i] : sum[i]);
  }
}

// The strip (at most kDecodeRows<A> rows) over keys [begin, end); begin is a multiple of 4.
template <class A>
void decode_strip(const AttentionParams& p, const Sequence& s, const Strip<A>& strip, const KeyRows& keys,
                  const KeyRows& values, int64_t begin, int64_t end, const ScoreBuffers<A>& w,
                  const DecodeBuffers<A>& buffers, StripState<A>* state) {
  constexpr int L = Simd<A>::lanes, lanes = kStripLanes<A>;
  const int64_t width = round_up(p.head_dim, L), width_v = round_up(p.head_dim_v, L);
  const A scale = packed_scale<A>(p);
  for (int r = 0; r < strip.count; ++r) {
    A* q = buffers.queries + r * width;
    widen_row<A>(p.dtype, query_row(p, p.q, s, strip.head[r], strip.row[r]), p.head_dim, width, q);
    for (int64_t d = 0; d < width; d += L) store(q + d, load(q + d) * scale);
  }
  // Score j of row r is at j * step + r * row.
  const bool plain =
      plain_scores(p) && p.dropout_p <= 0 && begin >= strip.first_shared_key && end <= strip.last_shared_key;
  const int64_t step = plain ? 1 : lanes, row = plain ? kDecodeTile : 1;
  static_assert(kDecodeRows<A> * kDecodeTile <= kKeyTile * kStripLanes<A>, "the scores fit in their buffer");
  for (int64_t key = begin; key < end; key += kDecodeTile) {
    const int64_t n = key + kDecodeTile < end ? kDecodeTile : end - key;
    // Lanes without a row are computed along with the others; they must hold numbers.
    if (!plain) std::memset(w.scores, 0, static_cast<size_t>(n * lanes) * sizeof(A));
    for (int64_t j = 0; j < n; j += L) {
      const int count = static_cast<int>(n - j < L ? n - j : L);
      const A* k[L];
      decode_rows(p.dtype, keys, key + j, count, p.head_dim, buffers.keys, k);
      for (int i = count; i < L; ++i) k[i] = k[0];
      for (int r = 0; r < strip.count; ++r) {
        Vec<A> s_j = decode_dots<A>(buffers.queries + r * width, k, width);
        if (plain) {
          for (int i = count; i < L; ++i) s_j[i] = static_cast<A>(-kInfinity);
          store(w.scores + r * row + j, s_j);
        } else {
          for (int i = 0; i < count; ++i) w.scores[(j + i) * step + r] = s_j[i];
        }
      }
    }
    if (plain) {
      for (int r = 0; r < strip.count; ++r)
        decode_softmax(w.scores + r * row, round_up(n, L), softmax_scale<A>(p), r, state, w.alpha);
    } else {
      weigh_scores(p, s, strip, key, n, w, state);
    }
    const A* v[kDecodeTile];
    decode_rows(p.dtype, values, key, n, p.head_dim_v, buffers.values, v);
    for (int r = 0; r < strip.count; ++r) {
      const A* weights = w.scores + r * row;
      A* out = buffers.out + r * width_v;
      int64_t d = 0;
      for (; d + kDecodeVectors * L <= width_v; d += kDecodeVectors * L)
        decode_sum<A, kDecodeVectors>(weights, step, v, d, n, state->started, w.alpha[r], out);
      for (; d + 2 * L <= width_v; d += 2 * L)
        decode_sum<A, 2>(weights, step, v, d, n, state->started, w.alpha[r], out);
      if (d < width_v) decode_sum<A, 1>(weights, step, v, d, n, state->started, w.alpha[r], out);
    }
    state->started = true;
  }
  if (!state->started) return;
  const char* out[kDecodeRows<A>];
  for (int r = 0; r < strip.count; ++r) out[r] = reinterpret_cast<const char*>(buffers.out + r * width_v);
  pack_strip<A>(sizeof(A) == 8 ? DType::kFloat64 : DType::kFloat32, out, strip.count, p.head_dim_v, A{1}, state->out);
}

}  // namespace TW_ISA
}  // namespace tilewright
