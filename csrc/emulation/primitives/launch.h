// Launches, emulated: the blocks run here and now. See csrc/cuda/primitives/launch.h.
#pragma once

#include "thread.h"

namespace tilewright::gpu {

using emulation::Dim3;

// Nothing: work is done when a launch returns.
using Stream = void*;

// The tensors of the call in progress, and the seed of its schedules.
struct Session {
  emulation::GlobalMemory* memory;
  uint64_t seed;
};
inline Session*& session() {
  thread_local Session* current = nullptr;
  return current;
}

// 0, or an error code; here faults are thrown instead.
template <class Params>
int launch(const char* name, void (*kernel)(const Params), Dim3 grid, int threads, int shared_bytes, Stream,
           const Params& params) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return 0;
  emulation::Launch l{name, grid, threads, static_cast<size_t>(shared_bytes), session()->seed++};
  emulation::machine().run(l, *session()->memory, [&] { kernel(params); });
  return 0;
}

}  // namespace tilewright::gpu
