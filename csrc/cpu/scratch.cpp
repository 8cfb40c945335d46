#include "scratch.h"

#include <atomic>
#include <cstdlib>
#include <cstring>

namespace tilewright {
namespace {

constexpr size_t kAlignment = 64;
// A training step of a small model needs some 40 MiB in each feed-forward block; fresh pages for it cost 5% of its
// time.
constexpr size_t kKeepBytes = size_t{64} << 20;

std::atomic<bool> poison{false};

struct Kept {
  char* data = nullptr;
  size_t bytes = 0;
  ~Kept() { std::free(data); }
};
thread_local Kept kept;

}  // namespace

Scratch::Scratch(size_t bytes) : data_(nullptr), bytes_((bytes + kAlignment - 1) / kAlignment * kAlignment) {
  if (bytes == 0) return;
  if (kept.bytes >= bytes_) {
    data_ = kept.data;
    bytes_ = kept.bytes;
    kept.data = nullptr;
    kept.bytes = 0;
  } else {
    data_ = static_cast<char*>(std::aligned_alloc(kAlignment, bytes_));
  }
  if (data_ != nullptr && poison.load(std::memory_order_relaxed)) std::memset(data_, 0xFF, bytes_);
}

Scratch::~Scratch() {
  if (data_ != nullptr && bytes_ <= kKeepBytes && bytes_ > kept.bytes) {
    std::free(kept.data);
    kept.data = data_;
    kept.bytes = bytes_;
  } else {
    std::free(data_);
  }
}

void poison_scratch(bool on) { poison.store(on, std::memory_order_relaxed); }

}  // namespace tilewright
