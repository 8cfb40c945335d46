// Launching a kernel: a plain struct of parameters, a stream, and an error code back. With TW_DECLARATIONS, as the
// bindings are compiled (without nvcc, which takes twice as long for them), the stream alone.
#pragma once

#include <cuda_runtime.h>

#ifndef TW_DECLARATIONS
#include "thread.h"
#endif

namespace tilewright::gpu {

using Stream = cudaStream_t;

#ifndef TW_DECLARATIONS
struct Dim3 {
  int x = 1, y = 1, z = 1;
};

// 0, or CUDA's error code. A grid without blocks is no launch.
template <class Params>
int launch(const char*, void (*kernel)(const Params), Dim3 grid, int threads, int shared_bytes, Stream stream,
           const Params& params) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return cudaSuccess;
  if (shared_bytes > 48 * 1024) {
    const auto error = cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                            cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes);
    if (error != cudaSuccess) return error;
  }
  const dim3 blocks(static_cast<unsigned>(grid.x), static_cast<unsigned>(grid.y), static_cast<unsigned>(grid.z));
  kernel<<<blocks, static_cast<unsigned>(threads), static_cast<size_t>(shared_bytes), stream>>>(params);
  return cudaGetLastError();
}
#endif

}  // namespace tilewright::gpu
