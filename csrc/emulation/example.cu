// A kernel of one's own in the emulator: docs/emulator.md has the command. The kernel is what nvcc compiles as well; what
// stands around it is how it is launched here.
#include <primitives/launch.h>
#include <primitives/memory.h>

#ifndef __CUDACC__
#include <cstdio>
#include <numeric>
#include <vector>
#endif

namespace example {

using namespace tilewright::gpu;

constexpr int kThreads = 128;

struct RowSums {
  const float* x;  // (rows, kThreads), rows being the grid
  float* sums;     // (rows,)
};

// A block sums up its row, half as many threads at a time.
TW_KERNEL(kThreads) row_sums_kernel(TW_KERNEL_ARGUMENT RowSums p) {
  const Shared<float> partial = shared_memory<float>();
  const int thread = thread_index();
  partial.store(thread, Global<const float>{p.x}.load(block_x() * kThreads + thread));
  for (int half = kThreads / 2; half > 0; half /= 2) {
#ifndef WITHOUT_BARRIER
    sync_block();
#endif
    if (thread < half) partial.store(thread, partial.load(thread) + partial.load(thread + half));
  }
  if (thread == 0) Global<float>{p.sums}.store(block_x(), partial.load(0));
}

int row_sums(const RowSums& p, int rows, Stream stream) {
  return launch<row_sums_kernel>({rows}, kThreads, kThreads * int{sizeof(float)}, stream, p);
}

}  // namespace example

#ifndef __CUDACC__
int main() {
  using tilewright::emulation::GlobalMemory;
  constexpr int64_t kRows = 3, kSizes[] = {kRows, example::kThreads}, kStrides[] = {example::kThreads, 1};
  std::vector<float> x(kRows * example::kThreads), sums(kRows);
  std::iota(x.begin(), x.end(), 0.0f);
  // Tensors are registered with a name, sizes and strides in elements; touching anything else is a fault.
  GlobalMemory memory;
  memory.add("x", x.data(), sizeof(float), kSizes, kStrides, 2, GlobalMemory::Use::kInput);
  memory.add("sums", sums.data(), sizeof(float), kSizes, kStrides + 1, 1, GlobalMemory::Use::kOutput);
  try {
    tilewright::emulation::run(memory, {/* the seed of the schedule */ 0},
                               [&] { return example::row_sums({x.data(), sums.data()}, kRows, {}); });
  } catch (const tilewright::emulation::KernelFault& fault) {
    std::puts(fault.what());
    return 1;
  }
  for (const float sum : sums) std::printf("%g\n", static_cast<double>(sum));
}
#endif
