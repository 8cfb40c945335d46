// Fibers: functions with a stack of their own, which run until they switch to another.
//
// A thread of a CUDA block is one, and a block has up to 1024 of them, switching at every warp instruction. A switch
// saves only what the calling convention has a called function keep: about ten nanoseconds on x86-64 and on AArch64,
// where swapcontext takes several hundred (it also saves the signal mask, in a system call). Elsewhere it is used.
#pragma once

#include <cstddef>
#include <memory>
#include <vector>

namespace tilewright::emulation {

// What a stopped fiber is resumed by.
using Context = void*;

class Stack {
 public:
  explicit Stack(size_t bytes);  // throws std::bad_alloc
  ~Stack();
  Stack(const Stack&) = delete;
  Stack& operator=(const Stack&) = delete;

  // A context that begins with entry(argument) when it is first switched to. entry must not return.
  Context start(void (*entry)(void*), void* argument);

 private:
  void* base_ = nullptr;
  size_t bytes_ = 0;
  void* context_ = nullptr;  // where swapcontext is used
};

// Stop here, leaving `*from` to come back by, and go on with `to`.
void switch_context(Context* from, Context to);

}  // namespace tilewright::emulation
