// A matrix product: its operands, and the parts of the result that an epilogue is called with.
#pragma once

#include "integers.h"
#include "parallel.h"
#include "simd.h"

namespace tilewright {
namespace TW_ISA {

// 6 x 2 accumulators, two vectors of B and one broadcast fill the 16 registers of SSE and AVX2; AVX-512 has 32. AMX's
// eight tiles of 16 x 16 are 2 x 2 accumulators and two of each operand.
#if defined(TW_TILES)
constexpr int kPanelRows = 32;
#else
constexpr int kPanelRows = TW_VECTOR_BYTES == 64 ? 12 : 6;
#endif
template <class A>
constexpr int kPanelColumns = 2 * Simd<A>::lanes;
// Element (i, k) is at i * row_stride + k * depth_stride.
struct Operand {
  const void* data;
  DType dtype;
  int64_t row_stride, depth_stride;
};

// What the epilogue is called with: columns [n, n + columns) of rows [m, m + rows) of C, row i at tile + i * stride,
// and for a gated product the second of each pair at second + i * stride. All of a vector past `columns` may be read,
// and all of it written over. At most kTileElements.
template <class A>
struct FinishedTile {
  int64_t m, n;
  int rows, columns;
  A* tile;
  A* second;
  int64_t stride;
};

// A reference to a function that outlives the call which is given it: so the products are compiled once, not once for each
// epilogue. A call through it costs nothing beside a tile.
template <class... Arguments>
class Callback {
 public:
  template <class F>
  TW_MEMBER Callback(const F& f)
      : function_(&f), call_([](const void* f, Arguments... a) { (*static_cast<const F*>(f))(a...); }) {}
  TW_MEMBER void operator()(Arguments... a) const { call_(function_, a...); }

 private:
  const void* function_;
  void (*call_)(const void*, Arguments...);
};

// C (m x n) = A (m x k) B^T, B being n x k. With `gated`, B has 2n rows, and column j of C pairs rows j and n + j of B.
template <class A>
struct Product {
  using Epilogue = Callback<const FinishedTile<A>&>;

  Operand a, b;
  int64_t m, n, k;
  bool gated;
  int threads;
};

using Prefetch = Callback<int64_t, int64_t>;

// Products of at most so many rows are computed as gemm_few_rows.h says, by tasks of so many columns.
constexpr int64_t kFewRows = 16, kFewColumns = 32;
template <class A>
constexpr int64_t kTileElements = max64(kFewColumns * kFewRows, kPanelColumns<A>* kPanelRows);

}  // namespace TW_ISA
}  // namespace tilewright
