// Softmax on CUDA: what the module calls. Each answers 0, kUnsupported or CUDA's error code.
#pragma once

#include <primitives/launch.h>

#include "access.h"

namespace tilewright::gpu {

// Bytes that params.workspace has to have.
int64_t softmax_workspace(const SoftmaxParams& params);
int softmax_forward(const SoftmaxParams& params, Stream stream);
int softmax_backward(const SoftmaxParams& params, Stream stream);

}  // namespace tilewright::gpu
