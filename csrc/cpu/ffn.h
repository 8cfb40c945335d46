// What the forward and the backward of the feed-forward block share: matrices read and written a vector at a time, and
// the dropout mask.
#pragma once

#include "../common/philox.h"
#include "ffn_math.h"
#include "gemm.h"

namespace tilewright {
namespace TW_ISA {

// A strided matrix of any storage type that widens to A; null data is an absent one.
struct Matrix {
  void* data = nullptr;
  DType dtype = DType::kFloat32;
  int64_t row_stride = 0, column_stride = 1;

  TW_MEMBER explicit operator bool() const { return data != nullptr; }
  TW_MEMBER Operand operand() const { return {data, dtype, row_stride, column_stride}; }
  TW_MEMBER Operand transposed() const { return {data, dtype, column_stride, row_stride}; }
  TW_MEMBER Matrix from_row(int64_t row) const {
    if (data == nullptr) return *this;
    return {static_cast<char*>(data) + row * row_stride * size_of(dtype), dtype, row_stride, column_stride};
  }
};

// Starts loading the two cache lines at an element.
TW_INLINE void prefetch_at(const Matrix& m, int64_t row, int64_t column) {
  const char* at =
      static_cast<const char*>(m.data) + (row * m.row_stride + column * m.column_stride) * size_of(m.dtype);
  __builtin_prefetch(at);
  __builtin_prefetch(at + 64);
}

TW_INLINE Matrix matrix(const View4& view, DType dtype) { return {view.data, dtype, view.stride[0], view.stride[1]}; }
TW_INLINE Matrix contiguous(const void* data, DType dtype, int64_t columns) {
  return {const_cast<void*>(data), dtype, columns, 1};
}
template <class A>
constexpr DType kAccumulatorDType = sizeof(A) == 8 ? DType::kFloat64 : DType::kFloat32;

// A matrix of accumulators in working memory. Its rows are padded so that whole vectors can be read and written, and so
// that rows of a power-of-two length do not all fall on the same lines of a cache.
template <class A>
struct Buffer {
  A* data = nullptr;
  int64_t stride = 0;

  static constexpr int64_t padded(int64_t columns) { return (columns + 15) / 16 * 16 + 16; }
  TW_MEMBER Matrix matrix() const { return {data, sizeof(A) == 8 ? DType::kFloat64 : DType::kFloat32, stride, 1}; }
  TW_MEMBER Vec<A> read(int64_t row, int64_t column) const { return load(data + row * stride + column); }
  TW_MEMBER void write(int64_t row, int64_t column, Vec<A> v) const { store(data + row * stride + column, v); }
  // The first `count` lanes: what follows belongs to somebody else.
  TW_MEMBER void write(int64_t row, int64_t column, Vec<A> v, int count) const {
    if (count == Simd<A>::lanes) return write(row, column, v);
    for (int i = 0; i < count; ++i) data[row * stride + column + i] = v[i];
  }
};

// Rows [row, row + rows) of columns [column, column + columns) into `tile`, or out of it, whose rows are `stride` apart. A
// whole tile of a product at a time: the storage type is looked up once for it. Not inlined: a dozen copies would be
// half of the compile time.
template <class A>
TW_NOINLINE void read(const Matrix& m, int64_t row, int64_t column, int rows, int columns, A* tile, int64_t stride) {
  constexpr int L = Simd<A>::lanes;
  with_dtype<A>(m.dtype, [&](auto t) {
    for (int i = 0; i < rows; ++i) {
      const auto* p = static_cast<const decltype(t)*>(m.data) + (row + i) * m.row_stride + column * m.column_stride;
      int j = 0;
      if (m.column_stride == 1)
        for (; j + L <= columns; j += L) store(tile + i * stride + j, load(p + j));
      for (; j < columns; ++j) tile[i * stride + j] = to_float(p[j * m.column_stride]);
    }
  });
}

template <class A>
TW_NOINLINE void write(const Matrix& m, int64_t row, int64_t column, int rows, int columns, const A* tile,
                       int64_t stride) {
  constexpr int L = Simd<A>::lanes;
  with_dtype<A>(m.dtype, [&](auto t) {
    using T = decltype(t);
    for (int i = 0; i < rows; ++i) {
      T* p = static_cast<T*>(m.data) + (row + i) * m.row_stride + column * m.column_stride;
      int j = 0;
      if (m.column_stride == 1)
        for (; j + L <= columns; j += L) store(p + j, load(tile + i * stride + j));
      for (; j < columns; ++j) p[j * m.column_stride] = from_accumulator<T>(tile[i * stride + j]);
    }
  });
}

// The same for the tile's own place in a matrix that has the product's shape, `row` rows and `column` columns further.
template <class A>
TW_INLINE void read(const Matrix& m, const FinishedTile<A>& t, int64_t row, int64_t column, A* tile) {
  read(m, row + t.m, column + t.n, t.rows, t.columns, tile, t.stride);
}
template <class A>
TW_INLINE void write(const Matrix& m, const FinishedTile<A>& t, int64_t row, int64_t column, const A* tile) {
  write(m, row + t.m, column + t.n, t.rows, t.columns, tile, t.stride);
}

// A bias widened into a buffer of one row; zeros for an absent one.
template <class A>
void widen_bias(const void* bias, DType dtype, int64_t size, const Buffer<A>& buffer) {
  std::memset(buffer.data, 0, static_cast<size_t>(buffer.stride) * sizeof(A));
  if (bias != nullptr) read(contiguous(bias, dtype, size), 0, 0, 1, static_cast<int>(size), buffer.data, buffer.stride);
}

// f(row of the tile, column of the tile, lanes in use, place in the tile) for every vector of a tile.
template <class A, class F>
TW_INLINE void for_vectors(const FinishedTile<A>& tile, const F& f) {
  constexpr int L = Simd<A>::lanes;
  for (int i = 0; i < tile.rows; ++i)
    for (int j = 0; j < tile.columns; j += L) f(i, j, tile.columns - j < L ? tile.columns - j : L, i * tile.stride + j);
}

// Inverted dropout: 0 or 1 / (1 - p) for elements (row, column ...) of the output; see philox.h.
class Dropout {
 public:
  TW_MEMBER explicit Dropout(const FfnParams& p)
      : on_(p.rng != nullptr), threshold_(dropout_threshold(p.dropout_p)), scale_(dropout_scale(p.dropout_p)) {
    if (on_) seed_ = static_cast<uint64_t>(p.rng[0]), offset_ = static_cast<uint32_t>(p.rng[1]);
  }
  TW_MEMBER explicit operator bool() const { return on_; }

  template <class A>
  TW_MEMBER Vec<A> factors(int64_t row, int64_t column, int count) const {
    Vec<A> v{};
    Philox4 bits{};
    for (int i = 0; i < count; ++i) {
      const int64_t at = column + i;
      if (i == 0 || at % 4 == 0)
        bits = philox(seed_, static_cast<uint32_t>(at / 4), static_cast<uint32_t>(row),
                      static_cast<uint32_t>(row >> 32), offset_);
      v[i] = bits.lane[at % 4] >= threshold_ ? static_cast<A>(scale_) : A{0};
    }
    return v;
  }

 private:
  bool on_;
  uint32_t threshold_, offset_ = 0;
  uint64_t seed_ = 0;
  double scale_;
};

// What the module re-checks for memory safety; the rest was validated in Python.
TW_INLINE bool valid_shape(const FfnParams& p) {
  return p.rows >= 0 && p.in_features >= 0 && p.hidden >= 0 && p.out_features >= 0 && p.num_threads >= 1;
}

}  // namespace TW_ISA
}  // namespace tilewright
