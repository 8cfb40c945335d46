// Launching a kernel: a plain struct of parameters, a stream, and an error code back. One source for GPUs and for the
// emulator, whose cuda_runtime.h stands in for the CUDA runtime. With TW_DECLARATIONS, as the bindings are compiled
// (without nvcc, which takes twice as long for them), without what launches.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#ifndef TW_DECLARATIONS
#include <primitives/thread.h>
#endif

namespace tilewright::gpu {

// What launchers answer besides 0 and CUDA's error codes; the bindings have the words.
constexpr int kUnsupported = -1;    // a dtype that is not theirs
constexpr int kTooManyBlocks = -2;  // more than a grid may have
constexpr int kTooLong = -3;        // sizes past what the kernels count in 32 bits

// Where a call's work goes. checking: its launches are checked, and none is made.
struct Stream {
  cudaStream_t handle = nullptr;
  bool checking = false;
};

// The runtime keeps an error for whoever asks for the last one. One that is answered must not stay there: the next to ask
// would take it for their own.
inline cudaError_t answered(cudaError_t error) {
  if (error != cudaSuccess) (void)cudaGetLastError();
  return error;
}

#ifndef TW_DECLARATIONS
struct Grid {
  int64_t x = 1, y = 1, z = 1;
};
// On every chip. What can be large goes along x.
constexpr Grid kLargestGrid{2147483647, 65535, 65535};

// 0, kTooManyBlocks or CUDA's error code, and that of this launch: not what somebody left before, which
// <<<>>> and cudaGetLastError would answer. A grid without blocks is no launch.
template <auto kernel, class Params>
int launch(const Grid& grid, int threads, int shared_bytes, Stream stream, const Params& params) {
  static_assert(sizeof(Params) <= 4096, "a kernel's parameters have 4 KB on chips and drivers of any age");
  if (grid.x > kLargestGrid.x || grid.y > kLargestGrid.y || grid.z > kLargestGrid.z) return kTooManyBlocks;
  if (stream.checking || grid.x == 0 || grid.y == 0 || grid.z == 0) return cudaSuccess;
  const void* function = function_of<kernel>();
  if (shared_bytes > 48 * 1024) {  // more than that has to be asked for
    const cudaError_t error = cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes);
    if (error != cudaSuccess) return answered(error);
  }
  const dim3 blocks(static_cast<unsigned>(grid.x), static_cast<unsigned>(grid.y), static_cast<unsigned>(grid.z));
  void* arguments[] = {const_cast<Params*>(&params)};
  return answered(cudaLaunchKernel(function, blocks, dim3(static_cast<unsigned>(threads)), arguments,
                                   static_cast<size_t>(shared_bytes), stream.handle));
}

// Launches of one call: all are checked before the first one is made, so that a call is refused whole.
template <class Launches>
int launch_all(Stream stream, const Launches& launches) {
  if (!stream.checking)
    if (const int error = launches(Stream{stream.handle, true})) return error;
  return launches(stream);
}
#endif

}  // namespace tilewright::gpu
