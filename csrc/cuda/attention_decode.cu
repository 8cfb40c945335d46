#include "attention_decode.h"
#include "attention_launch.h"
#include "attention_pairs.h"

namespace tilewright::gpu {
namespace {

// Each warp takes tiles of 16 keys of its own, in stages of its own, and waits for no other until the end. Reading them takes
// longer than whatever happens to scores, so that calls with options and without have one kernel.
template <class T, int kWidth>
struct Sizes {
  static constexpr int kRowBytes = kWidth * int{sizeof(T)};
  static constexpr int kWarps = kRowBytes <= 256 ? 4 : 2, kThreads = kWarps * kWarpSize;
  static constexpr int kKeys = 16;
  static constexpr int kStages = kRowBytes <= 128 ? 4 : kRowBytes <= 512 ? 2 : 1;
  static constexpr int kQueries = kDecodeRows * kRowBytes;
  static constexpr int kResults = kWarps * kDecodeRows * (kWidth + 2) * int{sizeof(float)};
  static constexpr int kTiles = kWarps * kStages * 2 * kKeys * kRowBytes;
  static constexpr int kShared = kQueries + (kTiles > kResults ? kTiles : kResults);
  static_assert(kShared <= 96 * 1024);
};

struct DecodeLaunch {
  AttentionLaunch l;
  int splits = 1;
};

// What this block has: up to kDecodeRows rows from `first` on, of the heads of a group and their queries; and a part, a
// multiple of 16, of the keys that any of the queries sees.
struct DecodeBlock {
  Sequence s;
  int kv_head, group, seqlen_q, first, rows;
  KeyRange range;

  TW_DEVICE explicit DecodeBlock(const DecodeLaunch& d) {
    const AttentionParams& p = d.l.call;
    group = group_of(p), seqlen_q = static_cast<int>(p.seqlen_q), rows = group * seqlen_q;
    const int blocks = (rows + kDecodeRows - 1) / kDecodeRows, plane = block_x() / blocks;
    first = block_x() % blocks * kDecodeRows;
    kv_head = plane % static_cast<int>(p.heads_kv);
    s = find_sequence(p, plane / static_cast<int>(p.heads_kv));
    range = find_keys(p, s, 0, seqlen_q - 1);
    const int part = (range.hi - range.lo + d.splits * 16 - 1) / (d.splits * 16) * 16;
    range.lo = range.lo + block_y() * part < range.hi ? range.lo + block_y() * part : range.hi;
    range.hi = range.lo + part < range.hi ? range.lo + part : range.hi;
  }
  TW_DEVICE int head_of(int row) const { return kv_head * group + row / seqlen_q; }
  TW_DEVICE int query_of(int row) const { return row % seqlen_q; }
};

// By a warp, a row's result, or its part of it for attention_merge. value_of(n, c): of column c, the lane's n-th.
template <class T, int kWidth, class ValueOf>
TW_DEVICE void write_row(const DecodeLaunch& d, const Sequence& s, const Query& q, const RowState& state,
                         ValueOf value_of) {
  const AttentionParams& p = d.l.call;
  const int64_t row = (s.b * p.heads + q.head) * p.seqlen_q + q.i;
  const Global<float> part = global<float>(p.workspace) + (row * d.splits + block_y()) * part_floats(p);
  const Global<T> to = find_rows<T>(p.out, s, q.head, 0)(q.i);
  RowEnd end{};
  if (d.splits > 1) {
    if (lane_index() == 0) part.store(0, state.top), part.store(1, state.sum);
  } else {
    end = end_row<T>(p, state, q.head, 1.0f);
    if (lane_index() == 0) store_statistics(p, s, q, end);
  }
  TW_UNROLL for (int n = 0; n < kWidth / kWarpSize; ++n) {
    const int c = lane_index() + kWarpSize * n;
    if (c >= p.head_dim_v) break;
    if (d.splits > 1)
      part.store(2 + c, value_of(n, c));
    else
      to.store(c, narrow<T>(share(end.scale, value_of(n, c))));
  }
}

template <class T, int kWidth>
TW_APART void write_by_pairs(const DecodeLaunch& d, int row) {
  const DecodeBlock block(d);
  float sums[kLaneColumns];
  const Query q = Query::of(d.l.call, block.s, block.head_of(row), block.query_of(row));
  const RowState whole = sum_row<T, true>(d.l.call, block.s, q, block.range.lo, block.range.hi, sums);
  write_row<T, kWidth>(d, block.s, q, whole, [&](int n, int) { return sums[n]; });
}

// Two blocks: shared memory has room for three at most, and without a number the compiler makes room for more, in local memory.
template <class T, int kWidth>
TW_KERNEL_OF_BLOCKS((Sizes<T, kWidth>::kThreads), 2)
attention_decode_kernel(TW_KERNEL_ARGUMENT DecodeLaunch d) {
  using S = Sizes<T, kWidth>;
  using Matrix = Tile<T, kWidth>;
  constexpr int kKeys = S::kKeys, kStages = S::kStages;
  const AttentionParams& p = d.l.call;
  const bool wide = d.l.wide;
  const DecodeBlock block(d);
  const Sequence& s = block.s;
  const KeyRange& range = block.range;
  const int kv_head = block.kv_head, first = block.first, rows = block.rows, seqlen_q = block.seqlen_q;

  const int lane = lane_index(), warp = warp_index();
  const auto memory = shared_memory<T>();
  const auto mine = memory + (kDecodeRows + warp * kStages * 2 * kKeys) * kWidth;
  const Matrix q_tile{memory};
  const auto k_tile = [&](int stage) { return Matrix{mine + 2 * stage * kKeys * kWidth}; };
  const auto v_tile = [&](int stage) { return Matrix{mine + (2 * stage + 1) * kKeys * kWidth}; };
  const int head_dim = static_cast<int>(p.head_dim), head_dim_v = static_cast<int>(p.head_dim_v);
  const auto k = find_key_rows<const T>(p, p.k, s, kv_head), v = find_key_rows<const T>(p, p.v, s, kv_head);
  const auto start_of = [&](int tile) { return range.lo + (tile * S::kWarps + warp) * kKeys; };
  const auto copy_keys = [&](int tile) {
    if (start_of(tile) < range.hi) {
      k_tile(tile % kStages).copy(kKeys, k, start_of(tile), range.hi, head_dim, wide, lane, kWarpSize);
      v_tile(tile % kStages).copy(kKeys, v, start_of(tile), range.hi, head_dim_v, wide, lane, kWarpSize);
    }
    commit_copies();
  };
  q_tile.copy(
      kDecodeRows,
      [&](int64_t row) {
        const int r = static_cast<int>(row);
        return find_rows<const T>(p.q, s, block.head_of(r), 0)(block.query_of(r));
      },
      first, rows, head_dim, wide);
  commit_copies();
  TW_UNROLL_BY(1) for (int tile = 0; tile < kStages - 1; ++tile) copy_keys(tile);

  const Dropout dropout = Dropout::of(p);
  Query q[2];
  TW_UNROLL for (int h = 0; h < 2; ++h) {
    const int row = first + lane / 4 + 8 * h;
    q[h] = row < rows ? Query::of(p, s, block.head_of(row), block.query_of(row)) : Query{seqlen_q, 0, 0.0f};
  }
  wait_for_copies<kStages - 1>();
  sync_block();
  float out[kWidth / 8][4] = {};
  RowState state[2];
  for (int tile = 0; start_of(tile) < range.hi; ++tile) {
    copy_keys(tile + kStages - 1);
    wait_for_copies<kStages - 1>();
    sync_warp();
    const int start = start_of(tile);
    float x[kKeys / 8][4] = {};
    multiply_rows(x, q_tile, 0, k_tile(tile % kStages));
    tiles_to_logits<T, true>(x, p, s, q, start,
                             start < range.lo_all || start + kKeys > range.hi_all || start + kKeys > range.hi);
    to_weights<T>(x, state, out, 1.0f);
    if (dropout.on) drop(x, p, s, dropout, q, start);
    multiply_scores(out, x, v_tile(tile % kStages));
    sync_warp();  // the next copies go where this tile has been read
  }

  // What each warp found lies side by side, then all threads merge it.
  wait_for_copies<0>();
  sync_block();
  const auto results = shared_memory<float>(S::kQueries);
  const auto result = [&](int w, int row) { return results + (w * kDecodeRows + row) * (kWidth + 2); };
  TW_UNROLL for (int h = 0; h < 2; ++h) {
    const auto at = result(warp, lane / 4 + 8 * h);
    const float sum = sum_of_quad(state[h].sum);
    if (lane % 4 == 0) at.store(0, state[h].top), at.store(1, sum);
    TW_UNROLL for (int c = 0; c < kWidth / 8; ++c) TW_UNROLL for (int e = 0; e < 2; ++e)
        at.store(2 + 8 * c + 2 * (lane % 4) + e, out[c][2 * h + e]);
  }
  sync_block();
  for (int r = warp; r < kDecodeRows && first + r < rows; r += S::kWarps) {
    const Query one{block.query_of(first + r), block.head_of(first + r)};
    RowState whole;
    for (int w = 0; w < S::kWarps; ++w) whole.top = max_of(whole.top, result(w, r).load(0));
    float rescale[S::kWarps];
    TW_UNROLL for (int w = 0; w < S::kWarps; ++w) {
      rescale[w] = weight(result(w, r).load(0), finite(whole.top), 1.0f);
      whole.sum += result(w, r).load(1) * rescale[w];
    }
    const auto weighted = [&](int column) {
      float sum = 0.0f;
      TW_UNROLL for (int w = 0; w < S::kWarps; ++w) sum += result(w, r).load(2 + column) * rescale[w];
      return sum;
    };
    float seen = 0.0f;
    write_row<T, kWidth>(d, s, one, whole, [&](int, int c) {
      const float x = weighted(c);
      seen += x - x;
      return x;
    });
    if (!may_exclude(p) || all_of_warp(seen == 0.0f)) continue;
    sync_warp();
    write_by_pairs<T, kWidth>(d, first + r);
  }
}

// A warp for each row: block_x counts (B, H, Sq).
template <class T>
TW_KERNEL(kWarpSize)
attention_merge_kernel(TW_KERNEL_ARGUMENT DecodeLaunch d) {
  const AttentionParams& p = d.l.call;
  const int plane = block_x() / static_cast<int>(p.seqlen_q);
  const Query q{block_x() % static_cast<int>(p.seqlen_q), plane % static_cast<int>(p.heads)};
  const Sequence s = find_sequence(p, plane / static_cast<int>(p.heads));
  const Global<const float> parts =
      global<float>(static_cast<const void*>(p.workspace)) + int64_t{block_x()} * d.splits * part_floats(p);
  RowState whole;
  for (int i = 0; i < d.splits; ++i) whole.top = max_of(whole.top, parts.load(i * part_floats(p)));
  const auto rescale = [&](int i) { return weight(parts.load(i * part_floats(p)), finite(whole.top), 1.0f); };
  for (int i = 0; i < d.splits; ++i) whole.sum += parts.load(i * part_floats(p) + 1) * rescale(i);
  const RowEnd end = end_row<T>(p, whole, q.head, 1.0f);
  if (thread_index() == 0) store_statistics(p, s, q, end);
  const Global<T> out = find_rows<T>(p.out, s, q.head, 0)(q.i);
  for (int c = thread_index(); c < p.head_dim_v; c += kWarpSize) {
    float sum = 0.0f;
    for (int i = 0; i < d.splits; ++i) sum += share(rescale(i), parts.load(i * part_floats(p) + 2 + c));
    out.store(c, narrow<T>(share(end.scale, sum)));
  }
}

struct Decode {
  template <class T, int kWidth, bool>
  static int run(const AttentionParams& p, Stream stream) {
    using S = Sizes<T, kWidth>;
    const DecodeLaunch d{AttentionLaunch::of<T>(p), decode_splits(p)};
    const int64_t blocks = (decode_rows(p) + kDecodeRows - 1) / kDecodeRows * p.batch * p.heads_kv;
    const auto decode = [&](Stream s) {
      return launch<attention_decode_kernel<T, kWidth>>({blocks, d.splits}, S::kThreads, S::kShared, s, d);
    };
    if (d.splits == 1) return decode(stream);
    return launch_all(stream, [&](Stream s) {
      if (const int error = decode(s)) return error;
      return launch<attention_merge_kernel<T>>({p.batch * p.heads * p.seqlen_q}, kWarpSize, 0, s, d);
    });
  }
};

}  // namespace

int attention_decode(const AttentionParams& p, Stream stream) { return launch_instance<Decode>(p, stream); }

}  // namespace tilewright::gpu
