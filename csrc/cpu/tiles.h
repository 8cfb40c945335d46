// Products of bfloat16 in tiles of 16 rows by 64 bytes: Intel's AMX, or the same in plain C++ where a test build has no
// such processor.
//
// A tile of the first operand is 16 rows by 32 of depth; of the second, 16 pairs of depth by 16 columns, a pair's two
// numbers side by side; of the result 16 x 16 floats. Products are exact and sums float, without denormals (Intel,
// "Intel Architecture Instruction Set Extensions Programming Reference", TDPBF16PS).
#pragma once

#include "simd.h"

namespace tilewright {
namespace TW_ISA {

constexpr int kTileSide = 16;                             // rows, and columns of a result
constexpr int64_t kTileDepth = 32;                        // numbers in a row of an operand's tile
constexpr int64_t kTileNumbers = kTileSide * kTileDepth;  // in an operand's tile: 1 KiB
static_assert(kFloatLanes == kTileSide, "a row of a tile is a vector");

// Two numbers of depth in each lane, the first in the low half.
using Pairs = vuint;

// Numbers, rounded to bfloat16: a's in the low halves of the lanes and b's in the high ones.
TW_INLINE Pairs interleave_pairs(vfloat a, vfloat b) {
#if defined(__AVX512BF16__)
  alignas(64) static constexpr uint16_t order[32] = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                                     8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  const __m512i halves = (__m512i)_mm512_cvtne2ps_pbh((__m512)b, (__m512)a);
  return (Pairs)_mm512_permutexvar_epi16(_mm512_load_si512(order), halves);
#else
  return __builtin_convertvector(narrow(a, BFloat16{}), vuint) | __builtin_convertvector(narrow(b, BFloat16{}), vuint)
                                                                     << 16;
#endif
}

// --- operands into tiles ---------------------------------------------------------------------------------------------

// 32 numbers of a row, `count` of which exist.
TW_INLINE Pairs load_pairs(const BFloat16* p, int64_t count) {
  Pairs v{};
  if (count >= kTileDepth)
    std::memcpy(&v, p, sizeof v);
  else
    std::memcpy(&v, p, static_cast<size_t>(count) * sizeof(BFloat16));
  return v;
}
TW_INLINE Pairs load_pairs(const float* p, int64_t count) {
  alignas(64) float numbers[kTileDepth] = {};
  if (count < kTileDepth) {
    std::memcpy(numbers, p, static_cast<size_t>(count) * sizeof(float));
    p = numbers;
  }
#if defined(__AVX512BF16__)
  return (Pairs)_mm512_cvtne2ps_pbh((__m512)load(p + kTileSide), (__m512)load(p));
#else
  const vushort halves[2] = {narrow(load(p), BFloat16{}), narrow(load(p + kTileSide), BFloat16{})};
  Pairs v;
  std::memcpy(&v, halves, sizeof v);
  return v;
#endif
}

// 16 numbers, `count` of which exist.
template <class T>
TW_INLINE vfloat load_numbers(const T* p, int64_t count) {
  return count >= kTileSide ? load(p) : load_partial(p, static_cast<int>(count));
}

TW_INLINE void transpose_pairs(Pairs (&r)[kTileSide]) {
  vfloat f[kTileSide];
  for (int i = 0; i < kTileSide; ++i) f[i] = (vfloat)r[i];
  transpose_block<float>(f);
  for (int i = 0; i < kTileSide; ++i) r[i] = (Pairs)f[i];
}

// dst = the tile of 16 rows and 32 of depth that begins at src, of which rows x depth exist; the rest is 0. As a first
// operand a line of it is a row; as a second (BY_PAIRS) it is a pair of depth, its columns being the rows given here.
template <bool BY_PAIRS, class T>
TW_INLINE void pack_tile(const T* src, int64_t row_stride, int64_t depth_stride, int64_t rows, int64_t depth,
                         BFloat16* dst) {
  Pairs r[kTileSide] = {};
  bool by_pairs = false;
  if (depth_stride == 1) {
    for (int i = 0; i < min64(rows, kTileSide); ++i) r[i] = load_pairs(src + i * row_stride, depth);
  } else if (row_stride == 1) {
    by_pairs = true;
    for (int64_t k = 0; k < min64(depth, kTileDepth); k += 2) {
      const T* pair = src + k * depth_stride;
      r[k / 2] = interleave_pairs(load_numbers(pair, rows),
                                  k + 1 < depth ? load_numbers(pair + depth_stride, rows) : vfloat{});
    }
  } else {
    for (int i = 0; i < min64(rows, kTileSide); ++i)
      for (int64_t k = 0; k < min64(depth, kTileDepth); ++k)
        r[i][k / 2] |= uint32_t{to_bfloat16(to_float(src[i * row_stride + k * depth_stride])).bits} << (k % 2 * 16);
  }
  if (by_pairs != BY_PAIRS) transpose_pairs(r);
  std::memcpy(dst, r, sizeof r);
}

// --- the product -----------------------------------------------------------------------------------------------------

#if defined(__AMX_BF16__)

// Sets up this thread's tile registers, and gives them back: a thread that holds none is cheaper to switch.
class TileScope {
 public:
  TW_MEMBER TileScope() {
    struct alignas(64) {
      uint8_t palette = 1, start_row = 0, reserved[14] = {};
      uint16_t bytes_in_row[16] = {};
      uint8_t rows[16] = {};
    } config;
    for (int i = 0; i < 8; ++i) config.bytes_in_row[i] = 64, config.rows[i] = kTileSide;
    barrier();
    _tile_loadconfig(&config);
  }
  TW_MEMBER ~TileScope() { _tile_release(); }
  TileScope(const TileScope&) = delete;
  TileScope& operator=(const TileScope&) = delete;
  // The compiler does not know that tile instructions read and write memory.
  TW_MEMBER static void barrier() { __asm__ volatile("" ::: "memory"); }
};

// c (ROWS x 2 tiles, its lines `stride` floats apart) = or += the products of `steps` tiles of depth. The ROWS tiles of
// a step of the first operand are contiguous and a_step numbers after those of the one before; the second operand is 2
// contiguous tiles a step.
template <int ROWS>
TW_INLINE void multiply_tile_rows(int64_t steps, const BFloat16* a, int64_t a_step, const BFloat16* b, float* c,
                                  int64_t stride, bool accumulate) {
  constexpr int64_t bytes = kTileDepth * int64_t{sizeof(BFloat16)};  // of an operand's line
  const int64_t line = stride * static_cast<int64_t>(sizeof(float));
  TileScope::barrier();
  if (accumulate) {
    _tile_loadd(0, c, line);
    _tile_loadd(1, c + kTileSide, line);
    if constexpr (ROWS == 2) {
      _tile_loadd(2, c + kTileSide * stride, line);
      _tile_loadd(3, c + kTileSide * stride + kTileSide, line);
    }
  } else {
    _tile_zero(0);
    _tile_zero(1);
    if constexpr (ROWS == 2) {
      _tile_zero(2);
      _tile_zero(3);
    }
  }
  for (int64_t s = 0; s < steps; ++s) {
    _tile_loadd(6, b, bytes);
    _tile_loadd(4, a, bytes);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(7, b + kTileNumbers, bytes);
    _tile_dpbf16ps(1, 4, 7);
    if constexpr (ROWS == 2) {
      _tile_loadd(5, a + kTileNumbers, bytes);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
    a += a_step;
    b += 2 * kTileNumbers;
  }
  _tile_stored(0, c, line);
  _tile_stored(1, c + kTileSide, line);
  if constexpr (ROWS == 2) {
    _tile_stored(2, c + kTileSide * stride, line);
    _tile_stored(3, c + kTileSide * stride + kTileSide, line);
  }
  TileScope::barrier();
}

#else

struct TileScope {
  TW_MEMBER TileScope() {}
  TW_MEMBER ~TileScope() {}
};

template <int ROWS>
TW_INLINE void multiply_tile_rows(int64_t steps, const BFloat16* a, int64_t a_step, const BFloat16* b, float* c,
                                  int64_t stride, bool accumulate) {
  for (int i = 0; i < ROWS * kTileSide; ++i)
    for (int j = 0; j < 2 * kTileSide; ++j) {
      float sum = accumulate ? c[i * stride + j] : 0.0f;
      for (int64_t k = 0; k < steps * kTileDepth; ++k) {
        const int64_t s = k / kTileDepth, d = k % kTileDepth;
        const BFloat16 x = a[s * a_step + i * kTileDepth + d];
        const BFloat16 y = b[(2 * s + j / kTileSide) * kTileNumbers + d / 2 * kTileDepth + j % kTileSide * 2 + d % 2];
        sum += to_float(x) * to_float(y);
      }
      c[i * stride + j] = sum;
    }
}

#endif

// The same for `rows` rows of c, at most two tiles of them; all of the last tile is written.
TW_INLINE void multiply_tiles(int64_t rows, int64_t steps, const BFloat16* a, int64_t a_step, const BFloat16* b,
                              float* c, int64_t stride, bool accumulate) {
  if (rows > kTileSide)
    multiply_tile_rows<2>(steps, a, a_step, b, c, stride, accumulate);
  else
    multiply_tile_rows<1>(steps, a, a_step, b, c, stride, accumulate);
}

}  // namespace TW_ISA
}  // namespace tilewright
