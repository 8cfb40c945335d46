// What the softmax kernels share: which row a group of threads has, its scores, and reductions over the group.
#pragma once

#include <primitives/launch.h>
#include <primitives/memory.h>
#include <primitives/number.h>

#include "../common/params.h"
#include "access.h"
#include "softmax.h"

namespace tilewright::gpu {

// Elements of a row that a thread keeps in registers, and the most threads to a row: wider ones are looped over.
constexpr int kSoftmaxElements = 32;
constexpr int kSoftmaxThreads = 512;

// A call, and how it is cut up: `lanes` threads, a power of two, take a row; one wider than they hold is cut into
// `pieces` of `piece` columns.
struct SoftmaxLaunch {
  SoftmaxParams call;
  int64_t rows = 0;
  int lanes = 1;
  int pieces = 1;
  int64_t piece = 0;
};

// `third` is the mask, or dy in the backward; `index` counts along the last row dimension.
struct RowAt {
  int64_t x = 0, y = 0, third = 0, index = 0;
};

TW_DEVICE RowAt find_row(const SoftmaxParams& p, const int64_t (&third_stride)[kMaxRowDims], int64_t row) {
  RowAt at;
  for (int d = p.row_dims - 1; d >= 0; --d) {
    const int64_t i = row % p.row_shape[d];
    row /= p.row_shape[d];
    at.x += i * p.x_row_stride[d];
    at.y += i * p.y_row_stride[d];
    at.third += i * third_stride[d];
    if (d == p.row_dims - 1) at.index = i;
  }
  return at;
}

// e^x for x <= 0. float32 results need the exact one: the hardware's 2^x would be given a rounded x log2(e).
template <class T>
TW_DEVICE float exp_of(float x) {
  if constexpr (sizeof(T) == 4) return exp_exact(x);
  return exp2_fast(x * 1.4426950408889634f);
}

// scale * x + mask of V neighbours from `column` on; -inf where excluded. The columns are inside the row.
template <class T, int V>
TW_DEVICE void load_scores(const SoftmaxParams& p, const RowAt& at, int64_t column, float (&s)[V]) {
  if constexpr (V > 1) {
    const auto x = global<T>(p.x).template load_vector<V>(at.x + column);
    TW_UNROLL for (int i = 0; i < V; ++i) s[i] = rounded_product(widen(x[i]), static_cast<float>(p.scale));
  } else {
    s[0] = rounded_product(widen(global<T>(p.x).load(at.x + column * p.x_stride)), static_cast<float>(p.scale));
  }
  const auto each = [&](auto apply) {
    TW_UNROLL for (int i = 0; i < V; ++i) if (!p.causal || column + i <= at.index + p.causal_shift)
        apply(s[i], at.third + (column + i) * p.mask_stride);
    else s[i] = -kInfinity;
  };
  if (p.mask == nullptr) {
    if (p.causal) each([](float&, int64_t) {});
  } else if (p.mask_dtype == DType::kBool) {
    each([&](float& x, int64_t m) {
      if (global<uint8_t>(p.mask).load(m) == 0) x = -kInfinity;
    });
  } else if (p.mask_dtype == DType::kFloat32) {
    each([&](float& x, int64_t m) { x = masked(x, global<float>(p.mask).load(m)); });
  } else {
    each([&](float& x, int64_t m) { x = masked(x, widen(global<T>(p.mask).load(m))); });
  }
}

// V neighbours of y, dy or dx: vectors where V > 1, which the launcher has found to be aligned.
template <class T, int V>
TW_DEVICE void load_values(const void* base, int64_t at, int64_t stride, int64_t column, float (&out)[V]) {
  if constexpr (V > 1) {
    const auto x = global<T>(base).template load_vector<V>(at + column);
    TW_UNROLL for (int i = 0; i < V; ++i) out[i] = widen(x[i]);
  } else {
    out[0] = widen(global<T>(base).load(at + column * stride));
  }
}
template <class T, int V>
TW_DEVICE void store_values(void* base, int64_t at, int64_t stride, int64_t column, const float (&x)[V]) {
  if constexpr (V > 1) {
    Vector<T, V> out;
    TW_UNROLL for (int i = 0; i < V; ++i) out[i] = narrow<T>(x[i]);
    global<T>(base).template store_vector<V>(at + column, out);
  } else {
    global<T>(base).store(at + column * stride, narrow<T>(x[0]));
  }
}

struct Maximum {
  TW_DEVICE float operator()(float a, float b) const { return a > b ? a : b; }  // NaN may get lost; sums keep it
};
struct Sum {
  TW_DEVICE float operator()(float a, float b) const { return a + b; }
};

// Of the values of the `lanes` threads that take a row together: neighbours in a warp, or the whole block. All threads of
// the block come here. `scratch` has a float for each warp.
template <class Operation>
TW_DEVICE float reduce(float value, bool block, int lanes, Operation operation, Shared<float> scratch) {
  for (int step = (block ? kWarpSize : lanes) / 2; step > 0; step /= 2)
    value = operation(value, shuffle_xor(value, step));
  if (block) {
    sync_block();  // what an earlier reduction left has been read
    if (lane_index() == 0) scratch.store(warp_index(), value);
    sync_block();
    value = scratch.load(0);
    for (int w = 1; w < block_threads() / kWarpSize; ++w) value = operation(value, scratch.load(w));
  }
  return value;
}

// A row's maximum and its sum of e^(s - maximum). The maximum of nothing is finite, so that no difference is inf - inf.
struct RowSum {
  float top = kLowest, sum = 0.0f;
};
template <class T>
TW_DEVICE RowSum join(RowSum a, RowSum b) {
  const float top = a.top > b.top ? a.top : b.top;
  return {top, a.sum * exp_of<T>(a.top - top) + b.sum * exp_of<T>(b.top - top)};
}
// Of the whole block.
template <class T>
TW_DEVICE RowSum reduce_sums(RowSum mine, Shared<float> scratch) {
  const float top = reduce(mine.top, true, kWarpSize, Maximum{}, scratch);
  return {top, reduce(mine.sum * exp_of<T>(mine.top - top), true, kWarpSize, Sum{}, scratch)};
}

// What a row's scores are turned into results with: of log_softmax the logarithm of its sum, which is taken once.
TW_DEVICE RowSum to_result(RowSum row, bool log) {
  if (row.sum == 0.0f) row.sum = 1.0f;  // all are excluded
  if (log) row.sum = log_exact(row.sum);
  return row;
}
// The result for score s; row: of to_result.
template <class T>
TW_DEVICE float softmax_of(float s, RowSum row, bool log) {
  return log ? (s - row.top) - row.sum : exp_of<T>(s - row.top) / row.sum;
}

// --- on the host ---

template <class T>
constexpr int kSoftmaxVector = 16 / int{sizeof(T)};

inline int64_t softmax_row_count(const SoftmaxParams& p) {
  int64_t rows = 1;
  for (int d = 0; d < p.row_dims; ++d) rows *= p.row_shape[d];
  return rows;
}

// Whether all rows of a tensor begin at multiples of 16 bytes, and its columns are neighbours.
inline bool softmax_vectors(const SoftmaxParams& p, const void* base, const int64_t (&row_stride)[kMaxRowDims],
                            int64_t stride) {
  const int v = p.dtype == DType::kFloat32 ? kSoftmaxVector<float> : kSoftmaxVector<Half>;
  bool aligned = stride == 1 && reinterpret_cast<uintptr_t>(base) % 16 == 0 && p.n % v == 0;
  for (int d = 0; d < p.row_dims; ++d) aligned = aligned && (row_stride[d] % v == 0 || p.row_shape[d] == 1);
  return aligned;
}

// Rows that no block's registers hold are cut into pieces while there are too few rows to keep a chip busy.
constexpr int64_t kSoftmaxBlocks = 264;  // two for each multiprocessor of the largest chips so far
constexpr int kSoftmaxPieces = 64;

inline int softmax_pieces(const SoftmaxParams& p, int64_t rows) {
  constexpr int64_t held = int64_t{kSoftmaxThreads} * kSoftmaxElements;
  if (p.n <= held || p.x_stride != 1) return 1;
  const int64_t wanted = (kSoftmaxBlocks + rows - 1) / rows, most = (p.n + held - 1) / held;
  const int64_t pieces = wanted < most ? wanted : most;
  return static_cast<int>(pieces < kSoftmaxPieces ? pieces : kSoftmaxPieces);
}

// As few lanes to a row as hold it: in a warp, with a vector each; else with all that registers take. Rows that no block
// holds get a `piece`.
template <int V>
void softmax_divide(SoftmaxLaunch& l) {
  const int64_t n = l.call.n;
  while (l.lanes < kSoftmaxThreads && int64_t{l.lanes} * (l.lanes < kWarpSize ? V : kSoftmaxElements) < n) l.lanes *= 2;
  if (int64_t{l.lanes} * kSoftmaxElements >= n) return;
  l.pieces = softmax_pieces(l.call, l.rows);
  l.piece = ((n + l.pieces - 1) / l.pieces + V - 1) / V * V;
}
// Several rows share a block of four warps.
inline int softmax_block(const SoftmaxLaunch& l) { return l.lanes > kWarpSize ? l.lanes : 4 * kWarpSize; }
inline Grid softmax_grid(const SoftmaxLaunch& l) {
  const int64_t rows = softmax_block(l) / l.lanes;
  return {(l.rows + rows - 1) / rows, l.pieces};
}
inline int softmax_across_block(const SoftmaxParams& p) { return p.n < 8 ? kWarpSize : 8 * kWarpSize; }
inline Grid softmax_across_grid(const SoftmaxLaunch& l) { return {(l.rows + kWarpSize - 1) / kWarpSize}; }

// Launches a call. Kernels has the kernels as variables: kRows<T, V, kBlock>, kLooped<T, V, kPhase> and kAcross<T>, which
// needs kAcrossBytes of shared memory for each thread. vectors: whether all tensors can be read so.
template <class Kernels, class T, int V>
int softmax_launch_rows(SoftmaxLaunch l, Stream stream) {
  softmax_divide<V>(l);
  const Grid grid = softmax_grid(l);
  const int threads = softmax_block(l), shared_bytes = 128;
  if (l.piece > 0) {
    if (l.pieces == 1) return launch<Kernels::template kLooped<T, V, 0>>(grid, threads, shared_bytes, stream, l);
    if (const int error = launch<Kernels::template kLooped<T, V, 1>>(grid, threads, shared_bytes, stream, l))
      return error;
    return launch<Kernels::template kLooped<T, V, 2>>(grid, threads, shared_bytes, stream, l);
  }
  return l.lanes > kWarpSize ? launch<Kernels::template kRows<T, V, true>>(grid, threads, shared_bytes, stream, l)
                             : launch<Kernels::template kRows<T, V, false>>(grid, threads, shared_bytes, stream, l);
}

template <class Kernels, class T>
int softmax_launch_type(const SoftmaxLaunch& l, bool vectors, Stream stream) {
  if (l.rows == 0 || l.call.n == 0) return 0;
  if (l.call.x_stride != 1 && l.call.n > 1) {
    const int threads = softmax_across_block(l.call);
    return launch<Kernels::template kAcross<T>>(softmax_across_grid(l), threads, threads * Kernels::kAcrossBytes,
                                                stream, l);
  }
  return vectors ? softmax_launch_rows<Kernels, T, kSoftmaxVector<T>>(l, stream)
                 : softmax_launch_rows<Kernels, T, 1>(l, stream);
}

template <class Kernels>
int softmax_launch(const SoftmaxParams& p, bool vectors, Stream stream) {
  const SoftmaxLaunch l{p, softmax_row_count(p)};
  switch (p.dtype) {
    case DType::kFloat32: return softmax_launch_type<Kernels, float>(l, vectors, stream);
    case DType::kFloat16: return softmax_launch_type<Kernels, Half>(l, vectors, stream);
    case DType::kBFloat16: return softmax_launch_type<Kernels, BFloat16>(l, vectors, stream);
    default: return kUnsupported;
  }
}

}  // namespace tilewright::gpu
