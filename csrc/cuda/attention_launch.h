// From a call to the instance of a kernel that serves it.
#pragma once

#include "attention.h"
#include "attention_call.h"

namespace tilewright::gpu {

// A call, and what its launcher found out. wide: all rows of q, k, v and dout begin at multiples of
// 16 bytes; wide_out: those of what is written.
struct AttentionLaunch {
  AttentionParams call;
  bool wide = false, wide_out = false;

  template <class T>
  static AttentionLaunch of(const AttentionParams& p) {
    const auto wide = [](const View4& v) {
      bool all = reinterpret_cast<uintptr_t>(v.data) % 16 == 0;
      for (int d = 0; d < 3; ++d) all = all && v.stride[d] * int64_t{sizeof(T)} % 16 == 0;
      return all;
    };
    return {p, wide(p.q) && wide(p.k) && wide(p.v) && wide(p.dout),
            wide(p.out) && wide(p.dq) && wide(p.dk) && wide(p.dv)};
  }
};

// The call as kernels and workspaces take it. No packed sequence is longer than all rows together; bounds and pages are
// numbers of 32 bits, so they reach no further; and there is nothing in a cache without pages.
inline AttentionParams bounded(AttentionParams p) {
  const auto least = [](int64_t a, int64_t b) { return a < b ? a : b; };
  if (p.cu_seqlens_q != nullptr) {
    p.total_q = least(p.total_q, INT32_MAX), p.total_k = least(p.total_k, INT32_MAX);
    p.seqlen_q = least(p.seqlen_q, p.total_q), p.seqlen_k = least(p.seqlen_k, p.total_k);
    for (View4* v : {&p.q, &p.k, &p.v, &p.out, &p.lse, &p.row_stats, &p.dout, &p.dlse, &p.dq, &p.dk, &p.dv})
      v->stride[0] = 0;
  }
  if (p.block_table != nullptr && p.num_pages == 0) p.seqlen_k = 0;
  p.num_pages = least(p.num_pages, INT32_MAX);
  // No sequence is as long, and sums of positions and these must not overflow.
  p.window_left = least(p.window_left, INT32_MAX), p.window_right = least(p.window_right, INT32_MAX);
  return p;
}

// 0, or kTooLong: kernels count positions, batch entries x heads, and the queries of heads that share keys in 32 bits, and
// positions with room for differences and for what is past the last.
inline int check_sizes(const AttentionParams& p) {
  constexpr int64_t kPositions = int64_t{1} << 30;
  if (p.seqlen_q > kPositions || p.seqlen_k > kPositions) return kTooLong;
  if (p.batch > 0 && p.heads > INT32_MAX / p.batch) return kTooLong;
  return p.heads_kv > 0 && p.seqlen_q > 0 && p.heads / p.heads_kv > INT32_MAX / p.seqlen_q ? kTooLong : 0;
}

// Whether something happens to a score besides scaling. Then softmax works on logits; else on q . k itself, whose scale is
// part of the exponential. (Not where that is next to 0: an excluded score is -inf before it is scaled.)
inline bool has_options(const AttentionParams& p) {
  return p.mask.data != nullptr || p.alibi_slopes.data != nullptr || p.softcap > 0.0 || p.rng != nullptr ||
         p.scale < 1e-30;
}

// Kernel::run<T, kWidth, kOptions>(params, stream), kWidth being what head dims are padded to: the compile-time axes of
// every attention kernel. Where products take most of the time, of float32 and of wide heads, one instance serves calls with
// options and without, and the build is shorter by a quarter.
template <class T, int kWidth>
constexpr bool kHasPlainInstance = sizeof(T) == 2 && kWidth <= 128;
template <class Kernel, class T, int kWidth>
int launch_width(const AttentionParams& p, Stream stream) {
  if constexpr (kHasPlainInstance<T, kWidth>) {
    if (!has_options(p)) return Kernel::template run<T, kWidth, false>(p, stream);
  }
  return Kernel::template run<T, kWidth, true>(p, stream);
}
template <class Kernel, class T>
int launch_type(const AttentionParams& p, Stream stream) {
  const int64_t width = p.head_dim > p.head_dim_v ? p.head_dim : p.head_dim_v;
  if (width <= 64) return launch_width<Kernel, T, 64>(p, stream);
  if (width <= 128) return launch_width<Kernel, T, 128>(p, stream);
  return launch_width<Kernel, T, 256>(p, stream);
}
template <class Kernel>
int launch_instance(const AttentionParams& p, Stream stream) {
  switch (p.dtype) {
    case DType::kFloat32: return launch_type<Kernel, float>(p, stream);
    case DType::kFloat16: return launch_type<Kernel, Half>(p, stream);
    case DType::kBFloat16: return launch_type<Kernel, BFloat16>(p, stream);
    default: return kUnsupported;
  }
}

}  // namespace tilewright::gpu
