// Global memory as a kernel may use it: the tensors of a launch, and for each byte of those it writes, who wrote it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace tilewright::emulation {

// One tensor. Bytes outside of all ranges must not be touched.
struct Range {
  const char* name;
  uintptr_t begin, end;
  bool writable;
  bool written;  // before the launch; what is not must be written before it is read
  // Of writable ranges, with history: for each byte 0, or who wrote it: 1 + the number of the block, or kEarlier.
  static constexpr uint32_t kEarlier = 0xFFFFFFFFu;
  std::vector<uint32_t> writers;

  bool contains(uintptr_t address, size_t bytes) const {
    return address >= begin && bytes <= end - address && address <= end;
  }
};

class GlobalMemory {
 public:
  enum class Use { kInput, kOutput, kInOut };

  // The elements of a strided view: from the lowest to the highest address that its sizes and strides reach. A null
  // address, or a size of 0, is no range.
  void add(const char* name, const void* data, size_t element, const int64_t* sizes, const int64_t* strides, int rank,
           Use use);

  // The range that holds `address`, or the nearest one below it, or the first; null where there are none.
  Range* find(uintptr_t address);
  // "q, 3 elements past its end": where an address is with regard to the tensors.
  std::string describe(uintptr_t address) const;
  // A launch begins: what was written is there for all its blocks. history: whether it is kept who writes what.
  void begin_launch(bool history);

 private:
  std::vector<Range> ranges_;  // by address
};

}  // namespace tilewright::emulation
