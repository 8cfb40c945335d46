// Threads, warps and blocks, emulated. See csrc/cuda/primitives/thread.h for what each name means.
#pragma once

#include <cstdint>

#include "../machine.h"
#include "../runtime.h"

#define TW_KERNEL(max_threads) void
#define TW_KERNEL_OF_BLOCKS(max_threads, blocks) void
#define TW_DEVICE inline
#define TW_APART inline
#define TW_UNROLL
#define TW_UNROLL_BY(times)
#define TW_KERNEL_ARGUMENT const

namespace tilewright::gpu {

using emulation::Here;

constexpr int kWarpSize = emulation::kWarpSize;
constexpr uint32_t kFullMask = emulation::kFullMask;

inline int thread_index() { return emulation::machine().thread().index; }
inline int lane_index() { return emulation::machine().thread().lane; }
inline int warp_index() { return thread_index() / kWarpSize; }
inline int block_threads() { return emulation::machine().launch().threads; }
inline int block_x() { return emulation::machine().block().x; }
inline int block_y() { return emulation::machine().block().y; }
inline int block_z() { return emulation::machine().block().z; }
inline int grid_x() { return emulation::machine().launch().grid.x; }
inline int grid_y() { return emulation::machine().launch().grid.y; }
inline int grid_z() { return emulation::machine().launch().grid.z; }

inline void sync_block(Here here = Here::now()) { emulation::machine().barrier(here); }
inline void sync_warp(uint32_t mask = kFullMask, Here here = Here::now()) {
  emulation::machine().synchronise_warp(mask, here);
}

namespace detail {

template <class T>
struct Shuffle {
  T value;
  int source;  // lane; -1 keeps the own value
  T result;
};

template <class T>
void execute_shuffle(emulation::Machine& m, const emulation::Machine::Operands& operands) {
  for (void* operand : operands) {
    if (operand == nullptr) continue;
    auto& s = *static_cast<Shuffle<T>*>(operand);
    if (s.source < 0 || s.source >= kWarpSize) {
      s.result = s.value;
      continue;
    }
    const void* from = operands[static_cast<size_t>(s.source)];
    if (from == nullptr)
      m.fail(emulation::Fault::kDivergence, m.thread().warp->pending.here,
             "a shuffle reads lane " + std::to_string(s.source) + ", which is not in its mask");
    s.result = static_cast<const Shuffle<T>*>(from)->value;
  }
}

template <class T>
T shuffle_from(const char* name, T value, int source, uint32_t mask, Here here) {
  Shuffle<T> s{value, source, value};
  emulation::machine().collective(name, mask, &s, here, &execute_shuffle<T>);
  return s.result;
}

}  // namespace detail

template <class T>
T shuffle(T value, int lane, uint32_t mask = kFullMask, Here here = Here::now()) {
  return detail::shuffle_from("shuffle", value, lane % kWarpSize, mask, here);
}
template <class T>
T shuffle_xor(T value, int bits, uint32_t mask = kFullMask, Here here = Here::now()) {
  return detail::shuffle_from("shuffle_xor", value, lane_index() ^ bits, mask, here);
}
template <class T>
T shuffle_down(T value, int lanes, uint32_t mask = kFullMask, Here here = Here::now()) {
  return detail::shuffle_from("shuffle_down", value, lane_index() + lanes, mask, here);
}

}  // namespace tilewright::gpu
