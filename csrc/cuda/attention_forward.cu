// Attention forward: FlashAttention's tiling (Dao et al. 2022, 2023) on mma.sync, for plain and packed sequences.
//
// A block of four warps has 64 query rows and goes over the keys that some of them see, tile by tile, with an online
// softmax. The next tile is copied while this one is worked on. Tiles outside of the causal bound and the window are not
// visited; tiles that neither cuts are worked on without comparisons.
#include "attention.h"
#include "attention_call.h"
#include "attention_tile.h"
#include "softmax.h"

namespace tilewright::gpu {
namespace {

constexpr int kRows = 64, kThreads = 128;
// Of a tile: what two stages of keys and values leave room for in 99 KiB.
template <int kWidth>
constexpr int kKeysOf = kWidth <= 128 ? 64 : 32;

template <class T>
TW_DEVICE Global<const T> rows_of(const View4& v, int64_t batch, int64_t head) {
  return global<T>(static_cast<const void*>(v.data)) + (batch * v.stride[0] + head * v.stride[1]);
}

struct RowState {
  float top = -kInfinity, sum = 0.0f;
};

// kOptions: a mask, softcap, ALiBi or dropout. Row maxima are then natural logarithms; else they are in units of log 2,
// so that a weight is one multiply-add and one exp2.
template <class T, int kWidth, bool kOptions, bool kWide>
TW_KERNEL(kThreads)
attention_forward_kernel(TW_KERNEL_ARGUMENT AttentionParams p) {
  using F = Fragments<T, kWidth>;
  constexpr int kKeys = kKeysOf<kWidth>;
  constexpr int kTile = kKeys * kWidth;
  const int blocks = static_cast<int>((p.seqlen_q + kRows - 1) / kRows);
  // The last rows first: under a causal bound they take longest.
  const int block = blocks - 1 - block_x() % blocks, plane = block_x() / blocks;
  const int b = plane / static_cast<int>(p.heads), head = plane % static_cast<int>(p.heads);
  const int64_t kv_head = head / (p.heads / p.heads_kv);
  const Sequence s = find_sequence(p, b);
  const int first = block * kRows;
  if (first >= s.seqlen_q) return;
  const int last = (first + kRows < s.seqlen_q ? first + kRows : s.seqlen_q) - 1;
  const KeyRange range = find_keys(p, s, first, last);

  const auto memory = shared_memory<T>();
  const Tile<T, kWidth> q_tile{memory};
  const auto q = rows_of<T>(p.q, s.batch, head) + s.first_q * p.q.stride[2];
  const auto k = rows_of<T>(p.k, s.batch, kv_head) + s.first_k * p.k.stride[2];
  const auto v = rows_of<T>(p.v, s.batch, kv_head) + s.first_k * p.v.stride[2];
  const auto k_tile = [&](int stage) { return Tile<T, kWidth>{memory + (kRows * kWidth + 2 * stage * kTile)}; };
  const auto v_tile = [&](int stage) { return Tile<T, kWidth>{memory + (kRows * kWidth + (2 * stage + 1) * kTile)}; };
  const auto copy_keys = [&](int start, int stage) {
    k_tile(stage).template copy<kWide>(
        kKeys, [&](int64_t j) { return k + j * p.k.stride[2]; }, start, range.hi, static_cast<int>(p.head_dim));
    v_tile(stage).template copy<kWide>(
        kKeys, [&](int64_t j) { return v + j * p.v.stride[2]; }, start, range.hi, static_cast<int>(p.head_dim_v));
  };

  q_tile.template copy<kWide>(
      kRows, [&](int64_t i) { return q + i * p.q.stride[2]; }, first, s.seqlen_q, static_cast<int>(p.head_dim));
  if (range.lo < range.hi) copy_keys(range.lo, 0);
  commit_copies();

  const int lane = lane_index(), warp_row = 16 * warp_index();
  const int i0 = first + warp_row + lane / 4;  // this lane's rows: i0 and i0 + 8
  const Options options = kOptions ? Options::of(p, b, head) : Options{};
  const float factor = static_cast<float>(p.scale) * kLog2E;
  uint64_t seed = 0;
  uint32_t offset = 0, threshold = 0;
  if (kOptions && p.rng != nullptr) {
    const Global<const int64_t> rng{p.rng};
    seed = static_cast<uint64_t>(rng.load(0)), offset = static_cast<uint32_t>(rng.load(1));
    threshold = dropout_threshold(p.dropout_p);
  }

  float o[kWidth / 8][4] = {};
  RowState state[2];
  for (int start = range.lo, stage = 0; start < range.hi; start += kKeys, stage ^= 1) {
    if (start + kKeys < range.hi) copy_keys(start + kKeys, stage ^ 1);
    commit_copies();
    wait_for_copies<1>();
    sync_block();

    float x[kKeys / 8][4] = {};
    TW_UNROLL for (int d = 0; d < kWidth; d += F::kDepth) {
      const auto a = F::left(q_tile, warp_row, d);
      TW_UNROLL for (int n = 0; n < kKeys / 8; n += 2) {
        typename F::B b0, b1;
        F::right_of_rows(k_tile(stage), 8 * n, d, b0, b1);
        F::multiply(x[n], a, b0);
        F::multiply(x[n + 1], a, b1);
      }
    }
    const bool cut = start < range.lo_all || start + kKeys > range.hi_all;
    TW_UNROLL for (int n = 0; n < kKeys / 8; ++n) TW_UNROLL for (int e = 0; e < 4; ++e) {
      const int i = i0 + 8 * (e / 2), j = start + 8 * n + 2 * (lane % 4) + e % 2;
      if (cut && !sees(p, s, i, j)) {
        x[n][e] = -kInfinity;
      } else if constexpr (kOptions) {
        if (i < s.seqlen_q) x[n][e] = logit<T>(p, options, b, head, i, j, s.shift, x[n][e]);
      }
    }

    float base[2];
    TW_UNROLL for (int h = 0; h < 2; ++h) {
      float top = -kInfinity;
      TW_UNROLL for (int n = 0; n < kKeys / 8; ++n) TW_UNROLL for (int e = 2 * h; e < 2 * h + 2; ++e) top =
          top > x[n][e] ? top : x[n][e];
      top = max_of(top, shuffle_xor(top, 1));
      top = max_of(top, shuffle_xor(top, 2));
      if constexpr (!kOptions) top = scaled_maximum(top, factor);
      const float old = state[h].top;
      state[h].top = max_of(old, top);
      base[h] = state[h].top == -kInfinity ? 0.0f : state[h].top;  // -inf - -inf would be NaN
      const float alpha = exp2_fast(kOptions ? (old - base[h]) * kLog2E : old - base[h]);
      state[h].sum *= alpha;
      TW_UNROLL for (int c = 0; c < kWidth / 8; ++c) TW_UNROLL for (int e = 2 * h; e < 2 * h + 2; ++e) o[c][e] *= alpha;
    }
    TW_UNROLL for (int n = 0; n < kKeys / 8; ++n) TW_UNROLL for (int e = 0; e < 4; ++e) {
      const int h = e / 2;
      x[n][e] =
          kOptions ? exp2_fast((x[n][e] - base[h]) * kLog2E) : exp2_fast(fused_multiply_add(x[n][e], factor, -base[h]));
      state[h].sum += x[n][e];
    }
    if (kOptions && p.rng != nullptr)
      TW_UNROLL for (int n = 0; n < kKeys / 8; ++n) TW_UNROLL for (int h = 0; h < 2; ++h) {
        const Kept kept =
            kept_by_dropout(seed, offset, threshold, options.plane, i0 + 8 * h, start + 8 * n + 2 * (lane % 4));
        if (!kept.first) x[n][2 * h] = 0.0f;
        if (!kept.second) x[n][2 * h + 1] = 0.0f;
      }
    TW_UNROLL for (int n = 0; n < kKeys / 8; n += F::kDepth / 8) {
      const auto a = F::left_of_scores(x[n], x[n + 1]);
      TW_UNROLL for (int c = 0; c < kWidth / 8; c += 2) {
        typename F::B b0, b1;
        F::right_of_columns(v_tile(stage), 8 * n, 8 * c, b0, b1);
        F::multiply(o[c], a, b0);
        F::multiply(o[c + 1], a, b1);
      }
    }
    sync_block();  // the next iteration's copies go where this one has read
  }

  const float kept_scale = p.rng != nullptr ? static_cast<float>(dropout_scale(p.dropout_p)) : 1.0f;
  TW_UNROLL for (int h = 0; h < 2; ++h) {
    const int i = i0 + 8 * h;
    float sum = state[h].sum, top = state[h].top, rescale = 1.0f;
    sum += shuffle_xor(sum, 1);
    sum += shuffle_xor(sum, 2);
    if (p.sinks.data != nullptr) {
      float sink = load_float<T>(p.sinks.data, p.sinks_dtype, head * p.sinks.stride[0]);
      if (!kOptions) sink *= kLog2E;
      const float unit = kOptions ? kLog2E : 1.0f, joined = max_of(top, sink);
      const float base = joined == -kInfinity ? 0.0f : joined;
      rescale = exp2_fast((top - base) * unit);
      sum = sum * rescale + exp2_fast((sink - base) * unit);
      top = joined;
    }
    if (i >= s.seqlen_q) continue;
    const bool empty = sum == 0.0f;
    const float inverse = empty ? 0.0f : 1.0f / sum;
    const Global<T> out = global<T>(p.out.data) +
                          (s.batch * p.out.stride[0] + head * p.out.stride[1] + (s.first_q + i) * p.out.stride[2]);
    TW_UNROLL for (int c = 0; c < kWidth / 8; ++c) TW_UNROLL for (int e = 0; e < 2; ++e) {
      const int column = 8 * c + 2 * (lane % 4) + e;
      if (column < p.head_dim_v) out.store(column, narrow<T>(o[c][2 * h + e] * (rescale * inverse * kept_scale)));
    }
    if (lane % 4 != 0) continue;
    const float natural = kOptions ? top : top * kLn2;
    global<float>(p.lse.data)
        .store(s.batch * p.lse.stride[0] + head * p.lse.stride[1] + (s.first_q + i) * p.lse.stride[2],
               empty ? -kInfinity : natural + log_exact(sum));
    if (p.row_stats.data == nullptr) continue;
    const Global<float> stats =
        global<float>(p.row_stats.data) +
        (s.batch * p.row_stats.stride[0] + head * p.row_stats.stride[1] + (s.first_q + i) * p.row_stats.stride[2]);
    stats.store(0, empty ? kInfinity : top);  // of an empty row every weight is 0
    stats.store(1, inverse);
  }
}

template <class T, int kWidth, bool kOptions>
int run_wide(const AttentionParams& p, Stream stream) {
  const int64_t blocks = (p.seqlen_q + kRows - 1) / kRows;
  const Dim3 grid{static_cast<int>(blocks * p.batch * p.heads), 1, 1};
  constexpr int kShared = (kRows + 4 * kKeysOf<kWidth>)*kWidth * int{sizeof(T)};
  const auto wide = [](const View4& v) {
    bool aligned = reinterpret_cast<uintptr_t>(v.data) % 16 == 0;
    for (int d = 0; d < 3; ++d) aligned = aligned && v.stride[d] * int64_t{sizeof(T)} % 16 == 0;
    return aligned;
  };
  if (wide(p.q) && wide(p.k) && wide(p.v))
    return launch("attention_forward", attention_forward_kernel<T, kWidth, kOptions, true>, grid, kThreads, kShared,
                  stream, p);
  return launch("attention_forward", attention_forward_kernel<T, kWidth, kOptions, false>, grid, kThreads, kShared,
                stream, p);
}

template <class T, int kWidth>
int run_width(const AttentionParams& p, Stream stream) {
  const bool options =
      p.mask.data != nullptr || p.alibi_slopes.data != nullptr || p.softcap > 0.0 || p.rng != nullptr || p.scale <= 0.0;
  return options ? run_wide<T, kWidth, true>(p, stream) : run_wide<T, kWidth, false>(p, stream);
}

template <class T>
int run(const AttentionParams& p, Stream stream) {
  const int64_t width = p.head_dim > p.head_dim_v ? p.head_dim : p.head_dim_v;
  if (p.batch == 0 || p.heads == 0 || p.seqlen_q == 0) return 0;
  if (width <= 64) return run_width<T, 64>(p, stream);
  if (width <= 128) return run_width<T, 128>(p, stream);
  return run_width<T, 256>(p, stream);
}

}  // namespace

int64_t attention_forward_workspace(const AttentionParams&) { return 0; }

int attention_forward(const AttentionParams& p, Stream stream) {
  switch (p.dtype) {
    case DType::kFloat16: return run<Half>(p, stream);
    case DType::kBFloat16: return run<BFloat16>(p, stream);
    default: return kUnsupported;
  }
}

}  // namespace tilewright::gpu
