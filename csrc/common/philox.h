// Counter-based dropout masks: Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011).
//
// The mask is a pure function of (seed, offset, position), so forward and backward agree, every backend drops the same
// elements, and a sequence keeps its mask whether it is padded, packed or paged:
//
//   counter = (column / 4, row, plane, offset)    key = (low, high 32 bits of seed)    lane = column % 4
//   attention: column = key position, row = query position within the sequence, plane = b * H + h
//   ffn:       column = output feature, row = low 32 bits of the row, plane = its high 32 bits
//
// An element is kept when its 32 random bits are >= dropout_threshold(p), and then scaled by dropout_scale(p).
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define TW_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define TW_HOST_DEVICE inline __attribute__((always_inline))  // why: see TW_SHARED_INLINE in dtype.h
#endif

namespace tilewright {

struct Philox4 {
  uint32_t lane[4];
};

TW_HOST_DEVICE Philox4 philox(uint64_t seed, uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3) {
  uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = uint64_t{0xD2511F53u} * c0;
    const uint64_t p1 = uint64_t{0xCD9E8D57u} * c2;
    c0 = static_cast<uint32_t>(p1 >> 32) ^ c1 ^ k0;
    c1 = static_cast<uint32_t>(p1);
    c2 = static_cast<uint32_t>(p0 >> 32) ^ c3 ^ k1;
    c3 = static_cast<uint32_t>(p0);
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return {{c0, c1, c2, c3}};
}

// p in [0, 1]. At p = 1 nothing is kept: the threshold saturates and the scale is 0.
TW_HOST_DEVICE uint32_t dropout_threshold(double p) {
  const double t = p * 4294967296.0;
  return t >= 4294967295.0 ? 4294967295u : static_cast<uint32_t>(t);
}

TW_HOST_DEVICE double dropout_scale(double p) { return p < 1.0 ? 1.0 / (1.0 - p) : 0.0; }

}  // namespace tilewright
