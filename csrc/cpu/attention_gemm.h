// Register-blocked matrix products over small tiles, and the packing around them, for the attention kernels.
//
// Attention here runs transposed: the lanes of a vector are query rows. A strip of kStripLanes query rows is packed
// once as Q^T [D][lanes]; then S^T = K Q^T, O^T += V^T P^T and dQ^T += K^T dS^T all take K and V as the operand that is
// broadcast element by element, straight from row-major memory. Neither is ever transposed, the row statistics of the
// softmax are plain vertical vector operations, and Philox's counters (one per row) fill vectors naturally.
#pragma once

#include <utility>

#include "integers.h"
#include "simd.h"

namespace tilewright {
namespace TW_ISA {

// 6 x 2 accumulators, two vectors of B and one broadcast fill the 16 registers of AVX2; AVX-512 has 32.
constexpr int kTileVectors = 2;
constexpr int kTileRows = TW_VECTOR_BYTES == 64 ? 12 : 6;
template <class A>
constexpr int kStripLanes = kTileVectors * Simd<A>::lanes;

// What a product does with the C that is there: overwrite it, or add to it after scaling each column by `scale`.
template <class A>
struct Accumulate {
  bool keep = false;
  const A* scale = nullptr;  // [columns of C], or null for 1
};

template <class A, int ROWS, int VECTORS, bool TRANSPOSED>
TW_INLINE void gemm_tile(int64_t depth, const A* a, int64_t lda, const A* b, int64_t ldb, A* c, int64_t ldc,
                         Accumulate<A> accumulate) {
  constexpr int L = Simd<A>::lanes;
  Vec<A> acc[ROWS][VECTORS];
  for (int i = 0; i < ROWS; ++i)
    for (int v = 0; v < VECTORS; ++v) acc[i][v] = Vec<A>{};
  for (int64_t p = 0; p < depth; ++p) {
    Vec<A> bv[VECTORS];
    for (int v = 0; v < VECTORS; ++v) bv[v] = load(b + v * L);
    for (int i = 0; i < ROWS; ++i) {
      const A x = TRANSPOSED ? a[i] : a[i * lda];
      for (int v = 0; v < VECTORS; ++v) acc[i][v] += x * bv[v];
    }
    a += TRANSPOSED ? lda : 1;
    b += ldb;
  }
  // Joined only now: sums of tile sums round less than one long sum, which would miss the accuracy of a blocked BLAS.
  if (accumulate.keep) {
    for (int v = 0; v < VECTORS; ++v) {
      const Vec<A> scale = accumulate.scale != nullptr ? load(accumulate.scale + v * L) : broadcast<A>(1);
      for (int i = 0; i < ROWS; ++i) acc[i][v] += load(c + i * ldc + v * L) * scale;
    }
  }
  for (int i = 0; i < ROWS; ++i)
    for (int v = 0; v < VECTORS; ++v) store(c + i * ldc + v * L, acc[i][v]);
}

// C[rows][VECTORS vectors] (+)= A B. A is [rows][depth], or [depth][rows] when TRANSPOSED; B is [depth][VECTORS
// vectors].
template <class A, int VECTORS, bool TRANSPOSED>
void gemm_columns(int64_t rows, int64_t depth, const A* a, int64_t lda, const A* b, int64_t ldb, A* c, int64_t ldc,
                  Accumulate<A> accumulate) {
  const int64_t step = TRANSPOSED ? 1 : lda;
  int64_t i = 0;
  // Eight rows are left as 4 + 4: a tile of two rows has too few sums to hide the latency of an FMA.
  for (; i + kTileRows <= rows && rows - i != 8; i += kTileRows)
    gemm_tile<A, kTileRows, VECTORS, TRANSPOSED>(depth, a + i * step, lda, b, ldb, c + i * ldc, ldc, accumulate);
  if (kTileRows > 8 && i + 8 <= rows) {
    gemm_tile<A, 8, VECTORS, TRANSPOSED>(depth, a + i * step, lda, b, ldb, c + i * ldc, ldc, accumulate);
    i += 8;
  }
  for (; i + 4 <= rows; i += 4)
    gemm_tile<A, 4, VECTORS, TRANSPOSED>(depth, a + i * step, lda, b, ldb, c + i * ldc, ldc, accumulate);
  if (i + 2 <= rows) {
    gemm_tile<A, 2, VECTORS, TRANSPOSED>(depth, a + i * step, lda, b, ldb, c + i * ldc, ldc, accumulate);
    i += 2;
  }
  if (i < rows) gemm_tile<A, 1, VECTORS, TRANSPOSED>(depth, a + i * step, lda, b, ldb, c + i * ldc, ldc, accumulate);
}

// The same with any number of vector columns in B and C.
template <class A, bool TRANSPOSED>
inline void gemm_panel(int64_t rows, int vectors, int64_t depth, const A* a, int64_t lda, const A* b, int64_t ldb, A* c,
                       int64_t ldc, Accumulate<A> accumulate) {
  constexpr int L = Simd<A>::lanes;
  for (; vectors >= kTileVectors; vectors -= kTileVectors) {
    gemm_columns<A, kTileVectors, TRANSPOSED>(rows, depth, a, lda, b, ldb, c, ldc, accumulate);
    b += kTileVectors * L;
    c += kTileVectors * L;
    if (accumulate.scale != nullptr) accumulate.scale += kTileVectors * L;
  }
  if (vectors == 1) gemm_columns<A, 1, TRANSPOSED>(rows, depth, a, lda, b, ldb, c, ldc, accumulate);
}

// Long sums are made of sums of this many terms: rounding grows with the length of a chain of additions, and in one chain
// over a head dim of 256 it would be a third more than in a BLAS. Blocks of 32, for every depth, were another third more
// accurate but 7% slower; so the mean error is 0.65 to 1.0 of torch's at D 64 to 256.
constexpr int64_t kDepthBlock = 64;
// Where rounding is felt most, or there are too few rows for the product's speed to matter.
constexpr int64_t kShortBlock = 16;
// Where a BLAS has no products of matrices, but dot products, which it adds up in vectors.
constexpr int64_t kDotBlock = 8;
template <class A, bool TRANSPOSED>
inline void gemm(int64_t rows, int vectors, int64_t depth, const A* a, int64_t lda, const A* b, int64_t ldb, A* c,
                 int64_t ldc, Accumulate<A> accumulate, int64_t block = kDepthBlock) {
  for (; depth > block * 3 / 2; depth -= block) {
    gemm_panel<A, TRANSPOSED>(rows, vectors, block, a, lda, b, ldb, c, ldc, accumulate);
    accumulate = {true, nullptr};
    a += block * (TRANSPOSED ? lda : 1);
    b += block * ldb;
  }
  gemm_panel<A, TRANSPOSED>(rows, vectors, depth, a, lda, b, ldb, c, ldc, accumulate);
}

// --- transposition -------------------------------------------------------------------------------------------------

template <class V, int... I>
TW_INLINE V interleave_low(V a, V b, std::integer_sequence<int, I...>) {
  constexpr int n = sizeof...(I);
  return shuffle(a, b, std::integer_sequence<int, (I / 2 + (I % 2) * n)...>{});
}
template <class V, int... I>
TW_INLINE V interleave_high(V a, V b, std::integer_sequence<int, I...>) {
  constexpr int n = sizeof...(I);
  return shuffle(a, b, std::integer_sequence<int, (n / 2 + I / 2 + (I % 2) * n)...>{});
}

// An L x L block in registers. A perfect shuffle of all its elements rotates their index by one bit; log2(L) of them
// exchange the row bits with the column bits.
template <class A>
TW_MEMBER void transpose(Vec<A> (&r)[Simd<A>::lanes]) {
  constexpr int L = Simd<A>::lanes;
  using Lanes = std::make_integer_sequence<int, L>;
  for (int step = L; step > 1; step /= 2) {
    Vec<A> t[L];
    for (int i = 0; i < L / 2; ++i) {
      t[2 * i] = interleave_low(r[i], r[i + L / 2], Lanes{});
      t[2 * i + 1] = interleave_high(r[i], r[i + L / 2], Lanes{});
    }
    for (int i = 0; i < L; ++i) r[i] = t[i];
  }
}

#if defined(__AVX__) && TW_VECTOR_BYTES == 32
// The same by instructions that the shuffles above are not compiled to; half the cost.
template <>
TW_MEMBER void transpose<float>(vfloat (&r)[8]) {
  __m256 t[8], u[8];
  for (int i = 0; i < 8; i += 2) {
    t[i] = _mm256_unpacklo_ps((__m256)r[i], (__m256)r[i + 1]);
    t[i + 1] = _mm256_unpackhi_ps((__m256)r[i], (__m256)r[i + 1]);
  }
  for (int i = 0; i < 8; i += 4)
    for (int k = 0; k < 2; ++k) {
      u[i + 2 * k] = _mm256_shuffle_ps(t[i + k], t[i + k + 2], 0x44);
      u[i + 2 * k + 1] = _mm256_shuffle_ps(t[i + k], t[i + k + 2], 0xEE);
    }
  for (int i = 0; i < 4; ++i) {
    r[i] = (vfloat)_mm256_permute2f128_ps(u[i], u[i + 4], 0x20);
    r[i + 4] = (vfloat)_mm256_permute2f128_ps(u[i], u[i + 4], 0x31);
  }
}
#endif

// --- packing: the only places that see the storage type ------------------------------------------------------------
// Not inlined: each has a copy of its loops for every storage type.

// dst [dim][kStripLanes] = scale * rows^T; lanes from `count` on become 0.
template <class A>
TW_NOINLINE void pack_strip(DType dtype, const char* const* rows, int count, int64_t dim, A scale, A* dst) {
  constexpr int L = Simd<A>::lanes;
  with_dtype<A>(dtype, [&](auto t) {
    using T = decltype(t);
    for (int base = 0; base < kStripLanes<A>; base += L)
      for (int64_t d = 0; d < dim; d += L) {
        const int width = static_cast<int>(dim - d < L ? dim - d : L);
        Vec<A> block[L];
        if (base + L <= count && width == L) {
          for (int i = 0; i < L; ++i) block[i] = load(reinterpret_cast<const T*>(rows[base + i]) + d) * scale;
          transpose<A>(block);
          for (int i = 0; i < L; ++i) store(dst + (d + i) * kStripLanes<A> + base, block[i]);
          continue;
        }
        for (int i = 0; i < L; ++i) {
          block[i] = Vec<A>{};
          if (base + i < count) block[i] = load_partial(reinterpret_cast<const T*>(rows[base + i]) + d, width) * scale;
        }
        transpose<A>(block);
        for (int i = 0; i < width; ++i) store(dst + (d + i) * kStripLanes<A> + base, block[i]);
      }
  });
}

// rows[i] [dim] = scale[i] * src[:, i] for the first `count` lanes of src [dim][kStripLanes].
template <class A>
TW_NOINLINE void unpack_strip(DType dtype, const A* src, int64_t dim, const A* scale, char* const* rows, int count) {
  constexpr int L = Simd<A>::lanes;
  with_dtype<A>(dtype, [&](auto t) {
    using T = decltype(t);
    for (int base = 0; base < count; base += L) {
      const Vec<A> factor = load(scale + base);
      for (int64_t d = 0; d < dim; d += L) {
        const int width = static_cast<int>(dim - d < L ? dim - d : L);
        Vec<A> block[L];
        if (base + L <= count && width == L) {
          for (int i = 0; i < L; ++i) block[i] = load(src + (d + i) * kStripLanes<A> + base) * factor;
          transpose<A>(block);
          for (int i = 0; i < L; ++i) store(reinterpret_cast<T*>(rows[base + i]) + d, block[i]);
          continue;
        }
        for (int i = 0; i < L; ++i) {
          block[i] = Vec<A>{};
          if (i < width) block[i] = load(src + (d + i) * kStripLanes<A> + base) * factor;
        }
        transpose<A>(block);
        for (int i = 0; i < L && base + i < count; ++i) {
          T* row = reinterpret_cast<T*>(rows[base + i]) + d;
          width == L ? store(row, block[i]) : store_partial(row, block[i], width);
        }
      }
    }
  });
}

// A row's elements from `src` to `dst`, changed by `f`, by vectors, of which the last may overlap the one before.
template <class T, class S, class F>
TW_INLINE void for_row(T* dst, const S* src, int64_t dim, const F& f) {
  constexpr int64_t L = Simd<Accumulator<T>>::lanes;
  for (int64_t d = 0; d + L <= dim; d += L) store(dst + d, f(load(src + d)));
  if (dim % L == 0) return;
  const auto few = static_cast<int>(dim);
  dim > L ? store(dst + dim - L, f(load(src + dim - L))) : store_partial(dst, f(load_partial(src, few)), few);
}

// One row of `dim` elements widened to A, zero-filled up to `padded`, which is `dim` or the next whole number of vectors.
template <class A>
TW_NOINLINE void widen_row(DType dtype, const char* row, int64_t dim, int64_t padded, A* dst) {
  if (dim < padded) store(dst + padded - Simd<A>::lanes, Vec<A>{});
  with_dtype<A>(
      dtype, [&](auto t) { for_row(dst, reinterpret_cast<const decltype(t)*>(row), dim, [](Vec<A> v) { return v; }); });
}

// The other way, scaled: row[dim] = scale * src.
template <class A>
TW_NOINLINE void narrow_row(DType dtype, const A* src, int64_t dim, A scale, char* row) {
  with_dtype<A>(dtype, [&](auto t) {
    for_row(reinterpret_cast<decltype(t)*>(row), src, dim, [&](Vec<A> v) { return v * scale; });
  });
}

}  // namespace TW_ISA
}  // namespace tilewright
