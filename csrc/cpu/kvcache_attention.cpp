// Attention of new queries over a key/value cache, contiguous or paged ("PagedAttention", Kwon et al. 2023).
//
// New keys and values are first copied into the cache, then the forward kernel reads it in place, page by page. The key
// range is split over tasks when queries are few ("Flash-Decoding", Dao et al. 2023).
#include "attention_forward.h"
#include "isa.h"
#include "parallel.h"

namespace tilewright {
namespace TW_ISA {
namespace {

void append(const AttentionParams& p, const Sequence& s, int64_t kv_head, const View4& cache, const View4& fresh,
            int64_t dim) {
  const int64_t bytes = size_of(p.dtype), first = s.len_k - p.seqlen_new;
  const KeyRows rows = key_rows(p, cache, s, kv_head);
  const char* src =
      static_cast<const char*>(fresh.data) + (s.batch * fresh.stride[0] + kv_head * fresh.stride[1]) * bytes;
  for (int64_t j = 0; j < p.seqlen_new; ++j)
    std::memcpy(rows.row(first + j), src + j * fresh.stride[2] * bytes, static_cast<size_t>(dim * bytes));
}

}  // namespace

Status kvcache_attention(const AttentionParams& p) {
  const Status status = check_attention(p);
  if (status != Status::kOk) return status;
  const bool appends = p.k_new.data != nullptr && p.seqlen_new > 0;
  if (appends && (p.seqlens_k == nullptr || p.v_new.data == nullptr)) return Status::kBadLengths;
  if (appends) {
    const int64_t elements = p.batch * p.heads_kv * p.seqlen_new * (p.head_dim + p.head_dim_v);
    parallel_for(p.batch * p.heads_kv, threads_for(elements, p.num_threads), [&](int64_t task, int) {
      const Sequence s = sequence_of(p, task / p.heads_kv);
      append(p, s, task % p.heads_kv, p.k, p.k_new, p.head_dim);
      append(p, s, task % p.heads_kv, p.v, p.v_new, p.head_dim_v);
    });
  }
  return attend(p, p.num_splits);
}

}  // namespace TW_ISA
}  // namespace tilewright
