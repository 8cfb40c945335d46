// Working memory of a kernel: one allocation per call, cut into per-thread pieces.
#pragma once

#include <cstddef>
#include <cstdint>

namespace tilewright {

// 64-byte aligned memory that lives as long as this object; data() is null when the allocation failed or bytes is 0.
// Freed blocks up to a few MiB are kept for the next call of the same thread, so that small calls do not pay for malloc.
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
