// Softmax on CUDA: what the module calls. Each answers 0, kUnsupported or CUDA's error code.
#pragma once

#include <primitives/launch.h>

#include "../common/params.h"

namespace tilewright::gpu {

constexpr int kUnsupported = -1;

// Bytes that params.workspace has to have.
int64_t softmax_workspace(const SoftmaxParams& params);
int softmax_forward(const SoftmaxParams& params, Stream stream);
int softmax_backward(const SoftmaxParams& params, Stream stream);

}  // namespace tilewright::gpu
