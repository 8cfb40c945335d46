// The tensors of a call, as the emulator has to know them: what may be read, and what has to be written first.
#pragma once

#include "../common/params.h"
#include "global.h"

namespace tilewright::emulation {

void describe_attention_forward(const AttentionParams& p, int64_t workspace_bytes, GlobalMemory& memory);
void describe_attention_backward(const AttentionParams& p, int64_t workspace_bytes, GlobalMemory& memory);
void describe_kvcache_attention(const AttentionParams& p, int64_t workspace_bytes, GlobalMemory& memory);
void describe_ffn_forward(const FfnParams& p, int64_t workspace_bytes, GlobalMemory& memory);
void describe_ffn_backward(const FfnParams& p, int64_t workspace_bytes, GlobalMemory& memory);
void describe_softmax_forward(const SoftmaxParams& p, int64_t workspace_bytes, GlobalMemory& memory);
void describe_softmax_backward(const SoftmaxParams& p, int64_t workspace_bytes, GlobalMemory& memory);

}  // namespace tilewright::emulation
