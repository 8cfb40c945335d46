// Moving softmax's rows between the tensors and a buffer of accumulators: the only places that see storage types,
// strides and masks. A block holds either one row, or a tile of kTileLanes rows side by side (element j of lane l at [j
// * kTileLanes + l]) so that short rows and rows along another dimension fill vectors as well.
#pragma once

#include <type_traits>

#include "parallel.h"
#include "simd.h"

namespace tilewright {
namespace TW_ISA {

constexpr int kUnroll = 4;  // vectors in flight: hides the latency of max and add
template <class A>
constexpr int kLanes = Simd<A>::lanes;
template <class A>
constexpr int kTileLanes = kUnroll * kLanes<A>;

TW_INLINE int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }
TW_INLINE int64_t max64(int64_t a, int64_t b) { return a > b ? a : b; }
TW_INLINE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// e / sum. On machines with FMA, one step of Newton's iteration makes the product with the reciprocal as exact as a
// division, in a third of its time. A row without a kept score has sum 0 and divides its zeros by 1.
template <class V, class A>
struct Divisor {
  V sum, inverse;
  TW_MEMBER explicit Divisor(V s) : sum(s == V{} ? V{} + A{1} : s), inverse(A{1} / sum) {}
  TW_MEMBER V divide(V e) const {
#if defined(__FMA__)
    const V q = e * inverse;
    return q + (e - q * sum) * inverse;
#else
    return e / sum;
#endif
  }
};

// What the module re-checks for memory safety; the rest was validated in Python.
TW_INLINE bool valid_shape(const SoftmaxParams& p) {
  bool valid = p.row_dims >= 0 && p.row_dims <= kMaxRowDims && p.n >= 0 && p.num_threads >= 1;
  for (int d = 0; valid && d < p.row_dims; ++d) valid = p.row_shape[d] >= 0;
  return valid;
}

TW_INLINE int64_t row_count(const SoftmaxParams& p) {
  int64_t rows = 1;
  for (int d = 0; d < p.row_dims; ++d) rows *= p.row_shape[d];
  return rows;
}

// Where a row begins in each tensor; `third` is the mask, or dy in the backward. `index` counts along the last
// dimension.
struct RowAt {
  int64_t x = 0, y = 0, third = 0, index = 0;
};

// Steps through the rows in order.
class RowWalk {
 public:
  TW_MEMBER RowWalk(const SoftmaxParams& p, const int64_t* third_stride, int64_t row) : p_(p), third_(third_stride) {
    for (int d = p.row_dims - 1; d >= 0; --d) {
      move(d, row % p.row_shape[d]);
      row /= p.row_shape[d];
    }
  }
  TW_MEMBER RowAt at() const { return at_; }
  TW_MEMBER void next() {
    for (int d = p_.row_dims - 1; d >= 0; --d) {
      if (coordinate_[d] + 1 < p_.row_shape[d]) return move(d, 1);
      move(d, -coordinate_[d]);
    }
  }

 private:
  TW_MEMBER void move(int d, int64_t by) {
    coordinate_[d] += by;
    at_.x += by * p_.x_row_stride[d];
    at_.y += by * p_.y_row_stride[d];
    at_.third += by * third_[d];
    if (d == p_.row_dims - 1) at_.index += by;
  }
  const SoftmaxParams& p_;
  const int64_t* third_;
  int64_t coordinate_[kMaxRowDims] = {};
  RowAt at_;
};

// --- one row -------------------------------------------------------------------------------------------------------

// A tensor of any type that widens to A; addressed by element.
struct Storage {
  DType dtype;
  void* data;
};

// buffer[0..count) = the row that begins at element `at`, then `fill` up to a whole number of vectors.
template <class A>
void load_row(const Storage& tensor, int64_t at, int64_t stride, int64_t count, A fill, A* buffer) {
  with_dtype<A>(tensor.dtype, [&](auto t) {
    const auto* row = static_cast<const decltype(t)*>(tensor.data) + at;
    int64_t j = 0;
    if (stride == 1)
      for (; j + kLanes<A> <= count; j += kLanes<A>) store(buffer + j, load(row + j));
    for (; j < count; ++j) buffer[j] = to_float(row[j * stride]);
    for (; j % kLanes<A> != 0; ++j) buffer[j] = fill;
  });
}

// The reverse. Streaming stores do not read the destination into the cache first, and pay when the whole output is too
// large to stay there.
template <class A>
void store_row(const Storage& tensor, int64_t at, int64_t stride, int64_t count, bool streaming, const A* buffer) {
  constexpr int L = kLanes<A>;
  with_dtype<A>(tensor.dtype, [&](auto t) {
    using T = decltype(t);
    T* row = static_cast<T*>(tensor.data) + at;
    int64_t j = 0;
    if (stride == 1) {
      const auto past = static_cast<int64_t>(reinterpret_cast<uintptr_t>(row) % (L * sizeof(T)) / sizeof(T));
      if (streaming && count >= 2 * L) {
        if (past != 0) {
          store(row, load(buffer));
          j = L - past;
        }
        for (; j + L <= count; j += L) stream(row + j, load(buffer + j));
      }
      for (; j + L <= count; j += L) store(row + j, load(buffer + j));
    }
    for (; j < count; ++j) row[j * stride] = from_accumulator<T>(buffer[j]);
  });
}

// --- masks ---------------------------------------------------------------------------------------------------------

struct Bool {
  uint8_t value;
};
TW_INLINE float masked(float s, Bool m) { return m.value != 0 ? s : -INFINITY; }
TW_INLINE double masked(double s, Bool m) { return m.value != 0 ? s : -INFINITY; }
template <class A, class M>
TW_INLINE A masked(A s, M m) {
  return s + static_cast<A>(to_float(m));
}

// The same for a vector of scores and the kLanes mask elements at m.
template <class A, class M>
TW_INLINE Vec<A> masked_vector(Vec<A> s, const M* m) {
  if constexpr (std::is_same_v<M, Bool>) {
    typename Simd<A>::bytes bytes;
    std::memcpy(&bytes, m, sizeof bytes);
    return __builtin_convertvector(bytes, typename Simd<A>::mask) != 0 ? s : broadcast<A>(-INFINITY);
  } else if constexpr (sizeof(Accumulator<M>) == sizeof(A)) {
    return s + load(m);
  } else {
    for (int i = 0; i < kLanes<A>; ++i) s[i] += static_cast<A>(to_float(m[i]));
    return s;
  }
}

template <class A, class M>
void mask_row(const M* mask, int64_t stride, int64_t count, A* s) {
  int64_t j = 0;
  if (stride == 1)
    for (; j + kLanes<A> <= count; j += kLanes<A>) store(s + j, masked_vector<A>(load(s + j), mask + j));
  for (; j < count; ++j) s[j] = masked(s[j], mask[j * stride]);
}

// --- tiles ---------------------------------------------------------------------------------------------------------

// The rows of a tile: how many of its lanes are in use, and where each begins.
template <class A>
struct Tile {
  int lanes = 0;
  RowAt at[kTileLanes<A>];
};

// f(lane, element) for every element of the tile, in the order that reads memory along its smaller stride.
template <class A, class F>
TW_INLINE void for_tile(const Tile<A>& tile, int64_t RowAt::* offset, int64_t stride, int64_t count, const F& f) {
  if (stride == 1) {
    for (int l = 0; l < tile.lanes; ++l)
      for (int64_t j = 0; j < count; ++j) f(l, j, tile.at[l].*offset + j);
  } else {
    for (int64_t j = 0; j < count; ++j)
      for (int l = 0; l < tile.lanes; ++l) f(l, j, tile.at[l].*offset + j * stride);
  }
}

// Whether lane l of the tile is `step` elements after lane l - 1, for every lane in use.
template <class A>
TW_INLINE bool lanes_step_by(const Tile<A>& tile, int64_t RowAt::* offset, int64_t step) {
  for (int l = 1; l < tile.lanes; ++l)
    if (tile.at[l].*offset != tile.at[l - 1].*offset + step) return false;
  return true;
}

// Visits the vectors of a tile whose lanes are neighbours in memory: whole(buffer, pointer) and part(buffer, pointer,
// n).
template <class A, class T, class Whole, class Part>
TW_INLINE void for_vectors(const Tile<A>& tile, T* at, int64_t stride, int64_t count, A* buffer, const Whole& whole,
                           const Part& part) {
  constexpr int L = kLanes<A>;
  for (int64_t j = 0; j < count; ++j, at += stride, buffer += kTileLanes<A>) {
    int l = 0;
    for (; l + L <= tile.lanes; l += L) whole(buffer + l, at + l);
    if (l < tile.lanes) part(buffer + l, at + l, tile.lanes - l);
  }
}

// buffer[j][l] = element `first` + j of row l. Lanes that are not in use hold 0.
template <class A>
void load_tile(const Storage& tensor, const Tile<A>& tile, int64_t RowAt::* offset, int64_t stride, int64_t first,
               int64_t count, A* buffer) {
  constexpr int W = kTileLanes<A>;
  if (tile.lanes < W) std::memset(buffer, 0, static_cast<size_t>(count * W) * sizeof(A));
  with_dtype<A>(tensor.dtype, [&](auto t) {
    using T = decltype(t);
    const T* src = static_cast<const T*>(tensor.data) + first * stride;
    if (lanes_step_by(tile, offset, 1))
      return for_vectors(
          tile, src + tile.at[0].*offset, stride, count, buffer, [](A* b, const T* p) { store(b, load(p)); },
          [](A* b, const T* p, int n) { store(b, load_partial(p, n)); });
    for_tile(tile, offset, stride, count, [&](int l, int64_t j, int64_t at) { buffer[j * W + l] = to_float(src[at]); });
  });
}

template <class A>
void store_tile(const Storage& tensor, const Tile<A>& tile, int64_t RowAt::* offset, int64_t stride, int64_t first,
                int64_t count, A* buffer) {
  constexpr int W = kTileLanes<A>;
  with_dtype<A>(tensor.dtype, [&](auto t) {
    using T = decltype(t);
    T* dst = static_cast<T*>(tensor.data) + first * stride;
    if (lanes_step_by(tile, offset, 1))
      return for_vectors(
          tile, dst + tile.at[0].*offset, stride, count, buffer, [](A* b, T* p) { store(p, load(b)); },
          [](A* b, T* p, int n) { store_partial(p, load(b), n); });
    for_tile(tile, offset, stride, count,
             [&](int l, int64_t j, int64_t at) { dst[at] = from_accumulator<T>(buffer[j * W + l]); });
  });
}

template <class A, class M>
void mask_tile(const M* mask, const Tile<A>& tile, int64_t stride, int64_t count, A* s) {
  constexpr int W = kTileLanes<A>;
  if (lanes_step_by(tile, &RowAt::third, 1))
    return for_vectors(
        tile, mask + tile.at[0].third, stride, count, s,
        [](A* b, const M* p) { store(b, masked_vector<A>(load(b), p)); },
        [](A* b, const M* p, int n) {
          for (int l = 0; l < n; ++l) b[l] = masked(b[l], p[l]);
        });
  for_tile(tile, &RowAt::third, stride, count,
           [&](int l, int64_t j, int64_t at) { s[j * W + l] = masked(s[j * W + l], mask[at]); });
}

// body(tile, thread) for tiles over all rows. Where the rows along the last row dimension are neighbours in memory, a
// tile stays within one line of them.
template <class A, class F>
void for_tiles(const SoftmaxParams& p, const int64_t* third_stride, int64_t rows, int64_t tiles_per_task,
               const F& body) {
  constexpr int W = kTileLanes<A>;
  const int last = p.row_dims - 1;
  const bool neighbours = last >= 0 && p.x_row_stride[last] == 1 && p.row_shape[last] >= kLanes<A>;
  const int64_t line = neighbours ? p.row_shape[last] : rows, per_line = ceil_div(line, W),
                tiles = rows / line * per_line;
  parallel_for(ceil_div(tiles, tiles_per_task), p.num_threads, [&](int64_t task, int thread) {
    for (int64_t t = task * tiles_per_task; t < min64(tiles, (task + 1) * tiles_per_task); ++t) {
      const int64_t first = t % per_line * W;
      RowWalk walk(p, third_stride, t / per_line * line + first);
      Tile<A> tile;
      tile.lanes = static_cast<int>(min64(W, line - first));
      for (int l = 0; l < tile.lanes; ++l, walk.next()) tile.at[l] = walk.at();
      body(tile, thread);
    }
  });
}

// Calls f(typed pointer) with the mask's storage type.
template <class A, class F>
TW_INLINE void with_mask(const SoftmaxParams& p, const F& f) {
  if (p.mask_dtype == DType::kBool) return f(static_cast<const Bool*>(p.mask));
  if (p.mask_dtype == DType::kFloat32) return f(static_cast<const float*>(p.mask));
  with_dtype<A>(p.mask_dtype, [&](auto t) { f(static_cast<const decltype(t)*>(p.mask)); });
}

}  // namespace TW_ISA
}  // namespace tilewright
