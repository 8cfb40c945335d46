// Tiles of matrices in shared memory, and the operands of a warp's products on the tensor cores.
//
// A warp multiplies 16 rows by columns in tiles of 8. In the products' layout lane 4 g + t holds, of each 16 x 8 tile of
// results, rows g and g + 8 and columns 2 t and 2 t + 1.
//
// A step of a product is two chunks of 16 bytes deep: 16 numbers of 16 bits, 8 of float32. A float32 number is split in
// two TF32 numbers of 11 bits, which leave at most its last bit; three products keep all but about 2^-22 of the result.
#pragma once

#include <primitives/copy.h>
#include <primitives/mma.h>

#include "../common/params.h"

namespace tilewright::gpu {

template <class T>
constexpr int kChunk = 16 / int{sizeof(T)};
template <class T>
constexpr int kDepth = 2 * kChunk<T>;

// Rows of kWidth elements of T, in chunks of 16 bytes, chunk c of row r at place c ^ (r % 8): the rows that one
// instruction reads lie in different banks.
template <class T, int kWidth>
struct Tile {
  static constexpr int kChunks = kWidth / kChunk<T>;
  static_assert(kChunks % 8 == 0, "a row has fewer chunks than are swizzled");
  Shared<T> at;

  TW_DEVICE Shared<T> chunk(int row, int c) const { return at + row * kWidth + (c ^ row % 8) * kChunk<T>; }
  TW_DEVICE T element(int row, int column) const { return chunk(row, column / kChunk<T>).load(column % kChunk<T>); }

  // Issues the copies of `rows` rows from a matrix of `limit` rows and `width` columns, zeros for what is not there; by
  // all threads of the block. wide: every row of it begins at a multiple of 16 bytes.
  template <class Row>
  TW_DEVICE void copy(int rows, Row row_of, int64_t first, int64_t limit, int width, bool wide) const {
    copy(rows, row_of, first, limit, width, wide, thread_index(), block_threads());
  }
  // The same by threads `begin`, `begin` + 1, ... of `threads`.
  template <class Row>
  TW_DEVICE void copy(int rows, Row row_of, int64_t first, int64_t limit, int width, bool wide, int begin,
                      int threads) const {
    for (int i = begin; i < rows * kChunks; i += threads) {
      const int row = i / kChunks, c = i % kChunks, inside = width - c * kChunk<T>;
      const bool there = first + row < limit && inside > 0;
      const int count = !there ? 0 : inside < kChunk<T> ? inside : kChunk<T>;
      const Global<const T> from = row_of(there ? first + row : first) + (there ? c * kChunk<T> : 0);
      if (wide) {
        copy_async<16>(chunk(row, c), from, count);
      } else {
        Vector<T, kChunk<T>> values;
        TW_UNROLL for (int e = 0; e < kChunk<T>; ++e) values[e] = e < count ? from.load(e) : narrow<T>(0.0f);
        chunk(row, c).template store_vector<kChunk<T>>(0, values);
      }
    }
  }

  // Two neighbours of a row, from an even column on.
  TW_DEVICE void store_pair(int row, int column, float x, float y) const {
    const Shared<T> to = chunk(row, column / kChunk<T>) + column % kChunk<T>;
    if constexpr (sizeof(T) == 2)
      to.template as<uint32_t>().store(0, pack<T>(x, y));
    else
      to.template store_vector<2>(0, {{x, y}});
  }
  // To a matrix, as copy() is from one.
  template <class Row>
  TW_DEVICE void write(int rows, Row row_of, int64_t first, int64_t limit, int width, bool wide, int begin,
                       int threads) const {
    for (int i = begin; i < rows * kChunks; i += threads) {
      const int row = i / kChunks, c = i % kChunks, inside = width - c * kChunk<T>;
      if (first + row >= limit || inside <= 0) continue;
      const Global<T> to = row_of(first + row) + c * kChunk<T>;
      const auto values = chunk(row, c).template load_vector<kChunk<T>>();
      if (wide && inside >= kChunk<T>)
        to.template store_vector<kChunk<T>>(0, values);
      else
        TW_UNROLL for (int e = 0; e < kChunk<T>; ++e) if (e < inside) to.store(e, values[e]);
    }
  }
};

// A lane's part of an operand: 4 registers of a left one (16 rows), 2 of a right one (8 columns).
template <class T, int kRegisters>
struct Operand {
  uint32_t r[kRegisters];
};
template <int kRegisters>
struct Operand<float, kRegisters> {
  uint32_t r[kRegisters], low[kRegisters], last[kRegisters];
};
template <class T>
using Left = Operand<T, 4>;
template <class T>
using Right = Operand<T, 2>;

template <int kRegisters>
TW_DEVICE void split(Operand<float, kRegisters>& x) {
  TW_UNROLL for (int i = 0; i < kRegisters; ++i) {
    const float whole = float_of(x.r[i]);
    x.r[i] = to_tf32(whole);
    const float rest = whole - float_of(x.r[i]);
    x.low[i] = to_tf32(rest);
    x.last[i] = bits_of(rest - float_of(x.low[i]));
  }
}
// From the numbers, as they lie in memory.
template <class T>
TW_DEVICE Left<T> left_operand(uint32_t r0, uint32_t r1, uint32_t r2, uint32_t r3) {
  Left<T> a;
  a.r[0] = r0, a.r[1] = r1, a.r[2] = r2, a.r[3] = r3;
  if constexpr (sizeof(T) == 4) split(a);
  return a;
}
template <class T>
TW_DEVICE Right<T> right_operand(uint32_t r0, uint32_t r1) {
  Right<T> b;
  b.r[0] = r0, b.r[1] = r1;
  if constexpr (sizeof(T) == 4) split(b);
  return b;
}

// Of 16 rows from `row` on, kDepth columns from `depth` on.
template <class T, int kWidth>
TW_DEVICE Left<T> left(const Tile<T, kWidth>& tile, int row, int depth) {
  const int lane = lane_index();
  uint32_t r[4];
  load_matrices(r, tile.chunk(row + lane % 16, depth / kChunk<T> + lane / 16));
  return left_operand<T>(r[0], r[1], r[2], r[3]);
}

// Of the transpose of 16 rows from `row` on, kDepth columns from `depth` on: two operands, of 8 rows each.
template <class T, int kWidth>
TW_DEVICE void right_of_rows(const Tile<T, kWidth>& tile, int row, int depth, Right<T>& first, Right<T>& second) {
  const int lane = lane_index();
  uint32_t r[4];
  load_matrices(r, tile.chunk(row + lane % 8 + lane / 16 * 8, depth / kChunk<T> + lane / 8 % 2));
  first = right_operand<T>(r[0], r[1]);
  second = right_operand<T>(r[2], r[3]);
}

// Of kDepth rows from `row` on, two operands of 8 columns each, from `column` on. kOfScores: for left_of_scores, which
// has the depth of float32 in an order of its own.
template <bool kOfScores, class T, int kWidth>
TW_DEVICE void right_of_columns(const Tile<T, kWidth>& tile, int row, int column, Right<T>& first, Right<T>& second) {
  const int lane = lane_index();
  if constexpr (sizeof(T) == 2) {
    uint32_t r[4];
    load_matrices_transposed(r, tile.chunk(row + lane % 16, column / kChunk<T> + lane / 16));
    first = {{r[0], r[1]}};
    second = {{r[2], r[3]}};
  } else {
    const int low = row + (kOfScores ? 2 * (lane % 4) : lane % 4), high = low + (kOfScores ? 1 : 4);
    const auto at = [&](int r, int c) { return bits_of(tile.element(r, c)); };
    column += lane / 4;
    first = right_operand<T>(at(low, column), at(high, column));
    second = right_operand<T>(at(low, column + 8), at(high, column + 8));
  }
}

// Results of an earlier product, kDepth of their columns from tile n on, as a left operand.
template <class T, int kTiles>
TW_DEVICE Left<T> left_of_scores(const float (&x)[kTiles][4], int n) {
  if constexpr (sizeof(T) == 2) {
    return {{pack<T>(x[n][0], x[n][1]), pack<T>(x[n][2], x[n][3]), pack<T>(x[n + 1][0], x[n + 1][1]),
             pack<T>(x[n + 1][2], x[n + 1][3])}};
  } else {
    // Column 2 t stands for t, and 2 t + 1 for t + 4.
    return left_operand<T>(bits_of(x[n][0]), bits_of(x[n][2]), bits_of(x[n][1]), bits_of(x[n][3]));
  }
}

// d (16 x 8) += a b. kWhole: with b to its last bit, where the result is as good as that bit.
template <class T, bool kWhole = false>
TW_DEVICE void multiply(float (&d)[4], const Left<T>& a, const Right<T>& b) {
  if constexpr (sizeof(T) == 2) {
    multiply_16x8x16<T>(d, a.r, b.r);
  } else {
    // Tensor cores cut off what does not fit into their sum, so a long sum is rounded here (Ootomo & Yokota 2022).
    float sum[4] = {};
    if constexpr (kWhole) multiply_16x8x8(sum, a.r, b.last);
    multiply_16x8x8(sum, a.low, b.r);
    multiply_16x8x8(sum, a.r, b.low);
    multiply_16x8x8(sum, a.r, b.r);
    TW_UNROLL for (int e = 0; e < 4; ++e) d[e] += sum[e];
  }
}

// The sum over the four lanes that share a row.
TW_DEVICE float sum_of_quad(float x) {
  x += shuffle_xor(x, 1);
  return x + shuffle_xor(x, 2);
}

// d += a b^T, of a warp's 16 rows of a from `row` on and all rows of b that d has columns for.
template <class T, int kWidth, int kTiles>
TW_DEVICE void multiply_rows(float (&d)[kTiles][4], const Tile<T, kWidth>& a, int row, const Tile<T, kWidth>& b) {
  static_assert(kTiles % 2 == 0);
  TW_UNROLL for (int depth = 0; depth < kWidth; depth += kDepth<T>) {
    const Left<T> x = left(a, row, depth);
    TW_UNROLL for (int n = 0; n < kTiles; n += 2) {
      Right<T> y0, y1;
      right_of_rows(b, 8 * n, depth, y0, y1);
      multiply<T>(d[n], x, y0);
      multiply<T>(d[n + 1], x, y1);
    }
  }
}

// d += scores b, of the columns of b from `column` on that d has.
template <class T, int kWidth, int kTiles, int kColumnTiles>
TW_DEVICE void multiply_scores(float (&d)[kColumnTiles][4], const float (&scores)[kTiles][4], const Tile<T, kWidth>& b,
                               int column = 0) {
  static_assert(8 * kTiles % kDepth<T> == 0 && kColumnTiles % 2 == 0);
  TW_UNROLL for (int n = 0; n < kTiles; n += kDepth<T> / 8) {
    const Left<T> x = left_of_scores<T>(scores, n);
    TW_UNROLL for (int c = 0; c < kColumnTiles; c += 2) {
      Right<T> y0, y1;
      right_of_columns<true>(b, 8 * n, column + 8 * c, y0, y1);
      multiply<T, true>(d[c], x, y0);
      multiply<T, true>(d[c + 1], x, y1);
    }
  }
}

}  // namespace tilewright::gpu
