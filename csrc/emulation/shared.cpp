#include "shared.h"

#include <cstring>

namespace tilewright::emulation {
namespace {
constexpr int kWarpSize = 32;
// Every pattern of it is NaN in all floating-point types, and far out of range as an index.
constexpr uint8_t kPoison = 0xFF;

std::string thread_name(int thread) { return "thread " + std::to_string(thread); }
}  // namespace

void SharedMemory::reset(size_t bytes) {
  size_ = bytes;
  bytes_.assign(bytes, kPoison);
  granules_.assign((bytes + kGranule - 1) / kGranule, Granule{});
}

bool SharedMemory::contains(const void* p, size_t bytes) const {
  const auto* at = static_cast<const uint8_t*>(p);
  return at >= bytes_.data() && bytes <= size_ && at <= bytes_.data() + (size_ - bytes);
}

bool SharedMemory::ordered(int before, Moment then, int thread, Moment now) {
  if (before == thread || then.block < now.block) return true;
  return before / kWarpSize == thread / kWarpSize && then.warp < now.warp;
}

bool SharedMemory::reads_ordered(const Granule& g, int thread, Moment now) {
  if (g.reader == kNobody || g.read.block < now.block) return true;
  if (g.reader >= 0) return ordered(g.reader, g.read, thread, now);
  return g.reader_warp == thread / kWarpSize && g.read.warp < now.warp;
}

std::string SharedMemory::where(size_t granule) const {
  return "shared byte " + std::to_string(granule * kGranule) + " of " + std::to_string(size_);
}

std::string SharedMemory::in_flight(size_t granule, const char* used) const {
  const Granule& g = granules_[granule];
  return where(granule) + " is " + used + " while an asynchronous copy of " + thread_name(g.copier) + " (line " +
         std::to_string(g.copier_line) + ") may still be writing it";
}

std::optional<std::pair<Fault, std::string>> SharedMemory::read(const void* p, size_t bytes, int thread, Moment now) {
  const size_t offset = static_cast<size_t>(static_cast<const uint8_t*>(p) - bytes_.data());
  for (size_t i = offset / kGranule; i < (offset + bytes + kGranule - 1) / kGranule; ++i) {
    Granule& g = granules_[i];
    if (g.copier != kNobody) return std::pair(Fault::kCopyInFlight, in_flight(i, "read"));
    if (g.writer == kNobody) return std::pair(Fault::kSharedUnwritten, where(i) + " is read, and nothing wrote it");
    if (!ordered(g.writer, g.written, thread, now))
      return std::pair(Fault::kSharedRace, where(i) + " is read, which " + thread_name(g.writer) + " wrote (line " +
                                               std::to_string(g.writer_line) + ") with no barrier since");
    // The readers since the last barrier, as far as a later write has to know them.
    const int warp = thread / kWarpSize;
    if (g.reader == kNobody || g.read.block < now.block) {
      g.reader = thread, g.reader_warp = warp, g.read = now;
    } else {
      if (g.reader != thread) g.reader = kSeveral;
      if (g.reader_warp != warp) g.reader_warp = kSeveral;
      if (g.read.warp < now.warp) g.read.warp = now.warp;
    }
  }
  return std::nullopt;
}

std::optional<std::pair<Fault, std::string>> SharedMemory::write(const void* p, size_t bytes, int thread, Moment now,
                                                                 Here here) {
  const size_t offset = static_cast<size_t>(static_cast<const uint8_t*>(p) - bytes_.data());
  for (size_t i = offset / kGranule; i < (offset + bytes + kGranule - 1) / kGranule; ++i) {
    Granule& g = granules_[i];
    if (g.copier != kNobody) return std::pair(Fault::kCopyInFlight, in_flight(i, "written"));
    if (g.writer != kNobody && !ordered(g.writer, g.written, thread, now))
      return std::pair(Fault::kSharedRace, where(i) + " is written, which " + thread_name(g.writer) +
                                               " wrote as well (line " + std::to_string(g.writer_line) +
                                               ") with no barrier since");
    if (!reads_ordered(g, thread, now))
      return std::pair(Fault::kSharedRace, where(i) + " is written, which " +
                                               (g.reader >= 0 ? thread_name(g.reader) : std::string("other threads")) +
                                               " read, with no barrier since");
    g.writer = thread, g.written = now, g.writer_line = here.line;
    g.reader = kNobody;
  }
  return std::nullopt;
}

std::optional<std::pair<Fault, std::string>> SharedMemory::begin_copy(void* p, size_t bytes, int thread, Moment now,
                                                                      Here here) {
  // It may land at once, so it has to be ordered as a write is; and it may land late, so until then nothing is there.
  if (auto wrong = write(p, bytes, thread, now, here)) return wrong;
  const size_t offset = static_cast<size_t>(static_cast<const uint8_t*>(p) - bytes_.data());
  for (size_t i = offset / kGranule; i < (offset + bytes) / kGranule; ++i) {
    granules_[i].copier = thread;
    granules_[i].copier_line = here.line;
  }
  std::memset(p, kPoison, bytes);
  return std::nullopt;
}

std::optional<std::pair<Fault, std::string>> SharedMemory::end_copy(void* p, size_t bytes, int thread, Moment now,
                                                                    Here here) {
  const size_t offset = static_cast<size_t>(static_cast<const uint8_t*>(p) - bytes_.data());
  for (size_t i = offset / kGranule; i < (offset + bytes) / kGranule; ++i) granules_[i].copier = kNobody;
  return write(p, bytes, thread, now, here);
}

}  // namespace tilewright::emulation
