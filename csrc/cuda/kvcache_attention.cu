// Attention of new queries over a cache of keys and values, contiguous or paged ("PagedAttention", Kwon et al. 2023). New
// keys and values are first copied into it.
#include "attention_launch.h"

namespace tilewright::gpu {
namespace {

constexpr int kThreads = 128;

// Block: new position block_y of batch entry and key head block_x.
template <class T>
TW_KERNEL(kThreads)
kvcache_append_kernel(TW_KERNEL_ARGUMENT AttentionParams p) {
  const Sequence s = find_sequence(p, block_x() / static_cast<int>(p.heads_kv));
  const int head = block_x() % static_cast<int>(p.heads_kv);
  const int64_t j = s.seqlen_k - p.seqlen_new + block_y();
  if (j < 0) return;
  const auto copy = [&](const View4& cache, const View4& fresh, int64_t width) {
    const Global<T> to = find_key_rows<T>(p, cache, s, head)(j);
    const Global<const T> from = find_rows<const T>(fresh, s, head, 0)(block_y());
    for (int64_t c = thread_index(); c < width; c += kThreads) to.store(c, from.load(c));
  };
  copy(p.k, p.k_new, p.head_dim);
  copy(p.v, p.v_new, p.head_dim_v);
}

struct Append {
  template <class T, int, bool>
  static int run(const AttentionParams& p, Stream stream) {
    return launch<kvcache_append_kernel<T>>({p.batch * p.heads_kv, p.seqlen_new}, kThreads, 0, stream, p);
  }
};

}  // namespace

int64_t kvcache_attention_workspace(const AttentionParams& p) { return attention_forward_workspace(p); }

int kvcache_attention(const AttentionParams& p, Stream stream) {
  if (p.k_new.data != nullptr && p.v_new.data != nullptr)
    if (const int error = launch_instance<Append>(p, stream)) return error;
  return attention_forward(p, stream);
}

}  // namespace tilewright::gpu
