// The panels of gemm.h in vectors: operands are widened to the accumulator's type, and products made by FMA.
#pragma once

#include "gemm_product.h"

namespace tilewright {
namespace TW_ISA {

// What a panel is made of, and how many of it a block of depth is rounded up to.
template <class A>
using Packed = A;
constexpr int64_t kDepthStep = 1;
// Depth of a packed block: a panel of B (256 x 2 vectors, 16 KiB with AVX2) stays in the first-level cache.
constexpr int64_t kDepth = 256;
// Nothing has to be set up in a thread.
struct PanelScope {};

// --- packing -------------------------------------------------------------------------------------------------------

// dst[k * WIDTH + i] = element (row + i, first + k), 0 for the rows past `rows`; k in [0, depth).
template <class A, int WIDTH>
void pack_panel(const Operand& m, int64_t row, int64_t rows, int64_t first, int64_t depth, A* dst) {
  constexpr int L = Simd<A>::lanes;
  if (rows < WIDTH) std::memset(dst, 0, static_cast<size_t>(depth * WIDTH) * sizeof(A));
  const int count = static_cast<int>(min64(rows, WIDTH));
  with_dtype<A>(m.dtype, [&](auto t) {
    const auto* src = static_cast<const decltype(t)*>(m.data) + row * m.row_stride + first * m.depth_stride;
    const bool full = count == WIDTH;
    int64_t k = 0;
    if (m.row_stride == 1 && full) {
      for (; k < depth; ++k, src += m.depth_stride, dst += WIDTH) {
        __builtin_prefetch(src + 16 * m.depth_stride);
        int i = 0;
        for (; i + L <= WIDTH; i += L) store(dst + i, load(src + i));
        for (; i < WIDTH; ++i) dst[i] = to_float(src[i]);
      }
      return;
    }
    if constexpr (WIDTH % L == 0) {
      if (m.depth_stride == 1 && full)
        for (; k + L <= depth; k += L)
          for (int base = 0; base < WIDTH; base += L) {
            Vec<A> block[L];
            for (int i = 0; i < L; ++i) block[i] = load(src + (base + i) * m.row_stride + k);
            transpose_block<A>(block);
            for (int i = 0; i < L; ++i) store(dst + (k + i) * WIDTH + base, block[i]);
          }
    } else if constexpr (WIDTH < L) {
      // Whole vectors are stored in order, each over the end of the one before; not where nothing would come after.
      if (m.depth_stride == 1)
        for (; k + L < depth; k += L) {
          Vec<A> block[L] = {};
          for (int i = 0; i < count; ++i) block[i] = load(src + i * m.row_stride + k);
          transpose_block<A>(block);
          for (int i = 0; i < L; ++i) store(dst + (k + i) * WIDTH, block[i]);
        }
    } else if (m.depth_stride == 1) {
      for (; k + L <= depth; k += L)
        for (int i = 0; i < count; ++i) {
          const Vec<A> v = load(src + i * m.row_stride + k);
          for (int j = 0; j < L; ++j) dst[(k + j) * WIDTH + i] = v[j];
        }
    }
    for (; k < depth; ++k)
      for (int i = 0; i < count; ++i) dst[k * WIDTH + i] = to_float(src[i * m.row_stride + k * m.depth_stride]);
  });
}

// --- the register-blocked kernel -----------------------------------------------------------------------------------

// c [ROWS][2 vectors] (+)= sum over k of a[k][kPanelRows] * b[k][2 vectors].
template <class A, int ROWS>
TW_INLINE void multiply_panels_rows(int64_t depth, const A* a, const A* b, A* c, bool accumulate) {
  constexpr int L = Simd<A>::lanes;
  Vec<A> acc[ROWS][2] = {};
  for (int64_t k = 0; k < depth; ++k) {
    const Vec<A> b0 = load(b), b1 = load(b + L);
    for (int i = 0; i < ROWS; ++i) {
      acc[i][0] += a[i] * b0;
      acc[i][1] += a[i] * b1;
    }
    a += kPanelRows;
    b += 2 * L;
  }
  // Two loops without a choice inside: the accumulators then stay in registers.
  if (accumulate)
    for (int i = 0; i < ROWS; ++i) {
      store(c + 2 * i * L, load(c + 2 * i * L) + acc[i][0]);
      store(c + (2 * i + 1) * L, load(c + (2 * i + 1) * L) + acc[i][1]);
    }
  else
    for (int i = 0; i < ROWS; ++i) {
      store(c + 2 * i * L, acc[i][0]);
      store(c + (2 * i + 1) * L, acc[i][1]);
    }
}

template <class A>
void multiply_panels(int64_t rows, int64_t depth, int64_t sum_depth, const A* a, const A* b, A* c, bool accumulate) {
  for (int64_t k = 0; k < depth; k += sum_depth) {
    const int64_t part = min64(sum_depth, depth - k);
    if (rows > kPanelRows / 2)
      multiply_panels_rows<A, kPanelRows>(part, a, b, c, accumulate);
    else if (rows > 1)
      multiply_panels_rows<A, kPanelRows / 2>(part, a, b, c, accumulate);
    else
      multiply_panels_rows<A, 1>(part, a, b, c, accumulate);
    a += part * kPanelRows;
    b += part * kPanelColumns<A>;
    accumulate = true;
  }
}

template <class A>
TW_INLINE void pack_rows(const Operand& m, int64_t row, int64_t rows, int64_t first, int64_t depth, A* dst) {
  pack_panel<A, kPanelRows>(m, row, rows, first, depth, dst);
}
template <class A>
TW_INLINE void pack_columns(const Operand& m, int64_t row, int64_t rows, int64_t first, int64_t depth, A* dst) {
  pack_panel<A, kPanelColumns<A>>(m, row, rows, first, depth, dst);
}

}  // namespace TW_ISA
}  // namespace tilewright
