// Asynchronous copies from global to shared memory (cp.async, sm_80): issued by a thread, in groups, oldest first.
#pragma once

#include "memory.h"

namespace tilewright::gpu {

// kBytes (4, 8 or 16) to an address that is a multiple of them; of the source only so many elements, zeros for the rest.
template <int kBytes, class T>
TW_DEVICE void copy_async(Shared<T> to, Global<const T> from, int elements = kBytes / int{sizeof(T)}, Here = {}) {
  static_assert(kBytes == 4 || kBytes == 8 || kBytes == 16, "cp.async copies 4, 8 or 16 bytes");
  const uint32_t target = static_cast<uint32_t>(__cvta_generic_to_shared(to.p));
  const int copied = elements * int{sizeof(T)};
  if constexpr (kBytes == 16)  // past L1: what a block copies, it uses from shared memory
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(target), "l"(from.p), "r"(copied) : "memory");
  else
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(target), "l"(from.p), "n"(kBytes), "r"(copied)
                 : "memory");
}

// Ends the group of the copies issued since the last one.
TW_DEVICE void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Returns when all but the newest kGroupsLeft groups of this thread have landed. Other threads see them after a barrier.
template <int kGroupsLeft>
TW_DEVICE void wait_for_copies(Here = {}) {
  asm volatile("cp.async.wait_group %0;" ::"n"(kGroupsLeft) : "memory");
}

}  // namespace tilewright::gpu
