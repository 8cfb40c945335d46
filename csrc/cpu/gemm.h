// Matrix products C = A B^T over strided operands of any storage type, for the feed-forward block.
//
// The scheme is the usual one (Goto and van de Geijn, "Anatomy of high-performance matrix multiplication", 2008):
// operands are packed into panels that a register-blocked kernel reads in order (in vectors or in AMX's tiles). A is
// packed once for the call; each task then owns a block of C, packs its own panels of B, and needs no other thread.
// The epilogue sees every finished tile while it is in the first-level cache, so bias, activation and residual cost no
// pass over memory.
//
// Products of few rows are computed otherwise: see gemm_few_rows.h.
#pragma once

#include "gemm_few_rows.h"
#if defined(TW_TILES)
#include "gemm_tiles.h"
#else
#include "gemm_vectors.h"
#endif

namespace tilewright {
namespace TW_ISA {

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

// --- the product ---------------------------------------------------------------------------------------------------

template <class A>
struct Blocking {
  static constexpr int64_t kColumns = kPanelColumns<A>;
  int64_t row_blocks, rows, column_blocks, columns;  // of C, gate and up counted once
  int64_t packed_a, packed_b, tiles;                 // accumulators' room: for the call, and for each thread

  explicit Blocking(const Product<A>& p) {
    const int64_t pair = p.gated ? 2 : 1, wanted = kTasksPerThread * p.threads;
    rows = min64(kTaskRows, round_up(p.m, kPanelRows));
    columns = min64(kTaskColumns / pair, round_up(p.n, kColumns));
    const auto tasks = [&] { return ceil_div(p.m, rows) * ceil_div(p.n, columns); };
    while (tasks() < wanted && columns > 3 * kColumns) columns = round_up(columns / 2, kColumns);
    while (tasks() < wanted && rows > kRowBlock / 2) rows = round_up(rows / 2, kPanelRows);
    row_blocks = ceil_div(p.m, rows);
    column_blocks = ceil_div(p.n, columns);
    packed_a = room(round_up(p.m, kPanelRows) * round_up(p.k, kDepthStep));
    packed_b = room(pair * columns * min64(kDepth, round_up(p.k, kDepthStep)));
    tiles = pair * columns * rows;
  }

 private:
  // A whole number of cache lines, in elements of A.
  static int64_t room(int64_t packed) {
    return round_up(ceil_div(packed * static_cast<int64_t>(sizeof(Packed<A>)), sizeof(A)), 16);
  }
};

// Working memory of gemm(p), in elements of A.
template <class A>
int64_t gemm_scratch(const Product<A>& p) {
  if (p.m == 0 || p.n == 0 || p.k == 0) return 0;
  if (few_rows(p)) return few_rows_operand(p) + p.threads * few_rows_results(p);
  const Blocking<A> blocking(p);
  return blocking.packed_a + p.threads * round_up(blocking.packed_b + blocking.tiles, 16);
}

template <class A>
void gemm_packed(const Product<A>& p, A* scratch, const typename Product<A>::Epilogue& epilogue,
                 const Prefetch* prefetch) {
  constexpr int64_t NR = kPanelColumns<A>, MR = kPanelRows;
  const Blocking<A> blocking(p);
  const int64_t panels = ceil_div(p.m, MR), padded = panels * MR, pair = p.gated ? 2 : 1;
  const int64_t sum_depth = p.n <= NR ? kShortSumDepth : kSumDepth;
  // A: for each block of depth, its panels one after another.
  Packed<A>* const packed_a = reinterpret_cast<Packed<A>*>(scratch);
  A* const own = scratch + blocking.packed_a;
  const int64_t own_size = round_up(blocking.packed_b + blocking.tiles, 16);
  const int64_t per_task = max64(1, 16384 / (MR * p.k));
  parallel_for(ceil_div(panels, per_task), p.threads, [&](int64_t task, int) {
    for (int64_t i = task * per_task; i < min64(panels, (task + 1) * per_task); ++i)
      for (int64_t k = 0; k < p.k; k += kDepth) {
        const int64_t depth = min64(kDepth, p.k - k);
        pack_rows(p.a, i * MR, p.m - i * MR, k, depth, packed_a + k * padded + i * MR * round_up(depth, kDepthStep));
      }
  });
  parallel_for(blocking.row_blocks * blocking.column_blocks, p.threads, [&](int64_t task, int thread) {
    const int64_t row = task % blocking.row_blocks * blocking.rows, rows = min64(blocking.rows, p.m - row);
    const int64_t column = task / blocking.row_blocks * blocking.columns,
                  columns = min64(blocking.columns, p.n - column);
    const int64_t row_panels = ceil_div(rows, MR), column_panels = pair * ceil_div(columns, NR);
    Packed<A>* const packed_b = reinterpret_cast<Packed<A>*>(own + thread * own_size);
    A* const tiles = own + thread * own_size + blocking.packed_b;  // [column panel][row panel][MR][NR]
    [[maybe_unused]] const PanelScope scope;
    for (int64_t k = 0; k < p.k; k += kDepth) {
      const int64_t part = min64(kDepth, p.k - k), depth = round_up(part, kDepthStep);
      const bool last = k + part == p.k;
      // Panels of B in order; in a gated product the gate's and the up projection's alternate.
      for (int64_t j = 0; j < column_panels; ++j) {
        const int64_t n = column + j / pair * NR;
        pack_columns(p.b, n + (j % pair) * p.n, p.n - n, k, part, packed_b + j * NR * depth);
      }
      for (int64_t first = 0; first < row_panels; first += kRowBlock / MR)
        for (int64_t j = 0; j < column_panels; ++j)
          for (int64_t i = first; i < min64(row_panels, first + kRowBlock / MR); ++i) {
            A* const tile = tiles + (j * row_panels + i) * MR * NR;
            const int64_t here = min64(MR, rows - i * MR);
            const Packed<A>* const a = packed_a + k * padded + (row / MR + i) * MR * depth;
            if (last && prefetch != nullptr)
              for (int64_t r = 0; r < here; ++r) (*prefetch)(row + i * MR + r, column + j / pair * NR);
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

// The product over no depth: zero, but the epilogue still has its bias to add.
template <class A>
void gemm_empty(const Product<A>& p, const typename Product<A>::Epilogue& epilogue) {
  constexpr int64_t W = kFewColumns;
  for (int64_t m = 0; m < p.m; ++m)
    for (int64_t n = 0; n < p.n; n += W) {
      A zeros[2][W] = {};
      epilogue(
          FinishedTile<A>{m, n, 1, static_cast<int>(min64(W, p.n - n)), zeros[0], p.gated ? zeros[1] : nullptr, W});
    }
}

// scratch: gemm_scratch(p) elements, 64-byte aligned. epilogue(tile) is called once for every part of C, from any
// thread; prefetch(m, n), if there is one, some time before, for each row of a tile, to start loading what the epilogue
// will read there: a tile's rows lie on different pages, which no hardware prefetcher follows.
template <class A>
void gemm(const Product<A>& p, A* scratch, const typename Product<A>::Epilogue& epilogue,
          const Prefetch* prefetch = nullptr) {
  if (p.m == 0 || p.n == 0) return;
  if (p.k == 0) return gemm_empty(p, epilogue);
  few_rows(p) ? gemm_few_rows(p, scratch, epilogue) : gemm_packed(p, scratch, epilogue, prefetch);
}

}  // namespace TW_ISA
}  // namespace tilewright
