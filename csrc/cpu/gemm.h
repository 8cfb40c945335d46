// Matrix products C = A B^T over strided operands of any storage type, for the feed-forward block.
//
// The scheme is the usual one (Goto and van de Geijn, "Anatomy of high-performance matrix multiplication", 2008):
// operands are packed, widened to the accumulator's type, into panels that a register-blocked kernel reads in order. A
// is packed once for the call; each task then owns a block of C, packs its own panels of B, and needs no other thread.
// The epilogue sees every finished tile while it is in the first-level cache, so bias, activation and residual cost no
// pass over memory.
//
// With few rows the weights are read once and the time is theirs, so they are not packed: see gemm_few_rows.
#pragma once

#include "integers.h"
#include "parallel.h"
#include "simd.h"

namespace tilewright {
namespace TW_ISA {

// 6 x 2 accumulators, two vectors of B and one broadcast fill the 16 registers of SSE and AVX2; AVX-512 has 32.
constexpr int kPanelRows = TW_VECTOR_BYTES == 64 ? 12 : 6;
template <class A>
constexpr int kPanelColumns = 2 * Simd<A>::lanes;
// Depth of a packed block: a panel of B (256 x 2 vectors, 16 KiB with AVX2) stays in the first-level cache.
constexpr int64_t kDepth = 256;
// Products added in registers before they join the sum in memory: the rounding error of a sum of n random terms in
// blocks of b grows with sqrt(b + n / b), and b = 128 costs 2% of the speed.
constexpr int64_t kSumDepth = 128;
// A product of one panel's width is too small for its speed to matter.
constexpr int64_t kShortSumDepth = 16;
// Rows of packed A that stay in the second-level cache while the panels of B pass: 192 x 256 floats are 192 KiB.
constexpr int64_t kRowBlock = 192;
// A task's block of C. 384 x 192 gave 84 of 102 GFLOP/s on one Zen 3 core; 192 x 192 to 768 x 384 were within 3% of it
// (768 x 3072 weights, 1024 rows). Larger blocks pack less; tasks are made smaller until there are kTasksPerThread for
// each thread.
constexpr int64_t kTaskRows = 384, kTaskColumns = 192;
constexpr int64_t kTasksPerThread = 4;
// Up to this many rows, row-contiguous weights are streamed instead of packed.
constexpr int64_t kFewRows = 16;

// Element (i, k) is at i * row_stride + k * depth_stride.
struct Operand {
  const void* data;
  DType dtype;
  int64_t row_stride, depth_stride;
};

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

// --- the product ---------------------------------------------------------------------------------------------------

// C (m x n) = A (m x k) B^T, B being n x k. With `gated`, B has 2n rows, and column j of C pairs rows j and n + j of B.
template <class A>
struct Product {
  Operand a, b;
  int64_t m, n, k;
  bool gated;
  int threads;
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

template <class A>
struct Blocking {
  static constexpr int64_t kColumns = kPanelColumns<A>;
  int64_t row_blocks, rows, column_blocks, columns;  // of C, gate and up counted once
  int64_t packed_a, packed_b, tiles;                 // elements: for the call, and for each thread

  explicit Blocking(const Product<A>& p) {
    const int64_t pair = p.gated ? 2 : 1, wanted = kTasksPerThread * p.threads;
    rows = min64(kTaskRows, round_up(p.m, kPanelRows));
    columns = min64(kTaskColumns / pair, round_up(p.n, kColumns));
    const auto tasks = [&] { return ceil_div(p.m, rows) * ceil_div(p.n, columns); };
    while (tasks() < wanted && columns > 3 * kColumns) columns = round_up(columns / 2, kColumns);
    while (tasks() < wanted && rows > kRowBlock / 2) rows = round_up(rows / 2, kPanelRows);
    row_blocks = ceil_div(p.m, rows);
    column_blocks = ceil_div(p.n, columns);
    packed_a = round_up(p.m, kPanelRows) * p.k;
    packed_b = pair * columns * min64(kDepth, p.k);
    tiles = pair * columns * rows;
  }
};

// With a row-contiguous B, packing it pays only when it is used often enough.
template <class A>
TW_INLINE bool few_rows(const Product<A>& p) {
  return p.m <= kFewRows && p.b.depth_stride == 1;
}

constexpr int64_t kFewColumns = 32;  // columns of C in a task of gemm_few_rows
template <class A>
constexpr int64_t kTileElements = max64(kFewColumns * kFewRows, kPanelColumns<A>* kPanelRows);

// Working memory of gemm(p), in elements of A.
template <class A>
int64_t gemm_scratch(const Product<A>& p) {
  if (p.m == 0 || p.n == 0 || p.k == 0) return 0;
  if (few_rows(p)) return round_up(p.m, 4) * round_up(p.k, Simd<A>::lanes) + p.threads * 2 * kFewColumns * kFewRows;
  const Blocking<A> blocking(p);
  return round_up(blocking.packed_a, 16) + p.threads * round_up(blocking.packed_b + blocking.tiles, 16);
}

// For an epilogue that reads nothing of C's shape.
struct NoPrefetch {
  TW_MEMBER void operator()(int64_t, int64_t) const {}
};

template <class A, class Epilogue, class Prefetch>
void gemm_packed(const Product<A>& p, A* scratch, const Epilogue& epilogue, const Prefetch& prefetch) {
  constexpr int64_t NR = kPanelColumns<A>, MR = kPanelRows;
  const Blocking<A> blocking(p);
  const int64_t panels = ceil_div(p.m, MR), padded = panels * MR, pair = p.gated ? 2 : 1;
  const int64_t sum_depth = p.n <= NR ? kShortSumDepth : kSumDepth;
  // A: for each block of depth, its panels one after another.
  A* const packed_a = scratch;
  A* const own = scratch + round_up(blocking.packed_a, 16);
  const int64_t own_size = round_up(blocking.packed_b + blocking.tiles, 16);
  const int64_t per_task = max64(1, 16384 / (MR * p.k));
  parallel_for(ceil_div(panels, per_task), p.threads, [&](int64_t task, int) {
    for (int64_t i = task * per_task; i < min64(panels, (task + 1) * per_task); ++i)
      for (int64_t k = 0; k < p.k; k += kDepth) {
        const int64_t depth = min64(kDepth, p.k - k);
        pack_panel<A, kPanelRows>(p.a, i * MR, p.m - i * MR, k, depth, packed_a + k * padded + i * MR * depth);
      }
  });
  parallel_for(blocking.row_blocks * blocking.column_blocks, p.threads, [&](int64_t task, int thread) {
    const int64_t row = task % blocking.row_blocks * blocking.rows, rows = min64(blocking.rows, p.m - row);
    const int64_t column = task / blocking.row_blocks * blocking.columns,
                  columns = min64(blocking.columns, p.n - column);
    const int64_t row_panels = ceil_div(rows, MR), column_panels = pair * ceil_div(columns, NR);
    A* const packed_b = own + thread * own_size;
    A* const tiles = packed_b + blocking.packed_b;  // [column panel][row panel][MR][NR]
    for (int64_t k = 0; k < p.k; k += kDepth) {
      const int64_t depth = min64(kDepth, p.k - k);
      const bool last = k + depth == p.k;
      // Panels of B in order; in a gated product the gate's and the up projection's alternate.
      for (int64_t j = 0; j < column_panels; ++j) {
        const int64_t n = column + j / pair * NR;
        pack_panel<A, kPanelColumns<A>>(p.b, n + (j % pair) * p.n, p.n - n, k, depth, packed_b + j * NR * depth);
      }
      for (int64_t first = 0; first < row_panels; first += kRowBlock / MR)
        for (int64_t j = 0; j < column_panels; ++j)
          for (int64_t i = first; i < min64(row_panels, first + kRowBlock / MR); ++i) {
            A* const tile = tiles + (j * row_panels + i) * MR * NR;
            const int64_t here = min64(MR, rows - i * MR);
            const A* const a = packed_a + k * padded + (row / MR + i) * MR * depth;
            if (last)
              for (int64_t r = 0; r < here; ++r) prefetch(row + i * MR + r, column + j / pair * NR);
            multiply_panels(here, depth, sum_depth, a, packed_b + j * NR * depth, tile, k > 0);
            if (!last || j % pair != pair - 1) continue;
            const int64_t n = column + j / pair * NR;
            A* const gate = p.gated ? tile - row_panels * MR * NR : tile;
            epilogue(FinishedTile<A>{row + i * MR, n, static_cast<int>(here), static_cast<int>(min64(NR, p.n - n)),
                                     gate, p.gated ? tile : nullptr, NR});
          }
    }
  });
}

// --- few rows ------------------------------------------------------------------------------------------------------

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

template <class A, int COLUMNS, class T>
TW_INLINE void dot_rows(int64_t rows, int64_t depth, const A* a, int64_t lda, const T* b, int64_t ldb, A* c,
                        int64_t ldc) {
  int64_t i = 0;
  for (; i + 3 <= rows; i += 3) dot_block<A, 3, COLUMNS>(depth, a + i * lda, lda, b, ldb, c + i * ldc, ldc);
  if (i + 2 == rows) dot_block<A, 2, COLUMNS>(depth, a + i * lda, lda, b, ldb, c + i * ldc, ldc);
  if (i + 1 == rows) dot_block<A, 1, COLUMNS>(depth, a + i * lda, lda, b, ldb, c + i * ldc, ldc);
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

template <class A, class Epilogue>
void gemm_few_rows(const Product<A>& p, A* scratch, const Epilogue& epilogue) {
  constexpr int64_t W = kFewColumns;
  const int64_t lda = round_up(p.k, Simd<A>::lanes);
  A* const a = scratch;
  A* const results = a + round_up(p.m, 4) * lda;
  widen_rows(p.a, p.m, p.k, a, lda);
  parallel_for(ceil_div(p.n, W), p.threads, [&](int64_t task, int thread) {
    A* const tile = results + thread * 2 * W * kFewRows;
    A* const second = p.gated ? tile + W * kFewRows : nullptr;
    const int64_t n = task * W, columns = min64(W, p.n - n);
    dot_columns(p, n, columns, a, lda, tile, W);
    if (p.gated) dot_columns(p, n + p.n, columns, a, lda, second, W);
    epilogue(FinishedTile<A>{0, n, static_cast<int>(p.m), static_cast<int>(columns), tile, second, W});
  });
}

// The product over no depth: zero, but the epilogue still has its bias to add.
template <class A, class Epilogue>
void gemm_empty(const Product<A>& p, const Epilogue& epilogue) {
  constexpr int64_t W = kFewColumns;
  for (int64_t m = 0; m < p.m; ++m)
    for (int64_t n = 0; n < p.n; n += W) {
      A zeros[2][W] = {};
      epilogue(
          FinishedTile<A>{m, n, 1, static_cast<int>(min64(W, p.n - n)), zeros[0], p.gated ? zeros[1] : nullptr, W});
    }
}

// scratch: gemm_scratch(p) elements, 64-byte aligned. epilogue(tile) is called once for every part of C, from any
// thread; prefetch(m, n) some time before, for each row of a tile, to start loading what the epilogue will read there:
// a tile's rows lie on different pages, which no hardware prefetcher follows.
template <class A, class Epilogue, class Prefetch = NoPrefetch>
void gemm(const Product<A>& p, A* scratch, const Epilogue& epilogue, const Prefetch& prefetch = {}) {
  if (p.m == 0 || p.n == 0) return;
  if (p.k == 0) return gemm_empty(p, epilogue);
  few_rows(p) ? gemm_few_rows(p, scratch, epilogue) : gemm_packed(p, scratch, epilogue, prefetch);
}

}  // namespace TW_ISA
}  // namespace tilewright
