// Attention on CUDA: what the module calls. Each answers 0, kUnsupported or CUDA's error code.
#pragma once

#include <primitives/launch.h>

#include "access.h"

namespace tilewright::gpu {

constexpr int kMaxSplits = 256;  // of a key range: MAX_SPLITS of the op

int64_t attention_forward_workspace(const AttentionParams& params);
int attention_forward(const AttentionParams& params, Stream stream);
int attention_decode(const AttentionParams& params, Stream stream);  // attention_forward's way for few queries

int64_t kvcache_attention_workspace(const AttentionParams& params);
int kvcache_attention(const AttentionParams& params, Stream stream);

// Every gradient that params has a place for: the kernels below, in this order.
int64_t attention_backward_workspace(const AttentionParams& params);
int attention_backward(const AttentionParams& params, Stream stream);
int attention_backward_rows(const AttentionParams& params, Stream stream);  // dQ, and delta for the others
int attention_backward_keys(const AttentionParams& params, Stream stream);  // dK, dV
int attention_mask_gradient(const AttentionParams& params, Stream stream);
int attention_sink_gradient(const AttentionParams& params, Stream stream);

}  // namespace tilewright::gpu
