// Attention backward, key by key: dK and dV. A block has some keys of one key head, and goes over the queries that see them,
// head by head of its group: no two blocks add to the same gradient, so nothing depends on their order.
//
// Scores are computed transposed, rows being keys: as results of products they are then the left operands that the sums
// over queries need.
#include "attention_launch.h"
#include "attention_pairs.h"

namespace tilewright::gpu {
namespace {

// Keys of a block, 16 to a warp, and queries of a tile. dK and dV of 128 columns are as much as a thread's registers hold:
// of wider ones a block has a part, and computes all scores for it.
template <class T, int kWidth>
struct Sizes {
  static constexpr int kRowBytes = kWidth * int{sizeof(T)};
  static constexpr int kKeys = kRowBytes <= 512 ? 64 : 32, kThreads = 2 * kKeys;
  static constexpr int kQueries = kRowBytes <= 128 ? 64 : kRowBytes <= 256 ? 32 : 16;
  static constexpr int kStages = kRowBytes <= 512 ? 2 : 1;
  static constexpr int kPart = kWidth < 128 ? kWidth : 128, kParts = kWidth / kPart;
  static constexpr int kTiles = (2 * kKeys + 2 * kStages * kQueries) * kRowBytes;
  static constexpr int kShared = kTiles + kStages * kQueries * 3 * int{sizeof(float)};
  static_assert(kShared <= 99 * 1024);
};

// Blocks as in attention_forward.cu.
template <class T, int kWidth, bool kOptions>
TW_KERNEL_OF_BLOCKS((Sizes<T, kWidth>::kThreads), (sizeof(T) == 4 && kWidth == 64 ? 2 : 0))
attention_backward_keys_kernel(TW_KERNEL_ARGUMENT AttentionLaunch l) {
  using S = Sizes<T, kWidth>;
  using Matrix = Tile<T, kWidth>;
  constexpr int kKeys = S::kKeys, kQueries = S::kQueries, kStages = S::kStages;
  const AttentionParams& p = l.call;
  const int blocks = static_cast<int>((p.seqlen_k + kKeys - 1) / kKeys);
  const int block = block_x() % blocks, plane = block_x() / blocks;  // under a causal bound, the longest first
  const int part = block_y() * S::kPart;
  const int kv_head = plane % static_cast<int>(p.heads_kv), group = group_of(p);
  const Sequence s = find_sequence(p, plane / static_cast<int>(p.heads_kv));
  const int first = block * kKeys;
  if (first >= s.seqlen_k) return;
  const int last = (first + kKeys < s.seqlen_k ? first + kKeys : s.seqlen_k) - 1;
  const QueryRange range = find_queries(p, s, first, last);

  const auto memory = shared_memory<T>();
  const Matrix k_tile{memory}, v_tile{memory + kKeys * kWidth};
  const auto q_tile = [&](int stage) { return Matrix{memory + (2 * kKeys + 2 * stage * kQueries) * kWidth}; };
  const auto dout_tile = [&](int stage) { return Matrix{memory + (2 * kKeys + (2 * stage + 1) * kQueries) * kWidth}; };
  const auto terms = [&](int stage) { return shared_memory<float>(S::kTiles) + stage * kQueries * 3; };
  const int head_dim = static_cast<int>(p.head_dim), head_dim_v = static_cast<int>(p.head_dim_v);
  const auto copy_queries = [&](int head, int start, int stage) {
    q_tile(stage).copy(kQueries, find_rows<const T>(p.q, s, head, s.first_q), start, range.hi, head_dim, l.wide);
    dout_tile(stage).copy(kQueries, find_rows<const T>(p.dout, s, head, s.first_q), start, range.hi, head_dim_v,
                          l.wide);
    if (thread_index() < kQueries) {
      const RowTerms row = load_terms(p, s, head, start + thread_index());
      terms(stage).store(3 * thread_index(), row.top);
      terms(stage).store(3 * thread_index() + 1, row.inverse);
      terms(stage).store(3 * thread_index() + 2, row.delta);
    }
  };
  k_tile.copy(kKeys, find_key_rows<const T>(p, p.k, s, kv_head), first, s.seqlen_k, head_dim, l.wide);
  v_tile.copy(kKeys, find_key_rows<const T>(p, p.v, s, kv_head), first, s.seqlen_k, head_dim_v, l.wide);
  // Tiles of queries, of one head of the group after the other.
  const int tiles = (range.hi - range.lo + kQueries - 1) / kQueries, count = tiles * group;
  const auto head_of = [&](int tile) { return kv_head * group + tile / tiles; };
  const auto start_of = [&](int tile) { return range.lo + tile % tiles * kQueries; };
  if (count > 0) copy_queries(head_of(0), start_of(0), 0);
  commit_copies();

  const int lane = lane_index(), warp_row = 16 * warp_index();
  const bool busy = first + warp_row < s.seqlen_k;  // a warp past the last key only copies
  const float unit = logit_unit<kOptions>(p);
  const Dropout dropout = kOptions ? Dropout::of(p) : Dropout{};
  float dk[S::kPart / 8][4] = {}, dv[S::kPart / 8][4] = {};
  for (int tile = 0, stage = 0; tile < count; ++tile, stage = (stage + 1) % kStages) {
    if (kStages > 1 && tile + 1 < count) copy_queries(head_of(tile + 1), start_of(tile + 1), stage ^ 1);
    if (kStages > 1) commit_copies();
    wait_for_copies<kStages - 1>();
    sync_block();
    if (busy) {
      const int head = head_of(tile), start = start_of(tile);
      float x[kQueries / 8][4] = {}, dx[kQueries / 8][4] = {};
      // The scores and products of attention_backward_rows.cu, bit for bit: where a query sees one key they cancel.
      multiply_rows<true>(x, k_tile, warp_row, q_tile(stage));
      multiply_rows<true>(dx, v_tile, warp_row, dout_tile(stage));
      const bool cut = start < range.lo_all || start + kQueries > range.hi_all || last - first + 1 < kKeys;
      const int j = first + warp_row + lane / 4;  // this lane's keys: j and j + 8
      const auto column_of = [&](int n, int e) { return 8 * n + 2 * (lane % 4) + e % 2; };
      const uint32_t kept =
          dropout.on ? dropout.kept_transposed<kQueries / 8>(p, s, head, start + column_of(0, 0), first + warp_row)
                     : ~0u;
      const Query query = Query::of(p, s, head, 0);
      to_gradients<T, kOptions>(
          x, dx, p, s, [&](int n, int e) { return Query{start + column_of(n, e), head, query.slope}; },
          [&](int, int e) { return j + 8 * (e / 2); },
          [&](int n, int e) {
            const Shared<float> at = terms(stage) + 3 * column_of(n, e);
            return RowTerms{at.load(0), at.load(1), at.load(2)};
          },
          kept, dropout.scale, unit, cut,
          [&](int n, int e, const Gradient& g) { x[n][e] = g.weight, dx[n][e] = g.score; });
      multiply_scores(dv, x, dout_tile(stage), part);
      multiply_scores(dk, dx, q_tile(stage), part);
    }
    sync_block();  // the next copies go where this iteration has read
    if (kStages == 1 && tile + 1 < count) copy_queries(head_of(tile + 1), start_of(tile + 1), 0);
    if (kStages == 1) commit_copies();
  }

  wait_for_copies<0>();
  sync_block();
  const bool done = stands(p, dk) && stands(p, dv);
  const Tile<T, S::kPart> out{memory + warp_row * S::kPart};  // in place of the keys
  const auto write = [&](const float (&x)[S::kPart / 8][4], const View4& v, int width, float scale) {
    if (v.data == nullptr) return;
    TW_UNROLL for (int c = 0; c < S::kPart / 8; ++c) TW_UNROLL for (int h = 0; h < 2; ++h)
        out.store_pair(lane / 4 + 8 * h, 8 * c + 2 * (lane % 4), x[c][2 * h] * scale, x[c][2 * h + 1] * scale);
    sync_warp();
    const Rows<T> rows = find_rows<T>(v, s, kv_head, s.first_k);
    out.write(
        16, [&](int64_t row) { return rows(row) + part; }, first + warp_row, s.seqlen_k, width - part, l.wide_out, lane,
        kWarpSize);
    sync_warp();
  };
  const float scale = static_cast<float>(p.scale);
  write(dk, p.dk, head_dim, scale);
  write(dv, p.dv, head_dim_v, 1.0f);
  if (done) return;
  sync_warp();
  TW_UNROLL_BY(1) for (int j = first + warp_row; j < first + warp_row + 16 && j < s.seqlen_k; ++j) {
    constexpr int kColumns = S::kPart / kWarpSize;
    float sum_k[kColumns], sum_v[kColumns];
    sum_key_gradients<T, kOptions>(p, s, kv_head, j, range.lo, range.hi, part, sum_k, sum_v);
    const auto write_one = [&](const View4& v, const float (&x)[kColumns], float factor, int width) {
      if (v.data != nullptr) write_row(find_rows<T>(v, s, kv_head, s.first_k)(j), x, factor, part, width);
    };
    write_one(p.dk, sum_k, scale, head_dim);
    write_one(p.dv, sum_v, 1.0f, head_dim_v);
  }
}

struct BackwardKeys {
  template <class T, int kWidth, bool kOptions>
  static int run(const AttentionParams& p, Stream stream) {
    using S = Sizes<T, kWidth>;
    const int64_t blocks = (p.seqlen_k + S::kKeys - 1) / S::kKeys;
    const int parts = p.head_dim > S::kPart || p.head_dim_v > S::kPart ? S::kParts : 1;
    return launch<attention_backward_keys_kernel<T, kWidth, kOptions>>(
        {blocks * p.batch * p.heads_kv, parts}, S::kThreads, S::kShared, stream, AttentionLaunch::of<T>(p));
  }
};

}  // namespace

int attention_backward_keys(const AttentionParams& p, Stream stream) {
  return launch_instance<BackwardKeys>(p, stream);
}

}  // namespace tilewright::gpu
