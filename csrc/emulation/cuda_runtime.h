// Stands in for the CUDA runtime's header: the few functions that launching needs, with its names, its limits and its order
// of errors (runtime.cpp), so that csrc/cuda/primitives/launch.h is compiled here as it is for a GPU.
#pragma once

#include <cstddef>

enum cudaError_t {  // the numbers are CUDA's
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorIllegalAddress = 700,
  cudaErrorLaunchOutOfResources = 701,
};
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };

struct dim3 {
  unsigned x, y, z;
  explicit dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
using cudaStream_t = void*;

const char* cudaGetErrorName(cudaError_t error);
// The last error that a call answered in this thread; the first of these two also forgets it.
cudaError_t cudaGetLastError();
cudaError_t cudaPeekAtLastError();
cudaError_t cudaFuncSetAttribute(const void* function, cudaFuncAttribute attribute, int value);
// The blocks run here and now. What is wrong with the launch is an error; what goes wrong in the kernel is thrown.
cudaError_t cudaLaunchKernel(const void* function, dim3 grid, dim3 block, void** arguments, size_t shared_bytes,
                             cudaStream_t stream);
