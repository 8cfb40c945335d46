// A warp's operands of products on the tensor cores, 16 deep, and the products. In their layout lane 4 g + t holds, of each
// 16 x 8 tile of results, rows g and g + 8 and columns 2 t and 2 t + 1.
//
// float32 goes through the tensor cores as bfloat16: a number is the sum of three, of 8 bits each, and six of the nine
// products keep all but 2^-26 of the result (Henry, Tang & Heinecke, "Leveraging the bfloat16 artificial intelligence
// datatype for higher-precision computations", 2019). They take the time of three TF32 products, which would lose the last
// bit of either number and the product of their lower halves: more than float32's own rounding.
//
// Which place along the depth a number has does not matter, as long as it is the same in both operands. Of float32, lane
// 4 g + t has numbers t, t + 4, t + 8 and t + 12.
#pragma once

#include <primitives/mma.h>

#include "tile.h"

namespace tilewright::gpu {

constexpr int kDeep = 16;

template <class T, int kRegisters>
struct Fragment {
  static constexpr int kParts = sizeof(T) == 2 ? 1 : 3;
  uint32_t r[kParts][kRegisters];

  // Register i, from two numbers as they lie in memory: a word of 16-bit ones, or two words.
  TW_DEVICE void set(int i, uint32_t pair) { r[0][i] = pair; }
  TW_DEVICE void set(int i, uint32_t first, uint32_t second) {
    float x = float_of(first), y = float_of(second);
    TW_UNROLL for (int part = 0; part < kParts; ++part) {
      r[part][i] = pack<BFloat16>(x, y);
      x -= float_of(r[part][i] << 16);
      y -= float_of(r[part][i] & 0xFFFF0000u);
    }
  }
};
// 16 rows; 8 columns.
template <class T>
using LeftFragment = Fragment<T, 4>;
template <class T>
using RightFragment = Fragment<T, 2>;

// d (16 x 8) += a b. kTransposed: with the very sums of b^T a^T.
template <class T, bool kTransposed = false>
TW_DEVICE void multiply(float (&d)[4], const LeftFragment<T>& a, const RightFragment<T>& b) {
  if constexpr (sizeof(T) == 2) {
    multiply_16x8x16<T>(d, a.r[0], b.r[0]);
  } else {
    // Tensor cores cut off what does not fit into their sum, so long sums are rounded here (Ootomo & Yokota 2022).
    float sum[4] = {}, rest[4] = {};
    constexpr int kLow = kTransposed ? 0 : 2;
    multiply_16x8x16<BFloat16>(rest, a.r[kLow], b.r[2 - kLow]);
    multiply_16x8x16<BFloat16>(rest, a.r[1], b.r[1]);
    multiply_16x8x16<BFloat16>(rest, a.r[2 - kLow], b.r[kLow]);
    multiply_16x8x16<BFloat16>(rest, a.r[!kTransposed], b.r[kTransposed]);
    multiply_16x8x16<BFloat16>(rest, a.r[kTransposed], b.r[!kTransposed]);
    multiply_16x8x16<BFloat16>(sum, a.r[0], b.r[0]);
    // Of an infinity the other parts are inf - inf, NaN: then the product of the first ones is the whole.
    TW_UNROLL for (int e = 0; e < 4; ++e) d[e] += is_finite(rest[e]) ? sum[e] + rest[e] : sum[e];
  }
}

// Of rows `row` to `row` + 15, from `depth` on, of a tile that lies row by row.
template <class T, int kWidth>
TW_DEVICE void load_left(LeftFragment<T>& a, const Tile<T, kWidth>& tile, int row, int depth) {
  const int lane = lane_index();
  const auto chunk = tile.chunk(row + lane % 16, depth / kChunk<T> + lane / 16);
  uint32_t r[4];
  load_matrices(r, chunk);
  if constexpr (sizeof(T) == 2) {
    TW_UNROLL for (int i = 0; i < 4; ++i) a.set(i, r[i]);
  } else {
    a.set(0, r[0], r[2]);
    a.set(1, r[1], r[3]);
    load_matrices(r, tile.chunk(row + lane % 16, depth / kChunk<T> + 2 + lane / 16));
    a.set(2, r[0], r[2]);
    a.set(3, r[1], r[3]);
  }
}
// The same of columns `row` to `row` + 15 of a tile that lies depth by depth.
template <class T, int kWidth>
TW_DEVICE void load_left_of_columns(LeftFragment<T>& a, const Tile<T, kWidth>& tile, int row, int depth) {
  const int lane = lane_index();
  if constexpr (sizeof(T) == 2) {
    uint32_t r[4];
    load_matrices_transposed(r, tile.chunk(depth + lane % 8 + lane / 16 * 8, row / kChunk<T> + lane / 8 % 2));
    TW_UNROLL for (int i = 0; i < 4; ++i) a.set(i, r[i]);
  } else {
    TW_UNROLL for (int i = 0; i < 4; ++i) {
      const int low = depth + lane % 4 + i / 2 * 8, column = row + lane / 4 + i % 2 * 8;
      a.set(i, bits_of(tile.element(low, column)), bits_of(tile.element(low + 4, column)));
    }
  }
}

// Rows `row` to `row` + 15 of a tile as columns of two operands.
template <class T, int kWidth>
TW_DEVICE void load_right(RightFragment<T> (&b)[2], const Tile<T, kWidth>& tile, int row, int depth) {
  const int lane = lane_index(), at = row + lane % 8 + lane / 16 * 8;
  uint32_t r[4];
  load_matrices(r, tile.chunk(at, depth / kChunk<T> + lane / 8 % 2));
  if constexpr (sizeof(T) == 2) {
    TW_UNROLL for (int i = 0; i < 4; ++i) b[i / 2].set(i % 2, r[i]);
  } else {
    b[0].set(0, r[0], r[1]);
    b[1].set(0, r[2], r[3]);
    load_matrices(r, tile.chunk(at, depth / kChunk<T> + 2 + lane / 8 % 2));
    b[0].set(1, r[0], r[1]);
    b[1].set(1, r[2], r[3]);
  }
}
// The same of columns `row` to `row` + 15 of a tile that lies depth by depth.
template <class T, int kWidth>
TW_DEVICE void load_right_of_columns(RightFragment<T> (&b)[2], const Tile<T, kWidth>& tile, int row, int depth) {
  const int lane = lane_index();
  if constexpr (sizeof(T) == 2) {
    uint32_t r[4];
    load_matrices_transposed(r, tile.chunk(depth + lane % 16, row / kChunk<T> + lane / 16));
    TW_UNROLL for (int i = 0; i < 4; ++i) b[i / 2].set(i % 2, r[i]);
  } else {
    TW_UNROLL for (int i = 0; i < 4; ++i) {
      const int low = depth + lane % 4 + i % 2 * 8, column = row + lane / 4 + i / 2 * 8;
      b[i / 2].set(i % 2, bits_of(tile.element(low, column)), bits_of(tile.element(low + 4, column)));
    }
  }
}
// The same for left_of_scores.
template <class T, int kWidth>
TW_DEVICE void load_right_of_scores(RightFragment<T> (&b)[2], const Tile<T, kWidth>& tile, int row, int depth) {
  if constexpr (sizeof(T) == 2) {
    load_right_of_columns(b, tile, row, depth);
  } else {
    // Lane 4 g + t takes rows 2 t and 2 t + 1 of eight, whose chunk 2 m + h is at place 2 (m ^ t) + h and, of the second,
    // 2 (m ^ t) + (h ^ 1). Told so, the compiler keeps four numbers, m ^ t of m < 4, for the addresses in all columns.
    const int lane = lane_index(), t = lane % 4, h = lane / 16;
    TW_UNROLL for (int i = 0; i < 4; ++i) {
      const int low = depth + 2 * t + i % 2 * 8, m = row / 8 + i / 2;
      const Shared<T> at = tile.at + low * kWidth + ((m & ~3) * 8 + ((m & 3) ^ t) * 8 + lane / 4 % 4);
      b[i / 2].set(i % 2, bits_of((at + h * 4).load()), bits_of((at + kWidth + (h ^ 1) * 4).load()));
    }
  }
}

// Results of an earlier product as a left operand: 16 of their columns, from tile n on. Of float32, lane 4 g + t has columns
// 2 t, 2 t + 1, 2 t + 8 and 2 t + 9.
template <class T, int kTiles>
TW_DEVICE LeftFragment<T> left_of_scores(const float (&x)[kTiles][4], int n) {
  LeftFragment<T> a;
  TW_UNROLL for (int i = 0; i < 4; ++i) {
    const float low = x[n + i / 2][i % 2 * 2], high = x[n + i / 2][i % 2 * 2 + 1];
    if constexpr (sizeof(T) == 2)
      a.set(i, pack<T>(low, high));
    else
      a.set(i, bits_of(low), bits_of(high));
  }
  return a;
}

// The sum over the four lanes that share a row.
TW_DEVICE float sum_of_quad(float x) {
  x += shuffle_xor(x, 1);
  return x + shuffle_xor(x, 2);
}

// d += a b^T, of a warp's 16 rows of a from `row` on and all rows of b that d has columns for. Tensor cores cut their sums off
// instead of rounding them: of a half type a sum is rounded, as it is added, every kChain columns (of float32 every step is).
// Without, the lse of a row with one key, or one large key, was up to 1.7 times as far off as from dot products in float32.
template <bool kTransposed = false, class T, int kWidth, int kTiles>
TW_DEVICE void multiply_rows(float (&d)[kTiles][4], const Tile<T, kWidth>& a, int row, const Tile<T, kWidth>& b) {
  constexpr int kChain = 32;
  static_assert(kTiles % 2 == 0 && kWidth % (2 * kChain) == 0);
  const auto add_step = [&](float (&to)[kTiles][4], int depth) {
    LeftFragment<T> x;
    load_left(x, a, row, depth);
    TW_UNROLL for (int n = 0; n < kTiles; n += 2) {
      RightFragment<T> y[2];
      load_right(y, b, 8 * n, depth);
      TW_UNROLL for (int m = 0; m < 2; ++m) multiply<T, kTransposed>(to[n + m], x, y[m]);
    }
  };
  if constexpr (sizeof(T) == 4) {  // whose operands in three parts leave no registers for more than a step
    TW_UNROLL_BY(1) for (int depth = 0; depth < kWidth; depth += kDeep) add_step(d, depth);
  } else {
    // As far unrolled as no kernel needs local memory.
    TW_UNROLL_BY(2) for (int begin = 0; begin < kWidth; begin += kChain) {
      float sum[kTiles][4] = {};
      TW_UNROLL_BY(1) for (int depth = begin; depth < begin + kChain; depth += kDeep) add_step(sum, depth);
      TW_UNROLL for (int n = 0; n < kTiles; ++n) TW_UNROLL for (int e = 0; e < 4; ++e) d[n][e] += sum[n][e];
    }
  }
}

// d += scores b, of the columns of b from `column` on that d has.
template <class T, int kWidth, int kTiles, int kColumnTiles>
TW_DEVICE void multiply_scores(float (&d)[kColumnTiles][4], const float (&scores)[kTiles][4], const Tile<T, kWidth>& b,
                               int column = 0) {
  static_assert(kTiles % 2 == 0 && kColumnTiles % 2 == 0);
  TW_UNROLL for (int n = 0; n < kTiles; n += 2) {
    const LeftFragment<T> x = left_of_scores<T>(scores, n);
    TW_UNROLL for (int c = 0; c < kColumnTiles; c += 2) {
      RightFragment<T> y[2];
      load_right_of_scores(y, b, column + 8 * c, 8 * n);
      multiply<T>(d[c], x, y[0]);
      multiply<T>(d[c + 1], x, y[1]);
    }
  }
}

}  // namespace tilewright::gpu
