// What stands behind the stand-in for the CUDA runtime (cuda_runtime.h): kernels as it knows them, the call in progress,
// and the last error.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <limits>
#include <optional>
#include <string>
#include <typeinfo>
#include <unordered_map>

#include "cuda_runtime.h"
#include "global.h"
#include "report.h"

namespace tilewright::emulation {

// What a launch may have on every chip since sm_80: the least of them, where they differ.
struct Chip {
  static constexpr unsigned kGrid[3] = {2147483647, 65535, 65535};
  static constexpr unsigned kThreads = 1024;
  static constexpr int kSharedBytes = 48 * 1024, kSharedBytesAskedFor = 99 * 1024;  // of a block
  // Of a block as well. They are given to warps, of which four at a time get theirs, in eights for each thread.
  static constexpr unsigned kRegisters = 65536, kRegistersAtATime = 8, kWarpsAtATime = 4;
  static constexpr size_t kParameterBytes = 4096;
};

// What nvcc made of a kernel: registers of a thread, the most threads that it was compiled for, and static shared memory.
struct Compiled {
  int registers = 0, threads = 0, shared_bytes = 0;
};
// By name, as in Function; empty: nothing is known, and nothing of it is held against launches.
void set_compiled(std::unordered_map<std::string, Compiled> kernels);

// A kernel, as nvcc's start-up code makes it known to the runtime. Its address is what the runtime's functions take.
struct Function {
  std::string name;  // as the tables of what kernels compile to have it: "softmax_forward<Half, 8, true>"
  size_t parameter_bytes;
  void (*call)(void** arguments);
  std::atomic<int> shared_bytes_asked_for{0};
};

// Of the demangled name of a Kernel<kernel>.
std::string short_name(const std::type_info& type);

// What to watch in a call's launches.
struct Watch {
  uint64_t seed = 0;  // of the order in which blocks, warps and lanes run; each launch has the next one
  // Whether reads of what nothing wrote, and races between blocks, are faults; else only where an access goes.
  bool history = true;
  // So many blocks of a launch run at most: the first, the last, and some drawn from the seed.
  int64_t blocks = std::numeric_limits<int64_t>::max();
};

// Calls a launcher, over these tensors, and answers what it answers. Throws KernelFault: for the first fault in a kernel,
// for a launch that a chip would refuse, and for an error that is left behind.
int run(GlobalMemory memory, const Watch& watch, const std::function<int()>& launcher);

// An error after which every function of the runtime answers it, as after a kernel that wrote out of range; cudaSuccess
// is a new start.
void set_sticky_error(cudaError_t error);

}  // namespace tilewright::emulation

namespace tilewright::gpu {

namespace detail {
template <auto kernel>
struct Kernel {};

template <auto kernel, class Params>
emulation::Function make_function(void (*)(const Params)) {
  return {emulation::short_name(typeid(Kernel<kernel>)), sizeof(Params),
          [](void** arguments) { kernel(*static_cast<const Params*>(arguments[0])); }};
}
}  // namespace detail

template <auto kernel>
const void* function_of() {
  static emulation::Function function = detail::make_function<kernel>(kernel);
  return &function;
}

}  // namespace tilewright::gpu
