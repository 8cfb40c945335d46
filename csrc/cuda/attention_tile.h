// One tile of attention on the tensor cores: how tiles lie in shared memory, and the fragments of a warp's products.
//
// A warp has 16 query rows. In the products' layout lane 4 g + t holds, of each 16 x 8 tile of scores, rows g and g + 8
// and columns 2 t and 2 t + 1; two such tiles side by side are the left operand of the second product as they are.
#pragma once

#include <primitives/copy.h>
#include <primitives/mma.h>

#include "../common/params.h"

namespace tilewright::gpu {

// Rows of kWidth elements of T, in chunks of 16 bytes, chunk c of row r at place c ^ (r % 8): the rows that one
// instruction reads lie in different banks.
template <class T, int kWidth>
struct Tile {
  static constexpr int kChunk = 16 / int{sizeof(T)};
  static constexpr int kChunks = kWidth / kChunk;
  static_assert(kChunks % 8 == 0, "a row has fewer chunks than are swizzled");
  Shared<T> at;

  TW_DEVICE Shared<T> chunk(int row, int c) const { return at + row * kWidth + (c ^ row % 8) * kChunk; }
  TW_DEVICE Shared<T> element(int row, int column) const { return chunk(row, column / kChunk) + column % kChunk; }

  // Issues the copies of `rows` rows from a matrix of `limit` rows and `width` columns, zeros for what is not there; by
  // all threads of the block. With kWide every row of it begins at a multiple of 16 bytes.
  template <bool kWide, class Row>
  TW_DEVICE void copy(int rows, Row row_of, int64_t first, int64_t limit, int width) const {
    for (int i = thread_index(); i < rows * kChunks; i += block_threads()) {
      const int row = i / kChunks, c = i % kChunks, inside = width - c * kChunk;
      const bool there = first + row < limit && inside > 0;
      const int count = !there ? 0 : inside < kChunk ? inside : kChunk;
      if constexpr (kWide) {
        copy_async<16>(chunk(row, c), there ? row_of(first + row) + c * kChunk : row_of(first), count);
      } else {
        Vector<T, kChunk> values;
        TW_UNROLL for (int e = 0; e < kChunk; ++e) values[e] =
            e < count ? row_of(first + row).load(c * kChunk + e) : narrow<T>(0.0f);
        chunk(row, c).template store_vector<kChunk>(0, values);
      }
    }
  }
};

// The products of 16-bit types: 16 deep.
template <class T, int kWidth>
struct Fragments {
  static constexpr int kDepth = 16;
  struct A {
    uint32_t r[4];
  };
  struct B {
    uint32_t r[2];
  };
  using Rows = Tile<T, kWidth>;

  // Of 16 rows from `row` on and kDepth columns from `depth` on.
  TW_DEVICE static A left(const Rows& tile, int row, int depth) {
    const int lane = lane_index();
    A a;
    load_matrices(a.r, tile.chunk(row + lane % 16, depth / 8 + lane / 16));
    return a;
  }
  // Of the transpose of rows [row, row + 16): two products' right operands, of 8 rows each.
  TW_DEVICE static void right_of_rows(const Rows& tile, int row, int depth, B& first, B& second) {
    const int lane = lane_index();
    uint32_t r[4];
    load_matrices(r, tile.chunk(row + lane % 8 + lane / 16 * 8, depth / 8 + lane / 8 % 2));
    first = {{r[0], r[1]}};
    second = {{r[2], r[3]}};
  }
  // Of kDepth rows from `row` on: the right operands for columns [column, column + 16).
  TW_DEVICE static void right_of_columns(const Rows& tile, int row, int column, B& first, B& second) {
    const int lane = lane_index();
    uint32_t r[4];
    load_matrices_transposed(r, tile.chunk(row + lane % 16, column / 8 + lane / 16));
    first = {{r[0], r[1]}};
    second = {{r[2], r[3]}};
  }
  // Two tiles of scores side by side as a left operand.
  TW_DEVICE static A left_of_scores(const float (&x)[4], const float (&y)[4]) {
    return {{pack<T>(x[0], x[1]), pack<T>(x[2], x[3]), pack<T>(y[0], y[1]), pack<T>(y[2], y[3])}};
  }
  TW_DEVICE static void multiply(float (&d)[4], const A& a, const B& b) { multiply_16x8x16<T>(d, a.r, b.r); }
};

}  // namespace tilewright::gpu
