// Tiles of matrices in shared memory.
#pragma once

#include <primitives/copy.h>
#include <primitives/number.h>

#include "../common/params.h"

namespace tilewright::gpu {

template <class T>
constexpr int kChunk = 16 / int{sizeof(T)};

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

}  // namespace tilewright::gpu
