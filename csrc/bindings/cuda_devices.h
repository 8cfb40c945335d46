// What _cuda was built for, and whether a GPU of this machine can run it. Nothing here makes a context on a device.
#pragma once

#include <optional>
#include <string>

namespace tilewright {

// "sm_80 sm_90a compute_80": machine code for two architectures, and PTX of one.
std::string cuda_targets();
// Of the runtime that is linked in, such as "13.0".
std::string cuda_version();

// Whether there is code for GPUs of a compute capability: machine code runs on its own major version, from its minor
// version on (9.0a on 9.0 alone); PTX on every later one.
bool cuda_serves(int major, int minor);

// Why no kernel can run on this machine, in words.
std::optional<std::string> cuda_unusable();

// A CUDA error code, in words.
std::string explain_cuda(int code);

}  // namespace tilewright
