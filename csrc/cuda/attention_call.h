// A call of attention as its kernels see it: sequences, bounds, and what happens to a score.
#pragma once

#include "../common/params.h"
#include "../common/philox.h"
#include "access.h"

namespace tilewright::gpu {

constexpr float kLog2E = 1.4426950408889634f;
constexpr float kLn2 = 0.6931471805599453f;

TW_DEVICE int clamp(int64_t x, int low, int high) { return x < low ? low : x > high ? high : static_cast<int>(x); }

// Sequence b: where its rows and keys begin in the packed tensors, and how many it has.
struct Sequence {
  int64_t b;  // also the batch entry of the tensors, where packed ones have a stride of 0
  int first_q, first_k;
  int seqlen_q, seqlen_k;
  int shift;              // query i stands at key i + shift
  int nearest, farthest;  // of the keys j that it sees: bounds of j - i
};

// Rows of a packed sequence.
struct PackedRows {
  int first, count;
};
// Those of sequence b, cut down to the tensors' rows and to the longest sequence, which masks and grids are made for: on a
// GPU nobody has looked at what the bounds hold.
TW_DEVICE PackedRows find_packed_rows(const int32_t* bounds, int b, int total, int longest) {
  const Global<const int32_t> at{bounds};
  const auto least = [](int x, int y) { return x < y ? x : y; };
  const auto inside = [&](int row) { return least(row < 0 ? 0 : row, total); };
  const int first = inside(at.load(b)), count = least(inside(at.load(b + 1)) - first, longest);
  return {first, count < 0 ? 0 : count};
}

TW_DEVICE Sequence find_sequence(const AttentionParams& p, int b) {
  Sequence s{b, 0, 0, static_cast<int>(p.seqlen_q), static_cast<int>(p.seqlen_k), 0, 0, 0};
  if (p.cu_seqlens_q != nullptr) {
    const PackedRows q = find_packed_rows(p.cu_seqlens_q, b, static_cast<int>(p.total_q), s.seqlen_q);
    const PackedRows k = find_packed_rows(p.cu_seqlens_k, b, static_cast<int>(p.total_k), s.seqlen_k);
    s.first_q = q.first, s.first_k = k.first, s.seqlen_q = q.count, s.seqlen_k = k.count;
  }
  // So are lengths, and pages below.
  if (p.seqlens_k != nullptr)
    s.seqlen_k = clamp(Global<const int32_t>{p.seqlens_k}.load(b) + p.seqlen_new, 0, s.seqlen_k);
  s.shift = p.causal == Causal::kTopLeft ? 0 : s.seqlen_k - s.seqlen_q;
  constexpr int kAny = 0x7fffffff;
  const int64_t right = p.causal != Causal::kNone ? 0 : p.window_right;
  s.nearest = p.window_left < 0 ? -kAny : clamp(s.shift - p.window_left, -kAny, kAny);
  s.farthest = right < 0 ? kAny : clamp(s.shift + right, -kAny, kAny);
  return s;
}

// Where row i of one head of a sequence is; the keys and values of a cache may be in pages. A position in a cache has 32
// bits: dividing 64 takes a hundred instructions.
template <class T>
struct Rows {
  Global<T> base;
  int64_t stride = 0;
  Global<const int32_t> pages;  // of the sequence
  int64_t page_stride = 0;
  uint32_t page_size = 1;
  int last_page = 0;

  TW_DEVICE Global<T> operator()(int64_t i) const {
    if (!pages) return base + i * stride;
    const uint32_t place = static_cast<uint32_t>(i), page = place / page_size;
    return base + (clamp(pages.load(page), 0, last_page) * page_stride + (place - page * page_size) * stride);
  }
};
template <class T>
TW_DEVICE Rows<T> find_rows(const View4& v, const Sequence& s, int64_t head, int64_t first) {
  const Global<T> data{static_cast<T*>(v.data)};
  return {data + (s.b * v.stride[0] + head * v.stride[1] + first * v.stride[2]), v.stride[2], {}};
}
template <class T>
TW_DEVICE Rows<T> find_key_rows(const AttentionParams& p, const View4& v, const Sequence& s, int64_t head) {
  if (p.block_table == nullptr) return find_rows<T>(v, s, head, s.first_k);
  const Global<T> data{static_cast<T*>(v.data)};
  return {data + head * v.stride[1],
          v.stride[2],
          Global<const int32_t>{p.block_table} + s.b * p.block_table_stride,
          v.stride[0],
          static_cast<uint32_t>(p.page_size),
          static_cast<int>(p.num_pages) - 1};
}
// Query heads that share a key head.
TW_DEVICE int group_of(const AttentionParams& p) { return static_cast<int>(p.heads) / static_cast<int>(p.heads_kv); }

// Keys [lo, hi) that some of the queries first to last see, and [lo_all, hi_all) that all of them see. lo is a multiple
// of 16, since dropout's random numbers come in fours and copies in 16 bytes.
struct KeyRange {
  int lo, hi, lo_all, hi_all;
};

TW_DEVICE KeyRange find_keys(const AttentionParams& p, const Sequence& s, int first, int last) {
  KeyRange r{0, s.seqlen_k, 0, s.seqlen_k};
  const int64_t right = p.causal != Causal::kNone ? 0 : p.window_right;
  if (right >= 0) {
    r.hi = clamp(last + int64_t{s.shift} + right + 1, 0, s.seqlen_k);
    r.hi_all = clamp(first + int64_t{s.shift} + right + 1, 0, s.seqlen_k);
  }
  if (p.window_left >= 0) {
    r.lo = clamp(first + int64_t{s.shift} - p.window_left, 0, r.hi) / 16 * 16;
    r.lo_all = clamp(last + int64_t{s.shift} - p.window_left, 0, s.seqlen_k);
  }
  return r;
}

// Queries [lo, hi) that see some of the keys first to last, and [lo_all, hi_all) that see all of them.
struct QueryRange {
  int lo, hi, lo_all, hi_all;
};

TW_DEVICE QueryRange find_queries(const AttentionParams& p, const Sequence& s, int first, int last) {
  QueryRange r{0, s.seqlen_q, 0, s.seqlen_q};
  const int64_t right = p.causal != Causal::kNone ? 0 : p.window_right;
  if (p.window_left >= 0) {
    r.hi = clamp(last - int64_t{s.shift} + p.window_left + 1, 0, s.seqlen_q);
    r.hi_all = clamp(first - int64_t{s.shift} + p.window_left + 1, 0, s.seqlen_q);
  }
  if (right >= 0) {
    r.lo = clamp(first - int64_t{s.shift} - right, 0, r.hi);
    r.lo_all = clamp(last - int64_t{s.shift} - right, 0, s.seqlen_q);
  }
  return r;
}

TW_DEVICE bool sees(const Sequence& s, int i, int j) {
  return i < s.seqlen_q && j < s.seqlen_k && j - i >= s.nearest && j - i <= s.farthest;
}

TW_DEVICE float max_of(float a, float b) { return a > b ? a : b; }
// tanh to 2 units in the last place, also near 0, and without overflow; and its derivative 1 - tanh^2, also where that
// would cancel. Both forms for every x: a branch costs more.
struct Tanh {
  float value, derivative;
};
TW_DEVICE Tanh tanh_of(float x) {
  const float size = x < 0.0f ? -x : x, square = x * x;
  // Minimax fit of (tanh(x) - x) / x^3 over |x| < 0.625; beyond, the other form does not cancel.
  float poly = -5.7049869e-3f * square + 2.0639086e-2f;
  poly = poly * square - 5.3739715e-2f;
  poly = poly * square + 1.3331442e-1f;
  poly = poly * square - 3.3333281e-1f;
  const float e = exp2_fast(-2.0f * kLog2E * size), part = divide_fast(1.0f, 1.0f + e), large = (1.0f - e) * part;
  const float value = size < 0.625f ? x + x * square * poly : x < 0.0f ? -large : large;
  return {value, size < 0.625f ? 1.0f - value * value : 4.0f * e * part * part};
}

// A row of scores: query i of a head, and what ALiBi takes off for each key that it is away.
struct Query {
  int i = 0, head = 0;
  float slope = 0.0f;

  TW_DEVICE static Query of(const AttentionParams& p, const Sequence& s, int head, int i) {
    Query q{i, head};
    if (p.alibi_slopes.data != nullptr)
      q.slope =
          global<float>(p.alibi_slopes.data).load(s.b * p.alibi_slopes.stride[0] + head * p.alibi_slopes.stride[1]);
    return q;
  }
};

// Tiles of q . k, of query_of(n, e) and key_of(n, e), become logits: capped, biased, masked; -inf where the mask says so.
// dcap: the derivative of the cap. Two tiles at a time and option by option, without branches inside: so eight loads are under way
// together, and their addresses do not push everything else out of the registers.
template <class T, int kTiles, class QueryOf, class KeyOf>
TW_DEVICE void to_logits(float (&x)[kTiles][4], float (&dcap)[kTiles][4], const AttentionParams& p, const Sequence& s,
                         QueryOf query_of, KeyOf key_of) {
  static_assert(kTiles % 2 == 0);
  // Where there is no such pair any number will do: whoever calls excludes it.
  const auto mask_at = [&](int n, int e) -> int64_t {
    const Query q = query_of(n, e);
    const int j = key_of(n, e);
    const int64_t row = s.b * p.mask.stride[0] + q.head * p.mask.stride[1] + q.i * p.mask.stride[2];
    return q.i < s.seqlen_q && j < s.seqlen_k ? row + j * p.mask.stride[3] : 0;
  };
  TW_UNROLL for (int two = 0; two < kTiles; two += 2) {
    const auto each = [&](auto apply) {
      TW_UNROLL for (int n = two; n < two + 2; ++n) TW_UNROLL for (int e = 0; e < 4; ++e) apply(n, e);
    };
    each([&](int n, int e) { x[n][e] = rounded_product(x[n][e], static_cast<float>(p.scale)); });
    if (p.softcap > 0.0) {
      const float softcap = static_cast<float>(p.softcap), inverse = 1.0f / softcap;
      each([&](int n, int e) {
        const Tanh t = tanh_of(x[n][e] * inverse);
        dcap[n][e] = t.derivative;
        x[n][e] = softcap * t.value;
      });
    }
    if (p.alibi_slopes.data != nullptr)
      each([&](int n, int e) {
        const int distance = query_of(n, e).i + s.shift - key_of(n, e);
        x[n][e] -= query_of(n, e).slope * static_cast<float>(distance < 0 ? -distance : distance);
      });
    if (p.mask.data == nullptr) continue;
    const void* mask = p.mask.data;
    if (p.mask_dtype == DType::kBool)
      each([&](int n, int e) {
        if (global<uint8_t>(mask).load(mask_at(n, e)) == 0) x[n][e] = -kInfinity;
      });
    else if (p.mask_dtype == DType::kFloat32)
      each([&](int n, int e) { x[n][e] = masked(x[n][e], global<float>(mask).load(mask_at(n, e))); });
    else
      each([&](int n, int e) { x[n][e] = masked(x[n][e], widen(global<T>(mask).load(mask_at(n, e)))); });
  }
}

// Which weights dropout keeps; the same ones on every backend.
struct Dropout {
  bool on = false;
  uint64_t seed = 0;
  uint32_t offset = 0, threshold = 0;
  float scale = 1.0f;  // of those that are kept

  TW_DEVICE static Dropout of(const AttentionParams& p) {
    if (p.rng == nullptr) return {};
    const Global<const int64_t> rng{p.rng};
    return {true, static_cast<uint64_t>(rng.load(0)), static_cast<uint32_t>(rng.load(1)),
            dropout_threshold(p.dropout_p), static_cast<float>(dropout_scale(p.dropout_p))};
  }

  // Of tiles of scores, keys from `start` on, rows q[0] and q[1]: bit 4 n + e is for x[n][e]. The loop stays one, half
  // unrolled, here and below: a draw is a hundred instructions.
  template <int kTiles>
  TW_DEVICE uint32_t kept(const AttentionParams& p, const Sequence& s, const Query (&q)[2], int start) const {
    static_assert(kTiles <= 8);
    uint32_t bits = 0;
    TW_UNROLL_BY(2) for (int n = 0; n < kTiles; ++n) bits |= kept_of_tile(p, s, q, start + 8 * n) << 4 * n;
    return bits;
  }
  // The same where rows are keys, from `start` on, and columns queries, i and i + 1 being this lane's of the first tile.
  template <int kTiles>
  TW_DEVICE uint32_t kept_transposed(const AttentionParams& p, const Sequence& s, int head, int i, int start) const {
    static_assert(kTiles <= 8);
    uint32_t bits = 0;
    TW_UNROLL_BY(2) for (int n = 0; n < kTiles; ++n) bits |= kept_of_transposed(p, s, head, i + 8 * n, start) << 4 * n;
    return bits;
  }

  // Of one query, eight keys from `start` on; of one key, eight queries.
  TW_DEVICE uint32_t kept_of_row(const AttentionParams& p, const Sequence& s, const Query& q, int start) const {
    return draw(p, s, q.head, q.i, start / 4) | draw(p, s, q.head, q.i, start / 4 + 1) << 4;
  }
  TW_DEVICE uint32_t kept_of_key(const AttentionParams& p, const Sequence& s, int head, int start, int j) const {
    uint32_t bits = 0;
    TW_UNROLL_BY(1) for (int r = 0; r < 8; ++r) bits |= (draw(p, s, head, start + r, j / 4) >> j % 4 & 1) << r;
    return bits;
  }

 private:
  // Four lanes of a row have eight keys, for which it takes two draws of four; so each lane draws once for two of its rows
  // and passes on what is another's.
  TW_DEVICE uint32_t kept_of_tile(const AttentionParams& p, const Sequence& s, const Query (&q)[2], int start) const {
    const int odd = lane_index() % 2;
    const uint32_t mine =
        draw(p, s, odd ? q[1].head : q[0].head, odd ? q[1].i : q[0].i, start / 4 + lane_index() % 4 / 2);
    const uint32_t other = shuffle_xor(mine, 1);
    const uint32_t rows[2] = {odd ? other : mine, odd ? mine : other};
    return (rows[0] >> 2 * odd & 3) | (rows[1] >> 2 * odd & 3) << 2;
  }
  TW_DEVICE uint32_t kept_of_transposed(const AttentionParams& p, const Sequence& s, int head, int i, int start) const {
    const int g = lane_index() / 4, r = g % 4;
    const uint32_t mine = draw(p, s, head, i + r % 2, start / 4 + 2 * (r / 2) + g / 4);
    uint32_t bits = 0;
    TW_UNROLL for (int e = 0; e < 4; ++e) bits |= (shuffle(mine, lane_index() + 4 * (e - r)) >> r & 1) << e;
    return bits;
  }

  // Of a query, four keys from 4 * fours on: a bit for each that is kept.
  TW_DEVICE uint32_t draw(const AttentionParams& p, const Sequence& s, int head, int i, int fours) const {
    const Philox4 r = philox(seed, static_cast<uint32_t>(fours), static_cast<uint32_t>(i),
                             static_cast<uint32_t>(s.b * p.heads + head), offset);
    uint32_t bits = 0;
    TW_UNROLL for (int c = 0; c < 4; ++c) bits |= uint32_t{r.lane[c] >= threshold} << c;
    return bits;
  }
};

}  // namespace tilewright::gpu
