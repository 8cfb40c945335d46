// Moving softmax's rows between the tensors and a buffer of accumulators: the only places that see storage types, strides
// and masks. A block holds either one row, or a tile of rows side by side, in groups of kTileLanes (element j of lane l of
// a group at [j * kTileLanes + l]), so that short rows and rows along another dimension fill vectors as well.
#pragma once

#include <type_traits>

#include "parallel.h"
#include "softmax_rows.h"

namespace tilewright {
namespace TW_ISA {

// Elements that are worth a task, about 20 us.
constexpr int64_t kTaskElements = 32 * 1024;
// Output bytes from which streaming stores pay: it would not stay in the caches anyway.
constexpr int64_t kStreamBytes = int64_t{8} << 20;
constexpr int kUnroll = 4;  // vectors in flight: hides the latency of max and add
template <class A>
constexpr int kLanes = Simd<A>::lanes;
// Rows of a tile. Where they are neighbours in memory a tile takes more of them, so that it is read in long runs: 32 rows
// of 64 floats, each on its own page, come at 4 GB/s; 512 of them at the speed of contiguous rows.
template <class A>
constexpr int kTileLanes = kUnroll * kLanes<A>;
template <class A>
constexpr int kMaxTileLanes = 16 * kTileLanes<A>;

// e / sum. Where there is FMA, one step of Newton's iteration makes the product with the reciprocal as exact as a
// division, in a third of its time. A row without a kept score has sum 0 and divides its zeros by 1.
template <class V, class A>
struct Divisor {
  V sum, inverse;
  TW_MEMBER explicit Divisor(V s) : sum(s == V{} ? V{} + A{1} : s), inverse(A{1} / sum) {}
  TW_MEMBER V divide(V e) const {
#if defined(TW_CONTRACTS)
    const V q = e * inverse;
    return q + (e - q * sum) * inverse;
#else
    return e / sum;
#endif
  }
};

// --- one row -------------------------------------------------------------------------------------------------------

// A tensor of any type that widens to A; addressed by element.
struct Storage {
  DType dtype;
  void* data;
};

// buffer[0..count) = scale * the row that begins at element `at`, then `fill` up to a whole number of vectors. Answers the
// largest element.
template <class A>
A load_row(const Storage& tensor, int64_t at, int64_t stride, int64_t count, A scale, A fill, A* buffer) {
  constexpr int L = kLanes<A>;
  A max = -INFINITY;
  with_dtype<A>(tensor.dtype, [&](auto t) {
    const auto* row = static_cast<const decltype(t)*>(tensor.data) + at;
    Vec<A> m[kUnroll];
    for (auto& v : m) v = broadcast<A>(-INFINITY);
    const auto take = [&](int64_t j, Vec<A>& into) {
      const Vec<A> v = load(row + j) * scale;
      store(buffer + j, v);
      into = vmax(into, v);
    };
    int64_t j = 0;
    if (stride == 1) {
      for (; j + kUnroll * L <= count; j += kUnroll * L)
        for (int u = 0; u < kUnroll; ++u) take(j + u * L, m[u]);
      for (; j + L <= count; j += L) take(j, m[0]);
      max = horizontal_max(vmax(vmax(m[0], m[1]), vmax(m[2], m[3])));
    }
    for (; j < count; ++j) {
      buffer[j] = to_float(row[j * stride]) * scale;
      max = buffer[j] > max ? buffer[j] : max;
    }
    for (; j % L != 0; ++j) buffer[j] = fill;
  });
  return max;
}

// Starts loading the memory behind a row or block while the one at hand is worked on: without it the memory idles during
// those passes. In matrices that are contiguous it is the next row.
class Ahead {
 public:
  TW_MEMBER Ahead(const Storage& tensor, int64_t at, int64_t count)
      : size_(size_of(tensor.dtype)),
        from_(static_cast<const char*>(tensor.data) + (at + max64(count, kLeast)) * size_) {}
  // The counterparts of elements [j, j + count).
  TW_MEMBER void load(int64_t j, int64_t count) const {
    for (int64_t byte = 0; byte < count * size_; byte += 64) __builtin_prefetch(from_ + j * size_ + byte);
  }

 private:
  static constexpr int64_t kLeast = 512;  // elements: nearer than that, the hardware's own prefetching is as good
  int64_t size_;
  const char* from_;
};

// row[0..count) = value(j, n), which gives elements j to j + n - 1; ahead(j, n) is called once for every kUnroll vectors.
// Streaming stores do not read the destination into the cache first, and pay when the whole output is too large to stay
// there.
template <class T, class F, class G>
TW_INLINE void write_row(T* row, int64_t count, bool streaming, const F& value, const G& ahead) {
  constexpr int L = kLanes<Accumulator<T>>;
  int64_t j = 0;
  if (streaming && count >= 2 * L) {
    const auto past = static_cast<int64_t>(reinterpret_cast<uintptr_t>(row) % (L * sizeof(T)) / sizeof(T));
    if (past != 0) {
      store(row, value(0, L));
      j = L - past;
    }
    for (; j + kUnroll * L <= count; j += kUnroll * L) {
      ahead(j, kUnroll * L);
      for (int u = 0; u < kUnroll; ++u) stream(row + j + u * L, value(j + u * L, L));
    }
  } else {
    for (; j + kUnroll * L <= count; j += kUnroll * L) {
      ahead(j, kUnroll * L);
      for (int u = 0; u < kUnroll; ++u) store(row + j + u * L, value(j + u * L, L));
    }
  }
  for (; j + L <= count; j += L) store(row + j, value(j, L));
  if (j < count) store_partial(row + j, value(j, static_cast<int>(count - j)), static_cast<int>(count - j));
}

// The row of `tensor` that begins at element `at` = f(buffer); the buffer holds whole vectors.
template <class A, class F>
TW_INLINE void store_row(const Storage& tensor, int64_t at, int64_t stride, int64_t count, bool streaming, A* buffer,
                         const F& f) {
  with_dtype<A>(tensor.dtype, [&](auto t) {
    using T = decltype(t);
    T* row = static_cast<T*>(tensor.data) + at;
    if (stride == 1)
      return write_row(row, count, streaming, [&](int64_t j, int) { return f(load(buffer + j)); }, [](int64_t, int) {});
    for (int64_t j = 0; j < count; j += kLanes<A>) store(buffer + j, f(load(buffer + j)));
    for (int64_t j = 0; j < count; ++j) row[j * stride] = from_accumulator<T>(buffer[j]);
  });
}

// --- masks ---------------------------------------------------------------------------------------------------------

struct Bool {
  uint8_t value;
};
TW_INLINE float masked(float s, Bool m) { return m.value != 0 ? s : -INFINITY; }
TW_INLINE double masked(double s, Bool m) { return m.value != 0 ? s : -INFINITY; }
// -inf excludes whatever the score is, NaN as well.
template <class A, class M>
TW_INLINE A masked(A s, M m) {
  const A added = static_cast<A>(to_float(m));
  return added == -INFINITY ? added : s + added;
}

// The same for a vector of scores and the kLanes mask elements at m.
template <class A, class M>
TW_INLINE Vec<A> masked_vector(Vec<A> s, const M* m) {
  if constexpr (std::is_same_v<M, Bool>) {
    typename Simd<A>::bytes bytes;
    std::memcpy(&bytes, m, sizeof bytes);
    return __builtin_convertvector(bytes, typename Simd<A>::mask) != 0 ? s : broadcast<A>(-INFINITY);
  } else if constexpr (sizeof(Accumulator<M>) == sizeof(A)) {
    const Vec<A> added = load(m);
    return added == broadcast<A>(-INFINITY) ? added : s + added;
  } else {
    for (int i = 0; i < kLanes<A>; ++i) s[i] = masked<A>(s[i], m[i]);
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
  // Element j of lane l, in a block of `count` columns, is j * kTileLanes behind this.
  TW_MEMBER int64_t lane(int l, int64_t count) const {
    return l / kTileLanes<A> * kTileLanes<A> * count + l % kTileLanes<A>;
  }
  TW_MEMBER int vectors() const { return (lanes + kLanes<A> - 1) / kLanes<A>; }
  RowAt at[kMaxTileLanes<A>];
};

// Whether lane l of the tile is `step` elements after lane l - 1, for every lane in use.
template <class A>
TW_INLINE bool lanes_step_by(const Tile<A>& tile, int64_t RowAt::* offset, int64_t step) {
  for (int l = 1; l < tile.lanes; ++l)
    if (tile.at[l].*offset != tile.at[l - 1].*offset + step) return false;
  return true;
}

// Visits the vectors of a tile whose lanes are neighbours in memory: whole(buffer, pointer) and part(buffer, pointer, n).
template <class A, class T, class Whole, class Part>
TW_INLINE void for_vectors(const Tile<A>& tile, T* at, int64_t stride, int64_t count, A* buffer, const Whole& whole,
                           const Part& part) {
  constexpr int L = kLanes<A>;
  const int lanes = tile.lanes;  // a copy: `whole` stores, and the tile might be where it does
  for (int64_t j = 0; j < count; ++j, at += stride, buffer += kTileLanes<A>) {
    int l = 0;
    for (; l + L <= lanes; l += L) whole(buffer + tile.lane(l, count), at + l);
    if (l < lanes) part(buffer + tile.lane(l, count), at + l, lanes - l);
  }
}

// Visits a tile whose rows are contiguous: block(l, j) for L lanes by L elements, one(l, j) for what is left over.
template <class A, class Block, class One>
TW_INLINE void for_blocks(const Tile<A>& tile, int64_t count, const Block& block, const One& one) {
  constexpr int L = kLanes<A>;
  const int64_t blocked = count / L * L;
  int l = 0;
  for (; l + L <= tile.lanes; l += L) {
    for (int64_t j = 0; j < blocked; j += L) block(l, j);
    for (int i = l; i < l + L; ++i)
      for (int64_t j = blocked; j < count; ++j) one(i, j);
  }
  for (; l < tile.lanes; ++l)
    for (int64_t j = 0; j < count; ++j) one(l, j);
}

// buffer[j][l] = scale * element `first` + j of row l. Lanes that are not in use hold 0.
template <class A>
void load_tile(const Storage& tensor, const Tile<A>& tile, int64_t RowAt::* offset, int64_t stride, int64_t first,
               int64_t count, A scale, A* buffer) {
  constexpr int L = kLanes<A>;
  constexpr int W = kTileLanes<A>;
  if (tile.lanes % W != 0) {
    A* const last = buffer + tile.lane(tile.lanes / W * W, count);
    std::memset(last, 0, static_cast<size_t>(count * W) * sizeof(A));
  }
  with_dtype<A>(tensor.dtype, [&](auto t) {
    using T = decltype(t);
    const T* src = static_cast<const T*>(tensor.data) + first * stride;
    if (lanes_step_by(tile, offset, 1))
      return for_vectors(
          tile, src + tile.at[0].*offset, stride, count, buffer, [&](A* b, const T* p) { store(b, load(p) * scale); },
          [&](A* b, const T* p, int n) { store(b, load_partial(p, n) * scale); });
    const auto one = [&](int l, int64_t j) {
      buffer[tile.lane(l, count) + j * W] = to_float(src[tile.at[l].*offset + j * stride]) * scale;
    };
    if (stride != 1) {
      for (int64_t j = 0; j < count; ++j)
        for (int l = 0; l < tile.lanes; ++l) one(l, j);
      return;
    }
    const auto block = [&](int l, int64_t j) {
      Vec<A> r[L];
      for (int i = 0; i < L; ++i) r[i] = load(src + tile.at[l + i].*offset + j) * scale;
      transpose_block<A>(r);
      for (int i = 0; i < L; ++i) store(buffer + tile.lane(l, count) + (j + i) * W, r[i]);
    };
    for_blocks(tile, count, block, one);
  });
}

template <class A>
void store_tile(const Storage& tensor, const Tile<A>& tile, int64_t RowAt::* offset, int64_t stride, int64_t first,
                int64_t count, bool streaming, A* buffer) {
  constexpr int L = kLanes<A>;
  constexpr int W = kTileLanes<A>;
  with_dtype<A>(tensor.dtype, [&](auto t) {
    using T = decltype(t);
    T* dst = static_cast<T*>(tensor.data) + first * stride;
    if (lanes_step_by(tile, offset, 1)) {
      T* at = dst + tile.at[0].*offset;
      const auto part = [](A* b, T* p, int n) { store_partial(p, load(b), n); };
      const bool aligned = reinterpret_cast<uintptr_t>(at) % (L * sizeof(T)) == 0 && (count == 1 || stride % L == 0);
      if (streaming && aligned)
        return for_vectors(tile, at, stride, count, buffer, [](A* b, T* p) { stream(p, load(b)); }, part);
      return for_vectors(tile, at, stride, count, buffer, [](A* b, T* p) { store(p, load(b)); }, part);
    }
    const auto one = [&](int l, int64_t j) {
      dst[tile.at[l].*offset + j * stride] = from_accumulator<T>(buffer[tile.lane(l, count) + j * W]);
    };
    if (stride != 1) {
      for (int64_t j = 0; j < count; ++j)
        for (int l = 0; l < tile.lanes; ++l) one(l, j);
      return;
    }
    const auto block = [&](int l, int64_t j) {
      Vec<A> r[L];
      for (int i = 0; i < L; ++i) r[i] = load(buffer + tile.lane(l, count) + (j + i) * W);
      transpose_block<A>(r);
      for (int i = 0; i < L; ++i) store(dst + tile.at[l + i].*offset + j, r[i]);
    };
    for_blocks(tile, count, block, one);
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
  for (int l = 0; l < tile.lanes; ++l)
    for (int64_t j = 0; j < count; ++j)
      s[tile.lane(l, count) + j * W] = masked(s[tile.lane(l, count) + j * W], mask[tile.at[l].third + j * stride]);
}

// How the rows are cut into tiles, and these into blocks of `columns` for a buffer. Where the rows along the last row
// dimension are neighbours in memory, a tile stays within one line of them. A tile that does not fit in the buffer at its
// narrowest is read twice in any case, so it may as well be wide.
template <class A>
struct Tiling {
  int64_t line, width, per_line, count, columns;

  Tiling(const SoftmaxParams& p, int64_t rows, int64_t buffer) {
    const int last = p.row_dims - 1;
    const bool neighbours = last >= 0 && p.x_row_stride[last] == 1 && p.row_shape[last] >= kLanes<A>;
    line = neighbours ? p.row_shape[last] : rows;
    width = kTileLanes<A>;
    const auto tiles = [&](int64_t w) { return rows / line * ceil_div(line, w); };
    const bool twice = width * p.n > buffer;
    while (neighbours && 2 * width <= min64(kMaxTileLanes<A>, line) && (twice || 2 * width * p.n <= buffer) &&
           tiles(2 * width) >= 4 * p.num_threads)
      width *= 2;
    columns = min64(buffer / width, p.n);
    per_line = ceil_div(line, width);
    count = tiles(width);
  }
};

// body(tile, thread) for every tile.
template <class A, class F>
void for_tiles(const SoftmaxParams& p, const Tiling<A>& tiling, const int64_t* third_stride, int64_t tiles_per_task,
               const F& body) {
  parallel_for(ceil_div(tiling.count, tiles_per_task), p.num_threads, [&](int64_t task, int thread) {
    for (int64_t t = task * tiles_per_task; t < min64(tiling.count, (task + 1) * tiles_per_task); ++t) {
      const int64_t first = t % tiling.per_line * tiling.width;
      RowWalk walk(p, third_stride, t / tiling.per_line * tiling.line + first);
      Tile<A> tile;
      tile.lanes = static_cast<int>(min64(tiling.width, tiling.line - first));
      for (int l = 0; l < tile.lanes; ++l, walk.next()) tile.at[l] = walk.at();
      body(tile, thread);
    }
    stream_fence();
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
