// The panels of gemm.h in tiles of bfloat16. What is kept as floats between two products, a hidden activation or its
// gradient, is rounded to bfloat16 on its way into a tile, as every implementation does that keeps it as a tensor.
#pragma once

#include "gemm_product.h"
#include "tiles.h"

namespace tilewright {
namespace TW_ISA {

// A panel has two tiles for each step of depth, one after the other.
template <class A>
using Packed = BFloat16;
constexpr int64_t kDepthStep = kTileDepth;
// Depth of a packed block: sums stay in the tile registers for so long. A panel of B is 64 KiB then, which the
// second-level cache has.
constexpr int64_t kDepth = 1024;
using PanelScope = TileScope;

template <bool BY_PAIRS>
void pack_tiles(const Operand& m, int64_t row, int64_t rows, int64_t first, int64_t depth, BFloat16* dst) {
  const auto from = [&](auto t) {
    using T = decltype(t);
    for (int64_t k = 0; k < depth; k += kTileDepth)
      for (int64_t i = 0; i < 2 * kTileSide; i += kTileSide, dst += kTileNumbers) {
        const T* src = static_cast<const T*>(m.data) + (row + i) * m.row_stride + (first + k) * m.depth_stride;
        pack_tile<BY_PAIRS>(src, m.row_stride, m.depth_stride, max64(0, rows - i), depth - k, dst);
      }
  };
  m.dtype == DType::kBFloat16 ? from(BFloat16{}) : from(float{});
}

template <class A>
void pack_rows(const Operand& m, int64_t row, int64_t rows, int64_t first, int64_t depth, A* dst) {
  pack_tiles<false>(m, row, rows, first, depth, dst);
}
template <class A>
void pack_columns(const Operand& m, int64_t row, int64_t rows, int64_t first, int64_t depth, A* dst) {
  pack_tiles<true>(m, row, rows, first, depth, dst);
}

// The sums of a whole block of depth are made in the tile registers, without sums of sums: beside the rounding of
// bfloat16 theirs is nothing.
TW_INLINE void multiply_panels(int64_t rows, int64_t depth, int64_t, const BFloat16* a, const BFloat16* b, float* c,
                               bool accumulate) {
  multiply_tiles(rows, depth / kTileDepth, a, 2 * kTileNumbers, b, c, kPanelColumns<float>, accumulate);
}

}  // namespace TW_ISA
}  // namespace tilewright
