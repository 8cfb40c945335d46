// Attention forward: FlashAttention's tiling (Dao et al. 2022, 2023) on mma.sync, for plain and packed sequences.
//
// A block of four warps has 64 query rows and goes over the keys that some of them see, tile by tile, with an online
// softmax. The next tile is copied while this one is worked on. Tiles outside of the causal bound and the window are not
// visited; tiles that neither cuts are worked on without comparisons.
#include "attention_decode.h"
#include "attention_launch.h"
#include "attention_pairs.h"

namespace tilewright::gpu {
namespace {

// Rows of a block and keys of a tile: what two stages of keys and values leave room for in 99 KB, which every chip since
// sm_80 has. A warp has 16 rows.
template <class T, int kWidth>
struct Sizes {
  static constexpr int kRowBytes = kWidth * int{sizeof(T)};
  static constexpr int kRows = kRowBytes <= 512 ? 64 : 32, kThreads = 2 * kRows;
  static constexpr int kKeys = kRowBytes <= 256 ? 64 : kRowBytes <= 512 ? 32 : 16;
  static constexpr int kShared = (kRows + 4 * kKeys) * kRowBytes;
  static_assert(kShared <= 96 * 1024);
};

// Blocks that the compiler makes room for: those that shared memory has, where it would choose more of them, and local memory,
// or fewer. 0: it chooses.
template <class T, int kWidth, bool kOptions>
constexpr int kBlocks = Sizes<T, kWidth>::kRowBytes == 256                ? 2
                        : Sizes<T, kWidth>::kRowBytes == 128 && !kOptions ? 4
                                                                          : 0;

// What this block has: rows [first, last] of a head.
template <int kRows>
struct Block {
  Sequence s;
  int head, first, last;

  TW_DEVICE explicit Block(const AttentionParams& p) {
    const int blocks = static_cast<int>((p.seqlen_q + kRows - 1) / kRows);
    // The last rows first: under a causal bound they take longest.
    const int block = blocks - 1 - block_x() % blocks, plane = block_x() / blocks;
    head = plane % static_cast<int>(p.heads);
    s = find_sequence(p, plane / static_cast<int>(p.heads));
    first = block * kRows;
    last = (first + kRows < s.seqlen_q ? first + kRows : s.seqlen_q) - 1;
  }
};

// This warp's rows, pair by pair.
template <class T, int kRows, bool kOptions>
TW_APART void write_by_pairs(const AttentionParams& p) {
  const Block<kRows> block(p);
  const KeyRange range = find_keys(p, block.s, block.first, block.last);
  const int first = block.first + 16 * warp_index();
  TW_UNROLL_BY(1) for (int i = first; i < first + 16 && i <= block.last; ++i) {
    float sums[kLaneColumns];
    const Query q = Query::of(p, block.s, block.head, i);
    const RowState whole = sum_row<T, kOptions>(p, block.s, q, range.lo, range.hi, sums);
    const RowEnd end = end_row<T>(p, whole, block.head, logit_unit<kOptions>(p));
    write_row(find_rows<T>(p.out, block.s, block.head, block.s.first_q)(i), sums, end.scale, 0,
              static_cast<int>(p.head_dim_v));
  }
}

template <class T, int kWidth, bool kOptions>
TW_KERNEL_OF_BLOCKS((Sizes<T, kWidth>::kThreads), (kBlocks<T, kWidth, kOptions>))
attention_forward_kernel(TW_KERNEL_ARGUMENT AttentionLaunch l) {
  using Matrix = Tile<T, kWidth>;
  constexpr int kRows = Sizes<T, kWidth>::kRows, kKeys = Sizes<T, kWidth>::kKeys;
  const AttentionParams& p = l.call;
  const Block<kRows> block(p);
  const Sequence& s = block.s;
  const int head = block.head, kv_head = head / group_of(p), first = block.first;
  if (first >= s.seqlen_q) return;
  const KeyRange range = find_keys(p, s, first, block.last);

  const auto memory = shared_memory<T>();
  const Matrix q_tile{memory};
  const auto k_tile = [&](int stage) { return Matrix{memory + (kRows + 2 * stage * kKeys) * kWidth}; };
  const auto v_tile = [&](int stage) { return Matrix{memory + (kRows + (2 * stage + 1) * kKeys) * kWidth}; };
  const int head_dim = static_cast<int>(p.head_dim), head_dim_v = static_cast<int>(p.head_dim_v);
  const auto k = find_key_rows<const T>(p, p.k, s, kv_head), v = find_key_rows<const T>(p, p.v, s, kv_head);
  const auto copy_keys = [&](int start, int stage) {
    k_tile(stage).copy(kKeys, k, start, range.hi, head_dim, l.wide);
    v_tile(stage).copy(kKeys, v, start, range.hi, head_dim_v, l.wide);
  };
  q_tile.copy(kRows, find_rows<const T>(p.q, s, head, s.first_q), first, s.seqlen_q, head_dim, l.wide);
  if (range.lo < range.hi) copy_keys(range.lo, 0);
  commit_copies();

  const int lane = lane_index(), warp_row = 16 * warp_index();
  Query q[2];
  TW_UNROLL for (int h = 0; h < 2; ++h) q[h] = Query::of(p, s, head, first + warp_row + lane / 4 + 8 * h);
  const bool busy = first + warp_row < s.seqlen_q;  // a warp past the last row only copies
  const float unit = logit_unit<kOptions>(p);
  const Dropout dropout = kOptions ? Dropout::of(p) : Dropout{};
  float out[kWidth / 8][4] = {};
  RowState state[2];
  for (int start = range.lo, stage = 0; start < range.hi; start += kKeys, stage ^= 1) {
    if (start + kKeys < range.hi) copy_keys(start + kKeys, stage ^ 1);
    commit_copies();
    wait_for_copies<1>();
    sync_block();
    if (busy) {
      float x[kKeys / 8][4] = {};
      multiply_rows(x, q_tile, warp_row, k_tile(stage));
      tiles_to_logits<T, kOptions>(x, p, s, q, start, start < range.lo_all || start + kKeys > range.hi_all);
      to_weights<T>(x, state, out, unit);
      if (kOptions && dropout.on) drop(x, p, s, dropout, q, start);
      multiply_scores(out, x, v_tile(stage));
    }
    sync_block();  // the next iteration's copies go where this one has read
  }

  wait_for_copies<0>();
  sync_block();
  const Matrix out_tile{memory + warp_row * kWidth};  // in place of this warp's rows of q
  TW_UNROLL for (int h = 0; h < 2; ++h) {
    RowState whole = state[h];
    whole.sum = sum_of_quad(whole.sum);
    const RowEnd end = end_row<T>(p, whole, head, unit);
    TW_UNROLL for (int c = 0; c < kWidth / 8; ++c) out_tile.store_pair(
        lane / 4 + 8 * h, 8 * c + 2 * (lane % 4), out[c][2 * h] * end.scale, out[c][2 * h + 1] * end.scale);
    if (lane % 4 == 0 && q[h].i < s.seqlen_q) store_statistics(p, s, q[h], end);
  }
  sync_warp();
  out_tile.write(16, find_rows<T>(p.out, s, head, s.first_q), first + warp_row, s.seqlen_q, head_dim_v, l.wide_out,
                 lane, kWarpSize);
  if (stands(p, out)) return;
  sync_warp();
  write_by_pairs<T, kRows, kOptions>(p);
}

struct Forward {
  template <class T, int kWidth, bool kOptions>
  static int run(const AttentionParams& p, Stream stream) {
    using S = Sizes<T, kWidth>;
    const int64_t blocks = (p.seqlen_q + S::kRows - 1) / S::kRows;
    return launch<attention_forward_kernel<T, kWidth, kOptions>>({blocks * p.batch * p.heads}, S::kThreads, S::kShared,
                                                                 stream, AttentionLaunch::of<T>(p));
  }
};

}  // namespace

int64_t attention_forward_workspace(const AttentionParams& call) {
  const AttentionParams p = bounded(call);
  return is_decode(p) ? decode_bytes(p) : 0;
}

int attention_forward(const AttentionParams& call, Stream stream) {
  const AttentionParams p = bounded(call);
  if (const int error = check_sizes(p)) return error;
  return is_decode(p) ? attention_decode(p, stream) : launch_instance<Forward>(p, stream);
}

}  // namespace tilewright::gpu
