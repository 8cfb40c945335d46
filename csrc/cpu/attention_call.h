// How the rows of one attention call are found in memory: written once for plain, packed (varlen), cached and paged
// sequences, and for the forward, backward and cache kernels.
//
// Grouped-query attention: the G query heads that share a key/value head are worked on together. Their rows are
// enumerated position by position, row r = position r / G of head r % G, so that neighbouring rows see nearly the same
// keys under a causal mask and every K/V element that is loaded serves all of the group.
#pragma once

#include "attention_gemm.h"
#include "scratch.h"

namespace tilewright {
namespace TW_ISA {

// Positions are 32-bit in the kernels (and in Philox's counters); offsets are 64-bit everywhere.
constexpr int64_t kMaxPositions = int64_t{1} << 30;

// One sequence: its first row in packed tensors (0 otherwise) and its lengths.
struct Sequence {
  int64_t batch, q_begin, len_q, k_begin, len_k;
  int64_t shift;  // query i stands at key position i + shift
};

inline Sequence sequence_of(const AttentionParams& p, int64_t b) {
  Sequence s{b, 0, p.seqlen_q, 0, p.seqlen_k, 0};
  if (p.cu_seqlens_q != nullptr) {
    s.q_begin = p.cu_seqlens_q[b];
    s.len_q = p.cu_seqlens_q[b + 1] - s.q_begin;
  }
  if (p.cu_seqlens_k != nullptr) {
    s.k_begin = p.cu_seqlens_k[b];
    s.len_k = p.cu_seqlens_k[b + 1] - s.k_begin;
  }
  if (p.seqlens_k != nullptr) s.len_k = p.seqlens_k[b] + p.seqlen_new;
  s.shift = p.causal == Causal::kTopLeft ? 0 : s.len_k - s.len_q;
  return s;
}

// The heads that are enumerated together: `size` of them from `first` on, all of key/value head `kv`.
struct HeadGroup {
  int64_t kv, first, size;
};
inline HeadGroup group_of(const AttentionParams& p, int64_t kv) {
  const int64_t size = p.heads / p.heads_kv;
  return {kv, kv * size, size};
}
inline HeadGroup single_head(const AttentionParams& p, int64_t h) { return {h / (p.heads / p.heads_kv), h, 1}; }

// Element offset of a row of q, out, lse or a gradient of theirs.
inline int64_t query_offset(const AttentionParams& p, const View4& view, const Sequence& s, int64_t head, int64_t row) {
  const int64_t b = p.cu_seqlens_q != nullptr ? 0 : s.batch;
  return b * view.stride[0] + head * view.stride[1] + (s.q_begin + row) * view.stride[2];
}
inline char* query_row(const AttentionParams& p, const View4& view, const Sequence& s, int64_t head, int64_t row) {
  return static_cast<char*>(view.data) + query_offset(p, view, s, head, row) * size_of(p.dtype);
}

// The key or value rows of one sequence and head.
struct KeyRows {
  char* base;
  int64_t row_bytes;
  const int32_t* pages = nullptr;
  int64_t page_size = 0, page_bytes = 0;

  char* row(int64_t j) const {
    if (pages == nullptr) return base + j * row_bytes;
    return base + pages[j / page_size] * page_bytes + j % page_size * row_bytes;
  }
  // rows[i] = row(begin + i), with one division for all.
  void rows(int64_t begin, int64_t count, char** rows) const {
    if (pages == nullptr) {
      for (int64_t i = 0; i < count; ++i) rows[i] = base + (begin + i) * row_bytes;
      return;
    }
    int64_t page = begin / page_size, within = begin % page_size;
    for (int64_t i = 0; i < count; ++i) {
      rows[i] = base + pages[page] * page_bytes + within * row_bytes;
      if (++within == page_size) {
        within = 0;
        ++page;
      }
    }
  }
};

inline KeyRows key_rows(const AttentionParams& p, const View4& view, const Sequence& s, int64_t kv_head) {
  const int64_t bytes = size_of(p.dtype);
  KeyRows rows{static_cast<char*>(view.data) + kv_head * view.stride[1] * bytes, view.stride[2] * bytes};
  if (p.block_table != nullptr) {
    rows.pages = p.block_table + s.batch * p.block_table_stride;
    rows.page_size = p.page_size;
    rows.page_bytes = view.stride[0] * bytes;
  } else if (p.cu_seqlens_k != nullptr) {
    rows.base += s.k_begin * rows.row_bytes;
  } else {
    rows.base += s.batch * view.stride[0] * bytes;
  }
  return rows;
}

// Rows [begin, begin + count) as A: in place when that is what memory holds, otherwise widened into `buffer`.
// In place only while rows are close together: a tile of widely strided rows (a head inside a fused projection) costs a
// TLB entry per row and falls into few cache sets.
template <class A>
struct RowTile {
  const A* data;
  int64_t stride;
};
template <class A>
RowTile<A> load_rows(DType dtype, const KeyRows& rows, int64_t begin, int64_t count, int64_t dim, A* buffer) {
  const bool same_type = size_of(dtype) == static_cast<int64_t>(sizeof(A));
  if (same_type && rows.pages == nullptr && rows.row_bytes >= 0 && rows.row_bytes <= 2 * dim * int64_t{sizeof(A)})
    return {reinterpret_cast<const A*>(rows.row(begin)), rows.row_bytes / int64_t{sizeof(A)}};
  for (int64_t j = 0; j < count; ++j) widen_row<A>(dtype, rows.row(begin + j), dim, dim, buffer + j * dim);
  return {buffer, dim};
}

// Cuts one Scratch block into 64-byte aligned arrays; with a null base it only measures.
class Carver {
 public:
  explicit Carver(char* base) : next_(base) {}
  template <class T>
  T* take(int64_t count) {
    T* taken = reinterpret_cast<T*>(next_);
    const int64_t bytes = round_up(count * static_cast<int64_t>(sizeof(T)), 64);
    if (next_ != nullptr) next_ += bytes;
    used_ += bytes;
    return taken;
  }
  int64_t used() const { return used_; }

 private:
  char* next_;
  int64_t used_ = 0;
};

// The threads for a pass over so many elements; waking others is not worth it for a few.
inline int threads_for(int64_t elements, int threads) { return elements < 65536 ? 1 : threads; }

inline bool valid_offsets(const int32_t* offsets, int64_t batch, int64_t total, int64_t longest) {
  if (offsets[0] < 0) return false;
  for (int64_t b = 0; b < batch; ++b) {
    const int64_t length = int64_t{offsets[b + 1]} - offsets[b];
    if (length < 0 || length > longest) return false;
  }
  return offsets[batch] <= total;
}

// Everything that stands between a call and an access outside its tensors.
inline Status check_attention(const AttentionParams& p) {
  const bool known = p.dtype == DType::kFloat32 || p.dtype == DType::kFloat16 || p.dtype == DType::kBFloat16 ||
                     p.dtype == DType::kFloat64;
  if (!known) return Status::kUnsupportedDType;
  const bool own_or_float = p.mask_dtype == p.dtype || p.mask_dtype == DType::kFloat32;
  if (p.mask.data != nullptr && !own_or_float && p.mask_dtype != DType::kBool) return Status::kUnsupportedDType;
  if (p.sinks.data != nullptr && p.sinks_dtype != p.dtype && p.sinks_dtype != DType::kFloat32)
    return Status::kUnsupportedDType;
  if (p.batch < 0 || p.heads < 0 || p.heads_kv < 0 || p.seqlen_q < 0 || p.seqlen_k < 0) return Status::kBadShape;
  if (p.seqlen_q > kMaxPositions || p.seqlen_k > kMaxPositions) return Status::kBadShape;
  if (p.head_dim < 1 || p.head_dim > kMaxHeadDim || p.head_dim_v < 1 || p.head_dim_v > kMaxHeadDim)
    return Status::kBadShape;
  if (p.heads > 0 && (p.heads_kv == 0 || p.heads % p.heads_kv != 0)) return Status::kBadShape;
  if (p.cu_seqlens_q != nullptr && !valid_offsets(p.cu_seqlens_q, p.batch, p.total_q, p.seqlen_q))
    return Status::kBadLengths;
  if (p.cu_seqlens_k != nullptr && !valid_offsets(p.cu_seqlens_k, p.batch, p.total_k, p.seqlen_k))
    return Status::kBadLengths;
  if (p.seqlens_k != nullptr) {
    for (int64_t b = 0; b < p.batch; ++b) {
      if (p.seqlens_k[b] < 0 || p.seqlens_k[b] + p.seqlen_new > p.seqlen_k) return Status::kBadLengths;
    }
  }
  if (p.block_table == nullptr) return Status::kOk;
  if (p.page_size < 1) return Status::kBadShape;
  for (int64_t b = 0; b < p.batch; ++b) {
    const int64_t used = (sequence_of(p, b).len_k + p.page_size - 1) / p.page_size;
    for (int64_t n = 0; n < used; ++n) {
      const int32_t page = p.block_table[b * p.block_table_stride + n];
      if (page < 0 || page >= p.num_pages) return Status::kPageOutOfRange;
    }
  }
  return Status::kOk;
}

}  // namespace TW_ISA
}  // namespace tilewright
