// A few query rows against many keys, as in decoding: bound by reading K and V once.
//
// With lanes for query rows most of a vector would be idle, so here the lanes run along the head dimension, for Q K^T
// and for P V, and along the keys in between; only where there is more to do to the scores than scaling are they laid out
// as everywhere else, so that masks, dropout and the rest are shared. Rows of K and V are read in memory order, in place
// when they fill whole vectors, and serve all heads of the group.
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
constexpr int kDecodeVectors = 8;  // sums of O held in registers, to keep the FMA units busy while others are under way

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

// Rows of whole vectors: as they are stored, or where that would leave part of a vector, widened into
// buffer [count][width].
template <class A>
bool stored_rows(int64_t dim) {
  return dim % Simd<A>::lanes == 0;
}
template <class A>
void decode_rows(DType dtype, const KeyRows& source, int64_t begin, int64_t count, int64_t dim, A* buffer,
                 char** rows) {
  source.rows(begin, count, rows);
  const int64_t width = round_up(dim, Simd<A>::lanes);
  const uintptr_t ahead = static_cast<uintptr_t>(kPrefetchRows * source.row_bytes);
  for (int64_t i = 0; i < count; ++i) {
    if (source.pages == nullptr)
      for (int64_t d = 0; d < dim * size_of(dtype); d += 64)
        __builtin_prefetch(reinterpret_cast<const void*>(reinterpret_cast<uintptr_t>(rows[i]) + ahead + d));
    if (stored_rows<A>(dim)) continue;
    widen_row<A>(dtype, rows[i], dim, width, buffer + i * width);
    rows[i] = reinterpret_cast<char*>(buffer + i * width);
  }
}

// use(T{}) with the type that decode_rows' rows hold.
template <class A, class F>
TW_INLINE void with_rows(DType dtype, int64_t dim, const F& use) {
  stored_rows<A>(dim) ? with_dtype<A>(dtype, use) : use(A{});
}

// Lane j: the sum over the lanes of v[j]. Halves the number of vectors at each step, where a transposition would not.
template <class A>
TW_MEMBER Vec<A> sum_lanes(Vec<A> (&v)[Simd<A>::lanes]) {
  using Lanes = std::make_integer_sequence<int, Simd<A>::lanes>;
  for (int half = Simd<A>::lanes / 2; half > 0; half /= 2)
    for (int j = 0; j < half; ++j)
      v[j] = interleave_low(v[j], v[j + half], Lanes{}) + interleave_high(v[j], v[j + half], Lanes{});
  return v[0];
}
#if defined(__AVX__) && TW_VECTOR_BYTES == 32
template <>
TW_MEMBER vfloat sum_lanes<float>(vfloat (&v)[8]) {
  __m256 pairs[4], fours[2];
  for (int j = 0; j < 4; ++j) {
    const __m256 a = (__m256)v[2 * j], b = (__m256)v[2 * j + 1];
    pairs[j] = _mm256_add_ps(_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
  }
  for (int j = 0; j < 2; ++j)
    fours[j] = _mm256_add_ps(_mm256_shuffle_ps(pairs[2 * j], pairs[2 * j + 1], 0x44),
                             _mm256_shuffle_ps(pairs[2 * j], pairs[2 * j + 1], 0xEE));
  return (vfloat)_mm256_add_ps(_mm256_permute2f128_ps(fours[0], fours[1], 0x20),
                               _mm256_permute2f128_ps(fours[0], fours[1], 0x31));
}
#endif

// q . k_j for L keys at once.
template <class A, class T>
TW_INLINE Vec<A> decode_dots(const A* q, const char* const* k, int64_t width) {
  constexpr int L = Simd<A>::lanes;
  Vec<A> sum[L];
  for (int j = 0; j < L; ++j) sum[j] = Vec<A>{};
  for (int64_t d = 0; d < width; d += L) {
    const Vec<A> x = load(q + d);
    for (int j = 0; j < L; ++j) sum[j] += x * load(reinterpret_cast<const T*>(k[j]) + d);
  }
  return sum_lanes<A>(sum);
}

// Row r's scores of n keys, a whole number of vectors, turn into exp(scale (s - max)); as softmax_tile.
template <class A>
void decode_softmax(A* s, int64_t n, A scale, int r, StripState<A>* state, A* alpha) {
  constexpr int L = Simd<A>::lanes;
  Vec<A> max = load(s);
  for (int64_t j = L; j < n; j += L) max = vmax(load(s + j), max);
  A top = horizontal_max(max);
  if (state->started && !(state->max[r] <= top)) top = state->max[r];
  const A base = top == static_cast<A>(-kInfinity) ? A{0} : top;
  alpha[r] = state->started ? vexp_nonpositive(broadcast<A>((state->max[r] - base) * scale))[0] : A{0};
  Vec<A> sum{};
  for (int64_t j = 0; j < n; j += L) {
    const Vec<A> e = vexp_nonpositive((load(s + j) - base) * scale);
    store(s + j, e);
    sum += e;
  }
  state->sum[r] = horizontal_sum(sum) + (state->started ? state->sum[r] * alpha[r] : A{0});
  state->max[r] = top;
}

// out [VECTORS vectors] = alpha * out + sum over keys of weights[j * stride] * v_j, in kDecodeVectors / VECTORS sums.
template <class A, class T, int VECTORS>
TW_INLINE void decode_sum(const A* weights, int64_t stride, const char* const* v, int64_t offset, int64_t count,
                          bool keep, A alpha, A* out) {
  constexpr int L = Simd<A>::lanes, KEYS = kDecodeVectors / VECTORS;
  Vec<A> sum[KEYS][VECTORS] = {};
  const auto add = [&](int64_t j, Vec<A>(&to)[VECTORS]) {
    const A weight = weights[j * stride];
    for (int i = 0; i < VECTORS; ++i) to[i] += weight * load(reinterpret_cast<const T*>(v[j]) + offset + i * L);
  };
  int64_t j = 0;
  for (; j + KEYS <= count; j += KEYS)
    for (int n = 0; n < KEYS; ++n) add(j + n, sum[n]);
  for (; j < count; ++j) add(j, sum[0]);
  for (int i = 0; i < VECTORS; ++i) {
    for (int n = 1; n < KEYS; ++n) sum[0][i] += sum[n][i];
    A* o = out + offset + i * L;
    store(o, keep ? load(o) * alpha + sum[0][i] : sum[0][i]);
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
      char* k[L];
      decode_rows(p.dtype, keys, key + j, count, p.head_dim, buffers.keys, k);
      for (int i = count; i < L; ++i) k[i] = k[0];
      with_rows<A>(p.dtype, p.head_dim, [&](auto t) {
        for (int r = 0; r < strip.count; ++r) {
          Vec<A> s_j = decode_dots<A, decltype(t)>(buffers.queries + r * width, k, width);
          if (plain) {
            for (int i = count; i < L; ++i) s_j[i] = static_cast<A>(-kInfinity);
            store(w.scores + r * row + j, s_j);
          } else {
            for (int i = 0; i < count; ++i) w.scores[(j + i) * step + r] = s_j[i];
          }
        }
      });
    }
    if (plain) {
      for (int r = 0; r < strip.count; ++r)
        decode_softmax(w.scores + r * row, round_up(n, L), softmax_scale<A>(p), r, state, w.alpha);
    } else {
      weigh_scores(p, s, strip, key, n, w, state);
    }
    char* v[kDecodeTile];
    decode_rows(p.dtype, values, key, n, p.head_dim_v, buffers.values, v);
    with_rows<A>(p.dtype, p.head_dim_v, [&](auto t) {
      using T = decltype(t);
      for (int r = 0; r < strip.count; ++r) {
        const A *weights = w.scores + r * row, alpha = w.alpha[r];
        A* out = buffers.out + r * width_v;
        int64_t d = 0;
        for (; d + 8 * L <= width_v; d += 8 * L)
          decode_sum<A, T, 8>(weights, step, v, d, n, state->started, alpha, out);
        for (; d + 4 * L <= width_v; d += 4 * L)
          decode_sum<A, T, 4>(weights, step, v, d, n, state->started, alpha, out);
        for (; d < width_v; d += L) decode_sum<A, T, 1>(weights, step, v, d, n, state->started, alpha, out);
      }
    });
    state->started = true;
  }
  if (!state->started) return;
  const char* out[kDecodeRows<A>];
  for (int r = 0; r < strip.count; ++r) out[r] = reinterpret_cast<const char*>(buffers.out + r * width_v);
  pack_strip<A>(sizeof(A) == 8 ? DType::kFloat64 : DType::kFloat32, out, strip.count, p.head_dim_v, A{1}, state->out);
}

}  // namespace TW_ISA
}  // namespace tilewright
