// Threads, warps and blocks: the names that kernels use. Its twin in csrc/emulation/primitives/ models them, so that the
// same kernels run on a host; each function with `Here` there takes it here too, where it is nothing.
#pragma once

#include <cstdint>

// A kernel of at most so many threads in a block, and whose registers leave room for so many blocks; a function of its, and
// one that is called, for what is rare: nothing is kept in registers for it; and how a kernel takes its parameters: in constant memory, where an address of them may be taken.
#define TW_KERNEL(max_threads) __global__ void __launch_bounds__(max_threads)
#define TW_KERNEL_OF_BLOCKS(max_threads, blocks) __global__ void __launch_bounds__(max_threads, blocks)
#define TW_DEVICE __device__ __forceinline__
#define TW_APART __device__ __noinline__
// Before a loop over registers, whose indices have to be constants.
#define TW_UNROLL _Pragma("unroll")
// So many times, where the loop's registers do not depend on its counter: what is left of it saves time in the compiler,
// and once saves the registers of its copies.
#define TW_UNROLL_BY(times) TW_PRAGMA(unroll times)
#define TW_PRAGMA(text) _Pragma(#text)
#define TW_KERNEL_ARGUMENT const __grid_constant__

namespace tilewright::gpu {

struct Here {
  TW_DEVICE static constexpr Here now() { return {}; }
};

constexpr int kWarpSize = 32;
constexpr uint32_t kFullMask = 0xFFFFFFFFu;

TW_DEVICE int thread_index() { return static_cast<int>(threadIdx.x); }
TW_DEVICE int lane_index() { return static_cast<int>(threadIdx.x % kWarpSize); }
TW_DEVICE int warp_index() { return static_cast<int>(threadIdx.x / kWarpSize); }
TW_DEVICE int block_threads() { return static_cast<int>(blockDim.x); }
TW_DEVICE int block_x() { return static_cast<int>(blockIdx.x); }
TW_DEVICE int block_y() { return static_cast<int>(blockIdx.y); }
TW_DEVICE int block_z() { return static_cast<int>(blockIdx.z); }
TW_DEVICE int grid_x() { return static_cast<int>(gridDim.x); }
TW_DEVICE int grid_y() { return static_cast<int>(gridDim.y); }
TW_DEVICE int grid_z() { return static_cast<int>(gridDim.z); }

// A kernel as the runtime's functions take it.
template <auto kernel>
const void* function_of() {
  return reinterpret_cast<const void*>(kernel);
}

// All threads of the block, at the same place in the source. Orders their memory accesses.
TW_DEVICE void sync_block(Here = {}) { __syncthreads(); }
// The lanes of the warp named in mask. Orders their memory accesses.
TW_DEVICE void sync_warp(uint32_t mask = kFullMask, Here = {}) { __syncwarp(mask); }

// What another lane passes to the same call. They order nothing in memory.
template <class T>
TW_DEVICE T shuffle(T value, int lane, uint32_t mask = kFullMask, Here = {}) {
  return __shfl_sync(mask, value, lane);
}
template <class T>
TW_DEVICE T shuffle_xor(T value, int bits, uint32_t mask = kFullMask, Here = {}) {
  return __shfl_xor_sync(mask, value, bits);
}
// From the lane that is so many on; where there is none, the own value.
template <class T>
TW_DEVICE T shuffle_down(T value, int lanes, uint32_t mask = kFullMask, Here = {}) {
  return __shfl_down_sync(mask, value, lanes);
}

}  // namespace tilewright::gpu
