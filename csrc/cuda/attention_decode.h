// Few queries over many keys ("Flash-Decoding", Dao et al. 2023): the heads that share keys are rows of one tile, and the
// keys are split over blocks, whose results are merged.
#pragma once

#include "attention.h"
#include "attention_call.h"

namespace tilewright::gpu {

// Rows of a tile: the queries of each head of a group, one head after the other.
constexpr int kDecodeRows = 16;

inline int64_t decode_rows(const AttentionParams& p) { return p.seqlen_q * (p.heads / p.heads_kv); }
// With more rows the forward kernel's larger tiles read the keys less often. A backward reads a row's maximum in the units
// that its own kernels work in, which are the forward kernel's.
inline bool is_decode(const AttentionParams& p) {
  return p.cu_seqlens_q == nullptr && p.heads_kv > 0 && decode_rows(p) <= 2 * kDecodeRows &&
         p.row_stats.data == nullptr;
}

// Splits of a sequence's keys: as many as are asked for, or so many that a large chip is busy and each has enough to do.
constexpr int64_t kDecodeBlocks = 264;  // two for each multiprocessor of the largest chips so far
constexpr int64_t kKeysPerSplit = 256, kMostChosenSplits = 64;

inline int decode_splits(const AttentionParams& p) {
  const int64_t most = (p.seqlen_k + kDecodeRows - 1) / kDecodeRows;
  int64_t splits = p.num_splits;
  if (splits <= 0) {
    const int64_t blocks = (decode_rows(p) + kDecodeRows - 1) / kDecodeRows * p.batch * p.heads_kv;
    splits = blocks > 0 ? (kDecodeBlocks + blocks - 1) / blocks : 1;
    splits = splits < p.seqlen_k / kKeysPerSplit ? splits : p.seqlen_k / kKeysPerSplit;
    splits = splits < kMostChosenSplits ? splits : kMostChosenSplits;
  }
  splits = splits < kMaxSplits ? splits : kMaxSplits;
  splits = splits < most ? splits : most;
  return splits > 1 ? static_cast<int>(splits) : 1;
}

// In the workspace, for each row of (B, H, Sq) and each split: maximum, sum, and the weighted sum of values.
TW_HOST_DEVICE int64_t part_floats(const AttentionParams& p) { return 2 + p.head_dim_v; }
inline int64_t decode_bytes(const AttentionParams& p) {
  const int splits = decode_splits(p);
  return splits == 1 ? 0 : p.batch * p.heads * p.seqlen_q * splits * part_floats(p) * int64_t{sizeof(float)};
}

}  // namespace tilewright::gpu
