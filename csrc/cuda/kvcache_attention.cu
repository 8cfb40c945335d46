// Attention of new queries over a cache of keys and values, contiguous or paged ("PagedAttention", Kwon et al. 2023). New
// keys and values are first copied into it.
#include "attention_launch.h"

namespace tilewright::gpu {
namespace {

constexpr int kThreads = 128;

// A block for each new position: block_x counts (B, Hkv, S_new).
template <class T>
TW_KERNEL(kThreads)
kvcache_append_kernel(TW_KERNEL_ARGUMENT AttentionParams p) {
  const int fresh = static_cast<int>(p.seqlen_new), heads = static_cast<int>(p.heads_kv);
  const int position = block_x() % fresh, plane = block_x() / fresh, head = plane % heads;
  const Sequence s = find_sequence(p, plane / heads);
  const int64_t j = int64_t{s.seqlen_k} - fresh + position;
  if (j < 0) return;
  const auto copy = [&](const View4& cache, const View4& given, int64_t width) {
    const Global<T> to = find_key_rows<T>(p, cache, s, head)(j);
    const Global<const T> from = find_rows<const T>(given, s, head, 0)(position);
    for (int64_t c = thread_index(); c < width; c += kThreads) to.store(c, from.load(c));
  };
  copy(p.k, p.k_new, p.head_dim);
  copy(p.v, p.v_new, p.head_dim_v);
}

struct Append {
  template <class T, int, bool>
  static int run(const AttentionParams& p, Stream stream) {
    return launch<kvcache_append_kernel<T>>({p.batch * p.heads_kv * p.seqlen_new}, kThreads, 0, stream, p);
  }
};

}  // namespace

int64_t kvcache_attention_workspace(const AttentionParams& p) { return attention_forward_workspace(p); }

int kvcache_attention(const AttentionParams& call, Stream stream) {
  if (call.k_new.data == nullptr || call.v_new.data == nullptr) return attention_forward(call, stream);
  const AttentionParams p = bounded(call);
  return launch_all(stream, [&](Stream s) {
    if (const int error = launch_instance<Append>(p, s)) return error;
    return attention_forward(p, s);
  });
}

}  // namespace tilewright::gpu
