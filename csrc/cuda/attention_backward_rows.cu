// Attention backward, query by query: delta, and dQ. A block has the rows of a forward block, and goes over the same keys.
#include "attention_launch.h"
#include "attention_pairs.h"

namespace tilewright::gpu {
namespace {

// delta comes from the rounded out. Where one key has nearly all the weight, dout . v less delta is mostly rounding; so is
// the sum over all keys that a mask's gradient may take; and in dQ the error is the keys' mean times delta's, which stands
// out in a narrow head, whose weights lean on each of its dims. There delta is taken as the sum of weight times dout . v,
// whose rounding is the same, in a pass of its own.
constexpr int kFewKeys = 64, kNarrow = 8;
TW_DEVICE bool wants_exact_delta(const AttentionParams& p, const KeyRange& range) {
  const bool mask_over_keys = p.dmask.data != nullptr && p.dmask.stride[3] == 0;
  return range.hi - range.lo <= kFewKeys || p.head_dim <= kNarrow || mask_over_keys;
}

// As in attention_forward.cu, with dout beside the queries.
template <class T, int kWidth>
struct Sizes {
  static constexpr int kRowBytes = kWidth * int{sizeof(T)};
  static constexpr int kRows = kRowBytes <= 512 ? 64 : 32, kThreads = 2 * kRows;
  static constexpr int kKeys = kRowBytes <= 256 ? 64 : 16, kStages = kRowBytes <= 512 ? 2 : 1;
  static constexpr int kShared = (2 * kRows + 2 * kStages * kKeys) * kRowBytes;
  static_assert(kShared <= 96 * 1024);
};

// -dlse of a row.
TW_DEVICE float minus_dlse(const AttentionParams& p, const Sequence& s, int head, int i) {
  const View4& v = p.dlse;
  if (v.data == nullptr) return 0.0f;
  return -global<float>(static_cast<const void*>(v.data))
              .load(s.b * v.stride[0] + head * v.stride[1] + (s.first_q + i) * v.stride[2]);
}

// Adds the sum of out * dout to delta, for the 16 rows of a warp from row `first` on, in the lanes that have them.
template <class T, int kWidth>
TW_DEVICE void add_products(const AttentionParams& p, const Sequence& s, int head, int first,
                            const Tile<T, kWidth>& dout, int warp_row, RowTerms (&row)[2]) {
  const int lane = lane_index();
  const Rows<const T> out = find_rows<const T>(p.out, s, head, s.first_q);
  for (int r = 0; r < 16 && first + r < s.seqlen_q; ++r) {
    float sum = 0.0f;
    for (int c = lane; c < p.head_dim_v; c += kWarpSize)
      sum += widen(out(first + r).load(c)) * widen(dout.element(warp_row + r, c));
    TW_UNROLL for (int step = kWarpSize / 2; step > 0; step /= 2) sum += shuffle_xor(sum, step);
    // Without a key out is 0, whatever dout is.
    TW_UNROLL for (int h = 0; h < 2; ++h) if (lane / 4 + 8 * h == r && row[h].top != kInfinity) row[h].delta += sum;
  }
}

// Blocks as in attention_forward.cu.
template <class T, int kWidth, bool kOptions>
TW_KERNEL_OF_BLOCKS((Sizes<T, kWidth>::kThreads), (sizeof(T) == 2 && kWidth == 64 && !kOptions ? 3 : 0))
attention_backward_rows_kernel(TW_KERNEL_ARGUMENT AttentionLaunch l) {
  using S = Sizes<T, kWidth>;
  using Matrix = Tile<T, kWidth>;
  constexpr int kRows = S::kRows, kKeys = S::kKeys, kStages = S::kStages;
  const AttentionParams& p = l.call;
  const int blocks = static_cast<int>((p.seqlen_q + kRows - 1) / kRows);
  const int block = blocks - 1 - block_x() % blocks, plane = block_x() / blocks;  // the longest first
  const int head = plane % static_cast<int>(p.heads);
  const int kv_head = head / group_of(p);
  const Sequence s = find_sequence(p, plane / static_cast<int>(p.heads));
  const int first = block * kRows;
  if (first >= s.seqlen_q) return;
  const int last = (first + kRows < s.seqlen_q ? first + kRows : s.seqlen_q) - 1;
  const KeyRange range = find_keys(p, s, first, last);
  const int tiles = (range.hi - range.lo + kKeys - 1) / kKeys;
  const bool exact = tiles > 0 && wants_exact_delta(p, range);
  const int first_of_dq = exact ? tiles : 0, steps = first_of_dq + (p.dq.data != nullptr ? tiles : 0);
  const auto start_of = [&](int step) { return range.lo + step % tiles * kKeys; };

  const auto memory = shared_memory<T>();
  const Matrix q_tile{memory}, dout_tile{memory + kRows * kWidth};
  const auto k_tile = [&](int stage) { return Matrix{memory + (2 * kRows + 2 * stage * kKeys) * kWidth}; };
  const auto v_tile = [&](int stage) { return Matrix{memory + (2 * kRows + (2 * stage + 1) * kKeys) * kWidth}; };
  const int head_dim = static_cast<int>(p.head_dim), head_dim_v = static_cast<int>(p.head_dim_v);
  const auto k = find_key_rows<const T>(p, p.k, s, kv_head), v = find_key_rows<const T>(p, p.v, s, kv_head);
  const auto copy_keys = [&](int start, int stage) {
    k_tile(stage).copy(kKeys, k, start, range.hi, head_dim, l.wide);
    v_tile(stage).copy(kKeys, v, start, range.hi, head_dim_v, l.wide);
  };
  dout_tile.copy(kRows, find_rows<const T>(p.dout, s, head, s.first_q), first, s.seqlen_q, head_dim_v, l.wide);
  commit_copies();
  q_tile.copy(kRows, find_rows<const T>(p.q, s, head, s.first_q), first, s.seqlen_q, head_dim, l.wide);
  if (steps > 0) copy_keys(range.lo, 0);
  commit_copies();

  const int lane = lane_index(), warp_row = 16 * warp_index();
  const bool busy = first + warp_row < s.seqlen_q;  // a warp past the last row only copies
  const float unit = logit_unit<kOptions>(p);
  const Dropout dropout = kOptions ? Dropout::of(p) : Dropout{};
  Query q[2];
  RowTerms row[2];
  TW_UNROLL for (int h = 0; h < 2; ++h) {
    const int i = first + warp_row + lane / 4 + 8 * h;
    q[h] = Query::of(p, s, head, i);
    if (i >= s.seqlen_q) continue;
    row[h] = load_statistics(p, s, head, i);
    row[h].delta = minus_dlse(p, s, head, i);
  }
  wait_for_copies<1>();
  sync_block();
  if (!exact) add_products(p, s, head, first + warp_row, dout_tile, warp_row, row);

  float dq[kWidth / 8][4] = {}, delta[2] = {};
  for (int step = 0, stage = 0; step < steps; ++step, stage = (stage + 1) % kStages) {
    if (kStages > 1 && step + 1 < steps) copy_keys(start_of(step + 1), stage ^ 1);
    if (kStages > 1) commit_copies();
    wait_for_copies<kStages - 1>();
    sync_block();
    const int start = start_of(step);
    if (busy) {
      float x[kKeys / 8][4] = {}, dx[kKeys / 8][4] = {}, products[2] = {};
      multiply_rows(x, q_tile, warp_row, k_tile(stage));
      multiply_rows(dx, dout_tile, warp_row, v_tile(stage));
      const bool cut = start < range.lo_all || start + kKeys > range.hi_all;
      const uint32_t kept = dropout.on ? dropout.kept<kKeys / 8>(p, s, q, start) : ~0u;
      to_gradients<T, kOptions>(
          x, dx, p, s, [&](int, int e) -> const Query& { return q[e / 2]; },
          [&](int n, int e) { return start + 8 * n + 2 * (lane % 4) + e % 2; }, [&](int, int e) { return row[e / 2]; },
          kept, dropout.scale, unit, cut,
          [&](int n, int e, const Gradient& g) {
            products[e / 2] += g.product;
            dx[n][e] = g.score;
          });
      if (exact && step < tiles) {
        TW_UNROLL for (int h = 0; h < 2; ++h) delta[h] += products[h];
        if (step == tiles - 1) TW_UNROLL for (int h = 0; h < 2; ++h) row[h].delta += sum_of_quad(delta[h]);
      } else {
        multiply_scores(dq, dx, k_tile(stage));
      }
    }
    sync_block();  // the next copies go where this step has read
    if (kStages == 1 && step + 1 < steps) copy_keys(start_of(step + 1), 0);
    if (kStages == 1) commit_copies();
  }
  TW_UNROLL for (int h = 0; h < 2; ++h) if (lane % 4 == 0 && q[h].i < s.seqlen_q) delta_of(p, s, head)
      .store(q[h].i, row[h].delta);
  if (p.dq.data == nullptr) return;
  wait_for_copies<0>();
  sync_block();
  const bool done = stands(p, dq);
  const Matrix out{memory + warp_row * kWidth};  // in place of this warp's queries
  const float scale = static_cast<float>(p.scale);
  TW_UNROLL for (int c = 0; c < kWidth / 8; ++c) TW_UNROLL for (int h = 0; h < 2; ++h)
      out.store_pair(lane / 4 + 8 * h, 8 * c + 2 * (lane % 4), dq[c][2 * h] * scale, dq[c][2 * h + 1] * scale);
  sync_warp();
  out.write(16, find_rows<T>(p.dq, s, head, s.first_q), first + warp_row, s.seqlen_q, head_dim, l.wide_out, lane,
            kWarpSize);
  if (done) return;
  sync_warp();
  TW_UNROLL_BY(1) for (int i = first + warp_row; i < first + warp_row + 16 && i < s.seqlen_q; ++i) {
    float sums[kLaneColumns];
    sum_row_gradient<T, kOptions>(p, s, Query::of(p, s, head, i), range.lo, range.hi, sums);
    write_row(find_rows<T>(p.dq, s, head, s.first_q)(i), sums, scale, 0, head_dim);
  }
}

struct BackwardRows {
  template <class T, int kWidth, bool kOptions>
  static int run(const AttentionParams& p, Stream stream) {
    using S = Sizes<T, kWidth>;
    const int64_t blocks = (p.seqlen_q + S::kRows - 1) / S::kRows;
    return launch<attention_backward_rows_kernel<T, kWidth, kOptions>>({blocks * p.batch * p.heads}, S::kThreads,
                                                                       S::kShared, stream, AttentionLaunch::of<T>(p));
  }
};

}  // namespace

int attention_backward_rows(const AttentionParams& p, Stream stream) {
  return launch_instance<BackwardRows>(p, stream);
}

}  // namespace tilewright::gpu
