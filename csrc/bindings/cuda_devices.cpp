#include "cuda_devices.h"

#include <sstream>

#define TW_DECLARATIONS
#include "../cuda/primitives/launch.h"

namespace tilewright {
namespace {

// 12080 is CUDA 12.8.
std::string version(int number) { return std::to_string(number / 1000) + "." + std::to_string(number % 1000 / 10); }

std::string built() { return "they were built for " + cuda_targets(); }

}  // namespace

std::string cuda_targets() { return TW_CUDA_TARGETS; }

std::string cuda_version() { return version(CUDART_VERSION); }

bool cuda_serves(int major, int minor) {
  std::istringstream targets(cuda_targets());
  for (std::string target; targets >> target;) {
    const size_t underscore = target.find('_');
    const int number = std::stoi(target.substr(underscore + 1)), own = 10 * major + minor;
    const bool is_ptx = target.substr(0, underscore) == "compute", is_exact = target.back() == 'a';
    if (number == own || (!is_exact && number < own && (is_ptx || number / 10 == major))) return true;
  }
  return false;
}

std::optional<std::string> cuda_unusable() {
  using gpu::answered;
  int driver = 0, count = 0;
  if (answered(cudaDriverGetVersion(&driver)) != cudaSuccess || driver == 0) return "no CUDA driver is installed";
  const cudaError_t error = answered(cudaGetDeviceCount(&count));
  if (error == cudaErrorInsufficientDriver)
    return "the CUDA driver is of CUDA " + version(driver) + ", too old for the CUDA " + cuda_version() +
           " that the kernels were built with; update the driver, or install tilewright with an older nvcc";
  if (error != cudaSuccess) return explain_cuda(error);
  std::string found;
  for (int device = 0; device < count; ++device) {
    int major = 0, minor = 0;
    if (answered(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device)) != cudaSuccess ||
        answered(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device)) != cudaSuccess)
      continue;
    if (cuda_serves(major, minor)) return std::nullopt;
    found += (found.empty() ? "" : ", ") + std::to_string(major) + "." + std::to_string(minor);
  }
  return "the GPUs here are of compute capability " + found + ", and the kernels have no code for it: " + built();
}

std::string explain_cuda(int code) {
  const auto error = static_cast<cudaError_t>(code);
  std::string text = std::string(cudaGetErrorName(error)) + ": " + cudaGetErrorString(error);
  if (error == cudaErrorNoKernelImageForDevice || error == cudaErrorUnsupportedPtxVersion) text += "; " + built();
  return text;
}

}  // namespace tilewright
