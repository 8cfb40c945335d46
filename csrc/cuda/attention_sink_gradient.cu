// The gradient of a head's sink: less the sum over its rows of the sink's weight times delta.
#include "attention_gradient.h"
#include "attention_launch.h"

namespace tilewright::gpu {
namespace {

constexpr int kThreads = 256;

// What of a row's weight its sink has. Far above all keys it has everything, and 1 / sum may be 0; and where there are none.
TW_DEVICE float sink_weight(float sink, const RowTerms& row, float unit) {
  if (sink == -kInfinity) return 0.0f;
  const float top = row.top * unit;
  return row.top == kInfinity || sink - top > 80.0f ? 1.0f : weight(sink, top, 1.0f) * row.inverse;
}

// unit: of the kernels that left the rows' statistics.
struct SinkLaunch {
  AttentionLaunch l;
  float unit = 1.0f;
};

template <class T>
TW_KERNEL(kThreads)
attention_sink_gradient_kernel(TW_KERNEL_ARGUMENT SinkLaunch d) {
  const AttentionParams& p = d.l.call;
  const int head = block_x();
  const float sink = load_float<T>(p.sinks.data, p.sinks_dtype, head * p.sinks.stride[0]);
  float sum = 0.0f;
  for (int b = 0; b < p.batch; ++b) {
    const Sequence s = find_sequence(p, b);
    for (int i = thread_index(); i < s.seqlen_q; i += kThreads) {
      const RowTerms row = load_terms(p, s, head, i);
      sum -= sink_weight(sink, row, d.unit) * row.delta;
    }
  }
  TW_UNROLL for (int step = kWarpSize / 2; step > 0; step /= 2) sum += shuffle_xor(sum, step);
  const auto parts = shared_memory<float>();
  if (lane_index() == 0) parts.store(warp_index(), sum);
  sync_block();
  if (thread_index() != 0) return;
  sum = 0.0f;
  for (int w = 0; w < kThreads / kWarpSize; ++w) sum += parts.load(w);
  global<float>(p.dsinks.data).store(head * p.dsinks.stride[0], sum);
}

struct SinkGradient {
  template <class T, int, bool kOptions>
  static int run(const AttentionParams& p, Stream stream) {
    const SinkLaunch d{AttentionLaunch::of<T>(p), logit_unit<kOptions>(p)};
    return launch<attention_sink_gradient_kernel<T>>({p.heads}, kThreads, kThreads / kWarpSize * int{sizeof(float)},
                                                     stream, d);
  }
};

}  // namespace

int attention_sink_gradient(const AttentionParams& p, Stream stream) {
  return launch_instance<SinkGradient>(p, stream);
}

int64_t attention_backward_workspace(const AttentionParams& call) { return delta_bytes(bounded(call)); }

int attention_backward(const AttentionParams& call, Stream stream) {
  const AttentionParams p = bounded(call);
  if (const int error = check_sizes(p)) return error;
  return launch_all(stream, [&](Stream s) {
    int error = attention_backward_rows(p, s);
    if (error == 0 && (p.dk.data != nullptr || p.dv.data != nullptr)) error = attention_backward_keys(p, s);
    if (error == 0 && p.dmask.data != nullptr) error = attention_mask_gradient(p, s);
    if (error == 0 && p.dsinks.data != nullptr) error = attention_sink_gradient(p, s);
    return error;
  });
}

}  // namespace tilewright::gpu
