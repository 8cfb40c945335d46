// Asynchronous copies from global to shared memory, emulated: they land as late as the waits allow. See
// csrc/cuda/primitives/copy.h.
#pragma once

#include "memory.h"

namespace tilewright::gpu {

template <int kBytes, class T>
void copy_async(Shared<T> to, Global<const T> from, int elements = kBytes / int{sizeof(T)}, Here here = Here::now()) {
  static_assert(kBytes == 4 || kBytes == 8 || kBytes == 16, "cp.async copies 4, 8 or 16 bytes");
  emulation::machine().copy_async(to.p, from.p, kBytes, static_cast<uint32_t>(elements) * uint32_t{sizeof(T)}, here);
}

inline void commit_copies() { emulation::machine().commit_copies(); }

template <int kGroupsLeft>
void wait_for_copies(Here here = Here::now()) {
  emulation::machine().wait_for_copies(kGroupsLeft, here);
}

}  // namespace tilewright::gpu
