// Attention on CUDA: what the module calls. Each answers 0, kUnsupported or CUDA's error code.
#pragma once

#include <primitives/launch.h>

#include "access.h"

namespace tilewright::gpu {

int64_t attention_forward_workspace(const AttentionParams& params);
int attention_forward(const AttentionParams& params, Stream stream);

}  // namespace tilewright::gpu
