// The gradient of a float mask: the sum of the gradients of the logits that an element was added to, by one block, in a
// fixed order.
#include "attention_gradient.h"
#include "attention_launch.h"

namespace tilewright::gpu {
namespace {

// A block has a tile of the mask, 16 rows to a warp. Head dims are taken kWidth at a time, so one instance serves all of
// them; the operands lie in shared memory once: they are not read ahead.
constexpr int kRows = 64, kKeys = 64, kWidth = 64, kThreads = 2 * kRows;
template <class T>
constexpr int kShared = 2 * (kRows + kKeys) * kWidth * int{sizeof(T)};

// Of the mask: how many of each it has, 1 where it is broadcast.
struct MaskSizes {
  int batch, heads, rows, keys;
  TW_HOST_DEVICE explicit MaskSizes(const AttentionParams& p)
      : batch(size(p.dmask.stride[0], p.batch)),
        heads(size(p.dmask.stride[1], p.heads)),
        rows(size(p.dmask.stride[2], p.seqlen_q)),
        keys(size(p.dmask.stride[3], p.seqlen_k)) {}
  TW_HOST_DEVICE static int size(int64_t stride, int64_t whole) { return stride == 0 ? 1 : static_cast<int>(whole); }

  // block_x counts (batch, heads, row tiles, key tiles): planes alone may be more than a grid has along y or z.
  TW_HOST_DEVICE int row_tiles() const { return (rows + kRows - 1) / kRows; }
  TW_HOST_DEVICE int key_tiles() const { return (keys + kKeys - 1) / kKeys; }
  int64_t blocks() const { return int64_t{batch} * heads * row_tiles() * key_tiles(); }
};

struct Span {
  int begin, end;
};

template <class T>
TW_KERNEL(kThreads)
attention_mask_gradient_kernel(TW_KERNEL_ARGUMENT AttentionLaunch l) {
  using Matrix = Tile<T, kWidth>;
  const AttentionParams& p = l.call;
  const MaskSizes mask(p);
  const auto memory = shared_memory<T>();
  const Matrix q_tile{memory}, dout_tile{memory + kRows * kWidth}, k_tile{memory + 2 * kRows * kWidth},
      v_tile{memory + (2 * kRows + kKeys) * kWidth};
  const int head_dim = static_cast<int>(p.head_dim), head_dim_v = static_cast<int>(p.head_dim_v);
  const int lane = lane_index(), warp_row = 16 * warp_index();
  const int key_tile = block_x() % mask.key_tiles(), row = block_x() / mask.key_tiles();
  const int row_tile = row % mask.row_tiles(), plane = row / mask.row_tiles();
  // What is summed: one or all sequences and heads; tiles from the mask's own on, or all.
  const int mask_b = plane / mask.heads, mask_head = plane % mask.heads;
  const Span batch = mask.batch == 1 ? Span{0, static_cast<int>(p.batch)} : Span{mask_b, mask_b + 1};
  const Span heads = mask.heads == 1 ? Span{0, static_cast<int>(p.heads)} : Span{mask_head, mask_head + 1};
  const bool all_rows = mask.rows == 1, all_keys = mask.keys == 1;

  const float unit = logit_unit<true>(p);
  const Dropout dropout = Dropout::of(p);
  float sum[kKeys / 8][4] = {};
  double of_row[2] = {};  // with all_keys: the gradients of a row nearly cancel
  for (int b = batch.begin; b < batch.end; ++b) {
    const Sequence s = find_sequence(p, b);
    const Span rows =
        all_rows ? Span{0, s.seqlen_q} : Span{row_tile * kRows, clamp(row_tile * kRows + kRows, 0, s.seqlen_q)};
    const Span keys =
        all_keys ? Span{0, s.seqlen_k} : Span{key_tile * kKeys, clamp(key_tile * kKeys + kKeys, 0, s.seqlen_k)};
    for (int head = heads.begin; head < heads.end; ++head)
      for (int first = rows.begin; first < rows.end; first += kRows) {
        const KeyRange range = find_keys(p, s, first, (first + kRows < s.seqlen_q ? first + kRows : s.seqlen_q) - 1);
        for (int start = keys.begin; start < keys.end; start += kKeys) {
          if (start + kKeys <= range.lo || start >= range.hi) continue;
          const int kv_head = head / group_of(p);
          float x[kKeys / 8][4] = {}, dx[kKeys / 8][4] = {};
          for (int column = 0; column < head_dim || column < head_dim_v; column += kWidth) {
            const auto from = [&](auto row) { return [=](int64_t i) { return row(i) + column; }; };
            const auto q_rows = from(find_rows<const T>(p.q, s, head, s.first_q));
            const auto dout_rows = from(find_rows<const T>(p.dout, s, head, s.first_q));
            const auto k_rows = from(find_key_rows<const T>(p, p.k, s, kv_head));
            const auto v_rows = from(find_key_rows<const T>(p, p.v, s, kv_head));
            sync_block();  // the last ones have been read
            q_tile.copy(kRows, q_rows, first, s.seqlen_q, head_dim - column, l.wide);
            dout_tile.copy(kRows, dout_rows, first, s.seqlen_q, head_dim_v - column, l.wide);
            k_tile.copy(kKeys, k_rows, start, s.seqlen_k, head_dim - column, l.wide);
            v_tile.copy(kKeys, v_rows, start, s.seqlen_k, head_dim_v - column, l.wide);
            commit_copies();
            wait_for_copies<0>();
            sync_block();
            multiply_rows(x, q_tile, warp_row, k_tile);
            multiply_rows(dx, dout_tile, warp_row, v_tile);
          }
          Query q[2];
          RowTerms row[2];
          TW_UNROLL for (int h = 0; h < 2; ++h) {
            const int i = first + warp_row + lane / 4 + 8 * h;
            q[h] = Query::of(p, s, head, i);
            row[h] = load_terms(p, s, head, i);
          }
          const uint32_t kept = dropout.on ? dropout.kept<kKeys / 8>(p, s, q, start) : ~0u;
          to_gradients<T, true>(
              x, dx, p, s, [&](int, int e) -> const Query& { return q[e / 2]; },
              [&](int n, int e) { return start + 8 * n + 2 * (lane % 4) + e % 2; },
              [&](int, int e) { return row[e / 2]; }, kept, dropout.scale, unit, true,
              [&](int n, int e, const Gradient& g) {
                if (all_keys)
                  of_row[e / 2] += double{g.logit};
                else
                  sum[n][e] += g.logit;
              });
        }
      }
  }

  if (all_keys)  // into the row's first column
    TW_UNROLL for (int h = 0; h < 2; ++h) sum[0][2 * h] = sum_of_quad(static_cast<float>(of_row[h]));
  const auto parts = shared_memory<float>();  // of each warp, a float for each key
  if (all_rows) {
    sync_block();
    TW_UNROLL for (int n = 0; n < kKeys / 8; ++n) TW_UNROLL for (int c = 0; c < 2; ++c) {
      float of_key = sum[n][c] + sum[n][2 + c];
      TW_UNROLL for (int step = 4; step < kWarpSize; step *= 2) of_key += shuffle_xor(of_key, step);
      if (lane < 4) parts.store(warp_index() * kKeys + 8 * n + 2 * lane + c, of_key);
    }
    sync_block();
  }
  const Global<float> out = global<float>(p.dmask.data) + (mask_b * p.dmask.stride[0] + mask_head * p.dmask.stride[1]);
  if (all_rows) {
    for (int c = thread_index(); c < kKeys; c += block_threads()) {
      float of_key = 0.0f;
      for (int w = 0; w < kRows / 16; ++w) of_key += parts.load(w * kKeys + c);
      if (key_tile * kKeys + c < mask.keys) out.store((key_tile * kKeys + c) * p.dmask.stride[3], of_key);
    }
    return;
  }
  TW_UNROLL for (int n = 0; n < kKeys / 8; ++n) TW_UNROLL for (int e = 0; e < 4; ++e) {
    const int i = row_tile * kRows + warp_row + lane / 4 + 8 * (e / 2);
    const int j = key_tile * kKeys + 8 * n + 2 * (lane % 4) + e % 2;
    if (i < mask.rows && j < mask.keys) out.store(i * p.dmask.stride[2] + j * p.dmask.stride[3], sum[n][e]);
  }
}

struct MaskGradient {
  template <class T, int, bool>
  static int run(const AttentionParams& p, Stream stream) {
    return launch<attention_mask_gradient_kernel<T>>({MaskSizes(p).blocks()}, kThreads, kShared<T>, stream,
                                                     AttentionLaunch::of<T>(p));
  }
};

}  // namespace

int attention_mask_gradient(const AttentionParams& p, Stream stream) {
  return launch_instance<MaskGradient>(p, stream);
}

}  // namespace tilewright::gpu
