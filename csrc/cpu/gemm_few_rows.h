// Matrix products of few rows. The weights are then read once and the time is theirs: they are not packed but streamed in
// the order in which they lie, whether that is along their rows (nn.Linear) or along their columns (a transposed view).
#pragma once

#include <type_traits>

#include "gemm_product.h"

namespace tilewright {
namespace TW_ISA {

template <class A>
TW_INLINE bool few_rows(const Product<A>& p) {
  return p.m <= kFewRows && (p.b.depth_stride == 1 || p.b.row_stride == 1);
}
template <class A>
TW_INLINE bool along_columns(const Product<A>& p) {
  return p.b.depth_stride != 1;
}

// --- weights along their rows: dot products ------------------------------------------------------------------------

// c[i * ldc + j] = dot(a row i, b row j) for ROWS rows and COLUMNS columns; the lanes run along the depth.
template <class A, int ROWS, int COLUMNS, class T>
TW_INLINE void dot_block(int64_t depth, const A* a, int64_t lda, const T* b, int64_t ldb, A* c, int64_t ldc) {
  constexpr int L = Simd<A>::lanes;
  Vec<A> acc[ROWS][COLUMNS];
  for (int i = 0; i < ROWS; ++i)
    for (int j = 0; j < COLUMNS; ++j) acc[i][j] = Vec<A>{};
  int64_t k = 0;
  for (; k + L <= depth; k += L)
    for (int j = 0; j < COLUMNS; ++j) {
      const Vec<A> v = load(b + j * ldb + k);
      for (int i = 0; i < ROWS; ++i) acc[i][j] += load(a + i * lda + k) * v;
    }
  if (k < depth)
    for (int j = 0; j < COLUMNS; ++j) {
      const Vec<A> v = load_partial(b + j * ldb + k, static_cast<int>(depth - k));
      for (int i = 0; i < ROWS; ++i) acc[i][j] += load(a + i * lda + k) * v;
    }
  for (int i = 0; i < ROWS; ++i)
    for (int j = 0; j < COLUMNS; ++j) c[i * ldc + j] = horizontal_sum(acc[i][j]);
}

// use(first, count) for groups of three rows, and for the two or one that are left; the count is a constant.
template <class F>
TW_INLINE void for_row_groups(int64_t rows, const F& use) {
  int64_t i = 0;
  for (; i + 3 <= rows; i += 3) use(i, std::integral_constant<int, 3>{});
  if (i + 2 == rows) use(i, std::integral_constant<int, 2>{});
  if (i + 1 == rows) use(i, std::integral_constant<int, 1>{});
}

template <class A, int COLUMNS, class T>
TW_INLINE void dot_rows(int64_t rows, int64_t depth, const A* a, int64_t lda, const T* b, int64_t ldb, A* c,
                        int64_t ldc) {
  for_row_groups(rows, [&](int64_t i, auto count) {
    dot_block<A, count, COLUMNS>(depth, a + i * lda, lda, b, ldb, c + i * ldc, ldc);
  });
}

// c[i][j] for `columns` rows of B from `n` on. Each weight is loaded from memory once, in the order it lies there, and
// used for every row; 12 accumulators of 3 rows and 4 weights' rows keep the FMA units ahead of the memory up to
// kFewRows rows.
template <class A>
void dot_columns(const Product<A>& p, int64_t n, int64_t columns, const A* a, int64_t lda, A* c, int64_t ldc) {
  with_dtype<A>(p.b.dtype, [&](auto t) {
    const int64_t ldb = p.b.row_stride;
    const auto* b = static_cast<const decltype(t)*>(p.b.data) + n * ldb;
    int64_t j = 0;
    for (; j + 4 <= columns; j += 4) dot_rows<A, 4>(p.m, p.k, a, lda, b + j * ldb, ldb, c + j, ldc);
    for (; j < columns; ++j) dot_rows<A, 1>(p.m, p.k, a, lda, b + j * ldb, ldb, c + j, ldc);
  });
}

// dst [rows][lda] = A, widened, 0 past its depth.
template <class A>
void widen_rows(const Operand& m, int64_t rows, int64_t depth, A* dst, int64_t lda) {
  with_dtype<A>(m.dtype, [&](auto t) {
    for (int64_t i = 0; i < rows; ++i) {
      const auto* src = static_cast<const decltype(t)*>(m.data) + i * m.row_stride;
      for (int64_t k = 0; k < depth; ++k) dst[i * lda + k] = to_float(src[k * m.depth_stride]);
      for (int64_t k = depth; k < lda; ++k) dst[i * lda + k] = 0;
    }
  });
}

// --- weights along their columns: sums of scaled columns -----------------------------------------------------------

// Columns of C whose sums a task of such weights keeps at hand. Fewer leave the hardware prefetchers short pieces.
constexpr int64_t kStripColumns = 512;
// Products are summed over so much depth before they join the total, which keeps the rounding error of long sums down.
// Of a single vector of columns it is over less, as a BLAS's product of a matrix and a vector has it.
constexpr int64_t kStripDepth = 128, kShortStripDepth = 8;

// c[i][j] += sum of a[i][k] b[k][j] over DEPTH ks, for ROWS rows of `lds` elements.
template <class A, int ROWS, int DEPTH, class T>
TW_INLINE void add_scaled(int64_t columns, const A* a, int64_t lda, const T* b, int64_t ldb, A* c, int64_t lds) {
  constexpr int L = Simd<A>::lanes;
  const auto step = [&](int64_t j, auto at) {
    Vec<A> sums[ROWS];
    for (int i = 0; i < ROWS; ++i) sums[i] = load(c + i * lds + j);
    for (int k = 0; k < DEPTH; ++k) {
      const Vec<A> v = at(b + k * ldb + j);
      for (int i = 0; i < ROWS; ++i) sums[i] += a[i * lda + k] * v;
    }
    for (int i = 0; i < ROWS; ++i) store(c + i * lds + j, sums[i]);
  };
  int64_t j = 0;
  for (; j + L <= columns; j += L) step(j, [](const T* p) { return load(p); });
  if (j < columns) step(j, [&](const T* p) { return load_partial(p, static_cast<int>(columns - j)); });
}

template <class A, int DEPTH, class T>
TW_INLINE void add_scaled_rows(int64_t rows, int64_t columns, const A* a, int64_t lda, const T* b, int64_t ldb, A* c,
                               int64_t lds) {
  for_row_groups(rows, [&](int64_t i, auto count) {
    add_scaled<A, count, DEPTH>(columns, a + i * lda, lda, b, ldb, c + i * lds, lds);
  });
}

// total[i][j] for `columns` rows of B from `n` on; `part` has the same size.
template <class A>
void sum_columns(const Product<A>& p, int64_t n, int64_t columns, const A* a, int64_t lda, A* part, A* total,
                 int64_t lds) {
  constexpr int L = Simd<A>::lanes;
  const size_t bytes = static_cast<size_t>(p.m * lds) * sizeof(A);
  std::memset(total, 0, bytes);
  with_dtype<A>(p.b.dtype, [&](auto t) {
    const int64_t ldb = p.b.depth_stride;
    const auto* b = static_cast<const decltype(t)*>(p.b.data) + n;
    const int64_t depth = p.n <= L ? kShortStripDepth : kStripDepth;
    for (int64_t first = 0; first < p.k; first += depth) {
      const int64_t end = min64(first + depth, p.k);
      std::memset(part, 0, bytes);
      int64_t k = first;
      for (; k + 4 <= end; k += 4) add_scaled_rows<A, 4>(p.m, columns, a + k, lda, b + k * ldb, ldb, part, lds);
      for (; k < end; ++k) add_scaled_rows<A, 1>(p.m, columns, a + k, lda, b + k * ldb, ldb, part, lds);
      for (int64_t at = 0; at < p.m * lds; at += L) store(total + at, load(total + at) + load(part + at));
    }
  });
}

// --- the product ---------------------------------------------------------------------------------------------------

// Columns of C in a task: each thread's share where the weights lie along their columns, to read them in long pieces.
template <class A>
int64_t few_rows_columns(const Product<A>& p) {
  return along_columns(p) ? min64(kStripColumns, round_up(ceil_div(p.n, p.threads), kFewColumns)) : kFewColumns;
}

// Elements for the widened A; and for a thread's results: tile and second, or part and the totals that both come from.
template <class A>
int64_t few_rows_operand(const Product<A>& p) {
  return round_up(p.m, 4) * round_up(p.k, Simd<A>::lanes);
}
template <class A>
int64_t few_rows_results(const Product<A>& p) {
  return 2 * kFewColumns * kFewRows + (along_columns(p) ? 3 * p.m * few_rows_columns(p) : 0);
}

template <class A>
void gemm_few_rows(const Product<A>& p, A* scratch, const typename Product<A>::Epilogue& epilogue) {
  constexpr int64_t W = kFewColumns;
  const int64_t lda = round_up(p.k, Simd<A>::lanes), task_columns = few_rows_columns(p);
  const bool strips = along_columns(p);
  A* const a = scratch;
  A* const results = a + few_rows_operand(p);
  widen_rows(p.a, p.m, p.k, a, lda);
  parallel_for(ceil_div(p.n, task_columns), p.threads, [&](int64_t task, int thread) {
    A* const tile = results + thread * few_rows_results(p);
    A* const second = tile + W * kFewRows;
    A* const part = second + W * kFewRows;
    A* const totals[] = {part + p.m * task_columns, part + 2 * p.m * task_columns};
    const int64_t first = task * task_columns, end = min64(p.n, first + task_columns);
    if (strips)
      for (int half = 0; half < (p.gated ? 2 : 1); ++half)
        sum_columns(p, first + half * p.n, end - first, a, lda, part, totals[half], task_columns);
    for (int64_t n = first; n < end; n += W) {
      const int64_t columns = min64(W, end - n);
      for (int half = 0; half < (p.gated ? 2 : 1); ++half) {
        A* const to = half == 0 ? tile : second;
        if (!strips)
          dot_columns(p, n + half * p.n, columns, a, lda, to, W);
        else
          for (int64_t i = 0; i < p.m; ++i)
            std::memcpy(to + i * W, totals[half] + i * task_columns + n - first, W * sizeof(A));
      }
      epilogue(
          FinishedTile<A>{0, n, static_cast<int>(p.m), static_cast<int>(columns), tile, p.gated ? second : nullptr, W});
    }
  });
}

}  // namespace TW_ISA
}  // namespace tilewright
