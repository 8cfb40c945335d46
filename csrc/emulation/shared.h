// A block's shared memory, and what is known of every two bytes of it: who wrote and read them last, and when.
//
// When means: how often the block's barrier had opened, and how often the thread's warp had synchronised since. Two
// accesses are ordered if a barrier of the block lies between them, or both are of one warp with a warp barrier between
// them, or both are of one thread. Two that are not, one of which writes, are a race, whatever order they ran in here.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "report.h"

namespace tilewright::emulation {

struct Moment {
  uint32_t block = 0;  // openings of the block's barrier
  uint32_t warp = 0;   // synchronisations of the warp, over the whole launch of the block
};

class SharedMemory {
 public:
  static constexpr size_t kGranule = 2;

  // As at the start of a block: poisoned, nothing written.
  void reset(size_t bytes);
  uint8_t* data() { return bytes_.data(); }
  size_t size() const { return size_; }
  bool contains(const void* p, size_t bytes) const;

  // What is wrong with an access, in words, or nothing; and it is recorded. p is inside.
  std::optional<std::pair<Fault, std::string>> read(const void* p, size_t bytes, int thread, Moment now);
  std::optional<std::pair<Fault, std::string>> write(const void* p, size_t bytes, int thread, Moment now, Here here);

  // An asynchronous copy: from begin_copy on its bytes must be neither read nor written, until end_copy writes them.
  std::optional<std::pair<Fault, std::string>> begin_copy(void* p, size_t bytes, int thread, Moment now, Here here);
  std::optional<std::pair<Fault, std::string>> end_copy(void* p, size_t bytes, int thread, Moment now, Here here);

 private:
  // A thread; or several of one warp, or of several warps.
  static constexpr int kNobody = -1, kSeveral = -2;
  struct Granule {
    int writer = kNobody;
    Moment written;
    int writer_line = 0;
    int reader = kNobody;  // or kSeveral, of warp reader_warp
    int reader_warp = kNobody;
    Moment read;
    int copier = kNobody;  // of a copy in flight
    int copier_line = 0;
  };
  static bool ordered(int before, Moment then, int thread, Moment now);
  static bool reads_ordered(const Granule& g, int thread, Moment now);
  std::string where(size_t granule) const;
  std::string in_flight(size_t granule, const char* used) const;

  std::vector<uint8_t> bytes_;
  std::vector<Granule> granules_;
  size_t size_ = 0;
};

}  // namespace tilewright::emulation
