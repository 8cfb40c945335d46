// Working memory of a kernel: one allocation per call, cut into per-thread pieces.
#pragma once

#include <cstddef>
#include <cstdint>

namespace tilewright {

// 64-byte aligned memory that lives as long as this object; data() is null when the allocation failed or bytes is 0.
// The largest freed block, of up to 64 MiB, is kept for the next call of the same thread: neither small calls nor large
// ones pay for fresh memory.
class Scratch {
 public:
  explicit Scratch(size_t bytes);
  ~Scratch();
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  char* data() const { return data_; }

 private:
  char* data_;
  size_t bytes_;
};

// For tests: fill every new Scratch with 0xFF bytes (NaN in every float type), so that a read of memory that the kernel
// did not write shows in its result.
void poison_scratch(bool on);

}  // namespace tilewright
