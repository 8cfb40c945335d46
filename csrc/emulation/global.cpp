#include "global.h"

#include <algorithm>

namespace tilewright::emulation {

void GlobalMemory::add(const char* name, const void* data, size_t element, const int64_t* sizes, const int64_t* strides,
                       int rank, Use use) {
  if (data == nullptr) return;
  int64_t low = 0, high = 0;
  for (int d = 0; d < rank; ++d) {
    if (sizes[d] <= 0) return;
    const int64_t reach = (sizes[d] - 1) * strides[d];
    (reach < 0 ? low : high) += reach;
  }
  const auto base = reinterpret_cast<uintptr_t>(data);
  Range range{name,
              base + static_cast<uintptr_t>(low * static_cast<int64_t>(element)),
              base + static_cast<uintptr_t>((high + 1) * static_cast<int64_t>(element)),
              use != Use::kInput,
              use != Use::kOutput,
              {}};
  // Views of one tensor overlap (q, k and v of a fused projection; a cache that is read and appended to). They become
  // one range, writable if one of them is.
  const auto overlaps = [&](const Range& r) { return r.begin < range.end && range.begin < r.end; };
  for (auto it = std::find_if(ranges_.begin(), ranges_.end(), overlaps); it != ranges_.end();
       it = std::find_if(ranges_.begin(), ranges_.end(), overlaps)) {
    range.begin = std::min(range.begin, it->begin);
    range.end = std::max(range.end, it->end);
    range.writable |= it->writable;
    range.written |= it->written;
    ranges_.erase(it);
  }
  const auto above = [&](const Range& r) { return r.begin > range.begin; };
  ranges_.insert(std::find_if(ranges_.begin(), ranges_.end(), above), std::move(range));
}

Range* GlobalMemory::find(uintptr_t address) {
  if (ranges_.empty()) return nullptr;
  auto it = std::upper_bound(ranges_.begin(), ranges_.end(), address,
                             [](uintptr_t a, const Range& r) { return a < r.begin; });
  return &*(it == ranges_.begin() ? it : it - 1);
}

std::string GlobalMemory::describe(uintptr_t address) const {
  if (address < 4096) return "a null pointer";
  const Range* nearest = nullptr;
  uintptr_t least = UINTPTR_MAX;
  for (const Range& r : ranges_) {
    const uintptr_t distance = address < r.begin ? r.begin - address : address >= r.end ? address - r.end + 1 : 0;
    if (distance < least) least = distance, nearest = &r;
  }
  if (nearest == nullptr) return "no tensor";
  const std::string name = nearest->name;
  if (address < nearest->begin) return std::to_string(nearest->begin - address) + " bytes before " + name;
  if (address >= nearest->end) return std::to_string(address - nearest->end) + " bytes past the end of " + name;
  return "byte " + std::to_string(address - nearest->begin) + " of " + name;
}

void GlobalMemory::begin_launch(bool history) {
  for (Range& r : ranges_) {
    if (history && r.writable && r.writers.empty()) r.writers.assign(r.end - r.begin, 0);
    for (uint32_t& writer : r.writers)
      if (writer != 0) writer = Range::kEarlier;
  }
}

}  // namespace tilewright::emulation
