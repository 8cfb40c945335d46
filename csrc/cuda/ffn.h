// The feed-forward block on CUDA: what the module calls. Each answers 0, kUnsupported or CUDA's error code.
#pragma once

#include <primitives/launch.h>

#include "access.h"

namespace tilewright::gpu {

// Bytes that params.workspace has to have.
int64_t ffn_forward_workspace(const FfnParams& params);
int64_t ffn_backward_workspace(const FfnParams& params);
int ffn_forward(const FfnParams& params, Stream stream);
int ffn_backward(const FfnParams& params, Stream stream);

}  // namespace tilewright::gpu
