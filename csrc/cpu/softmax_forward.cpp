// softmax and log_softmax, forward.
//
// A block of columns is brought into a buffer as scores; its maximum m_b and sum of exponentials s_b are found; the
// blocks' are joined, sum = sum_b s_b exp(m_b - m) (Milakov and Gimelshein, "Online normalizer calculation for
// softmax", 2018); then the block is finished. A row that fits the buffer is one block: it is read once, exponentiated
// once and written once. Longer rows are read twice, and their blocks can be shared by threads: the order of the sums
// never depends on how many.
#include "isa.h"
#include "parallel.h"
#include "scratch.h"
#include "softmax_io.h"
#include "sums.h"

namespace tilewright {
namespace TW_ISA {
namespace {

template <class A>
struct Stats {
  A max, sum;
};

// What a score is shifted by: the maximum, unless every score is excluded.
template <class A>
TW_INLINE A base_of(A max) {
  return max == -INFINITY ? A{0} : max;
}

template <class A>
Stats<A> join(const Stats<A>* blocks, int64_t count) {
  if (count == 1) return blocks[0];
  A max = -INFINITY, sum = 0;
  for (int64_t b = 0; b < count; ++b) max = blocks[b].max > max ? blocks[b].max : max;
  for (int64_t b = 0; b < count; ++b) sum += blocks[b].sum * std::exp(blocks[b].max - base_of(max));
  return {max, sum};
}

template <class A>
TW_INLINE A log_sum(A sum) {
  return sum == 0 ? A{0} : std::log(sum);
}

template <class A>
TW_INLINE A max_of(const A* s, int64_t count) {
  constexpr int L = kLanes<A>;
  Vec<A> m[kUnroll];
  for (auto& v : m) v = broadcast<A>(-INFINITY);
  int64_t j = 0;
  for (; j + kUnroll * L <= count; j += kUnroll * L)
    for (int u = 0; u < kUnroll; ++u) m[u] = vmax(m[u], load(s + j + u * L));
  for (; j < count; j += L) m[0] = vmax(m[0], load(s + j));
  return horizontal_max(vmax(vmax(m[0], m[1]), vmax(m[2], m[3])));
}

// Sum of exp(s - base), which replaces s when `keep`. Two vectors at a time: more would not fit the registers beside the
// polynomial's constants.
template <class A, bool keep>
TW_INLINE A exp_and_sum(A* s, int64_t count, A base, const Ahead& ahead) {
  constexpr int L = kLanes<A>;
  Vec<A> sum[2] = {};
  const auto step = [&](int64_t j, Vec<A>& into) {
    const Vec<A> e = vexp_nonpositive(load(s + j) - base);
    if (keep) store(s + j, e);
    into += e;
  };
  int64_t j = 0;
  for (; j + 2 * L <= count; j += 2 * L) {
    ahead.load(j, 2 * L);
    step(j, sum[0]);
    step(j + L, sum[1]);
  }
  for (; j < count; j += L) step(j, sum[0]);
  return horizontal_sum(sum[0] + sum[1]);
}

template <class A>
class Forward {
 public:
  static constexpr int L = kLanes<A>, W = kTileLanes<A>;

  explicit Forward(const SoftmaxParams& p)
      : p_(p),
        x_{p.dtype, const_cast<void*>(p.x)},
        y_{p.dtype, p.y},
        scale_(static_cast<A>(p.scale)),
        rows_(row_count(p)),
        streaming_(rows_ * p.n * size_of(p.dtype) >= kStreamBytes) {}

  Status run() {
    if (rows_ == 0 || p_.n == 0) return Status::kOk;
    const bool unit_stride = p_.x_stride == 1 && p_.y_stride == 1;
    // A tile wastes its idle lanes, so that few rows are better taken one by one even where that gathers.
    if ((unit_stride && p_.n >= W) || rows_ < L)
      return p_.n <= kResident || rows_ >= 2 * p_.num_threads ? rows() : wide_rows();
    return tiles();
  }

 private:
  // Elements of a buffer. A row that fits stays in the second-level cache between its passes; see kWideBlock for the
  // rest.
  static constexpr int64_t kResident = 64 * 1024;
  // Block of a row that does not fit: the two passes over it run in the first-level cache.
  static constexpr int64_t kWideBlock = 4096;

  int64_t kept(int64_t index) const { return p_.causal ? max64(0, min64(p_.n, index + p_.causal_shift + 1)) : p_.n; }
  int64_t block_columns() const { return p_.n <= kResident ? kResident : kWideBlock; }

  // --- one row at a time

  // Columns [first, first + count) as scores, and their maximum.
  A load_scores(const RowAt& at, int64_t first, int64_t count, A* s) const {
    const A max = load_row(x_, at.x + first * p_.x_stride, p_.x_stride, count, scale_, A{-INFINITY}, s);
    if (p_.mask == nullptr) return max;
    with_mask<A>(p_, [&](auto* mask) { mask_row(mask + at.third + first * p_.mask_stride, p_.mask_stride, count, s); });
    return max_of(s, count);
  }

  Stats<A> block_stats(const RowAt& at, int64_t first, int64_t count, bool keep, A* s) const {
    const A max = load_scores(at, first, count, s), base = base_of(max);
    const Ahead ahead(x_, at.x + first * p_.x_stride, count);
    return {max, keep ? exp_and_sum<A, true>(s, count, base, ahead) : exp_and_sum<A, false>(s, count, base, ahead)};
  }

  // Writes columns [first, first + count). `s` holds their exponentials when `exponentiated`, else their scores.
  void finish(const RowAt& at, int64_t first, int64_t count, const Stats<A>& row, bool exponentiated, A* s) const {
    const int64_t y = at.y + first * p_.y_stride;
    const Vec<A> base = broadcast<A>(base_of(row.max));
    if (p_.log) {
      const Vec<A> log = broadcast<A>(log_sum(row.sum));
      return store_row(y_, y, p_.y_stride, count, streaming_, s, [&](Vec<A> v) { return v - base - log; });
    }
    if (!exponentiated)
      for (int64_t j = 0; j < count; j += L) store(s + j, vexp_nonpositive(load(s + j) - base));
    const Divisor<Vec<A>, A> divisor(broadcast<A>(row.sum));
    store_row(y_, y, p_.y_stride, count, streaming_, s, [&](Vec<A> v) { return divisor.divide(v); });
  }

  // The same for vector u of a tile.
  void finish_lanes(int64_t count, const Vec<A>& max, const Vec<A>& sum, bool exponentiated, A* s) const {
    const Vec<A> base = base_lanes(max);
    if (p_.log) {
      Vec<A> log;
      for (int l = 0; l < L; ++l) log[l] = log_sum(sum[l]);
      for (int64_t j = 0; j < count * W; j += W) store(s + j, load(s + j) - base - log);
      return;
    }
    const Divisor<Vec<A>, A> divisor(sum);
    if (exponentiated)
      for (int64_t j = 0; j < count * W; j += W) store(s + j, divisor.divide(load(s + j)));
    else
      for (int64_t j = 0; j < count * W; j += W) store(s + j, divisor.divide(vexp_nonpositive(load(s + j) - base)));
  }

  void fill_excluded(const RowAt& at, int64_t first) const {
    with_dtype<A>(p_.dtype, [&](auto t) {
      using T = decltype(t);
      const T excluded = from_accumulator<T>(p_.log ? A{-INFINITY} : A{0});
      T* y = static_cast<T*>(p_.y) + at.y;
      for (int64_t j = first; j < p_.n; ++j) y[j * p_.y_stride] = excluded;
    });
  }

  // stats: one per block.
  void one_row(const RowAt& at, A* s, Stats<A>* stats) const {
    const int64_t n = kept(at.index), step = block_columns(), blocks = ceil_div(n, step);
    for (int64_t b = 0; b < blocks; ++b)
      stats[b] = block_stats(at, b * step, min64(step, n - b * step), blocks == 1 && !p_.log, s);
    const Stats<A> row = join(stats, blocks);
    for (int64_t b = 0; b < blocks; ++b) {
      const int64_t count = min64(step, n - b * step);
      if (blocks > 1) load_scores(at, b * step, count, s);
      finish(at, b * step, count, row, blocks == 1, s);
    }
    fill_excluded(at, n);
  }

  // Bytes of one thread's buffer: scores, then the blocks' statistics.
  int64_t buffer_elements() const { return ceil_div(min64(block_columns(), p_.n), W) * W; }
  int64_t stats_elements() const { return ceil_div(2 * ceil_div(p_.n, block_columns()), W) * W; }

  Status rows() const {
    const int64_t per_task = max64(1, kTaskElements / p_.n), stride = buffer_elements() + stats_elements();
    const Scratch scratch(static_cast<size_t>(p_.num_threads * stride) * sizeof(A));
    if (scratch.data() == nullptr) return Status::kOutOfMemory;
    A* buffers = reinterpret_cast<A*>(scratch.data());
    parallel_for(ceil_div(rows_, per_task), p_.num_threads, [&](int64_t task, int thread) {
      A* s = buffers + thread * stride;
      RowWalk walk(p_, p_.mask_row_stride, task * per_task);
      for (int64_t r = task * per_task; r < min64(rows_, (task + 1) * per_task); ++r, walk.next())
        one_row(walk.at(), s, reinterpret_cast<Stats<A>*>(s + buffer_elements()));
      stream_fence();
    });
    return Status::kOk;
  }

  // Fewer rows than threads: the threads share each row's blocks.
  Status wide_rows() const {
    constexpr int64_t blocks_per_task = 8;
    const int64_t stride = buffer_elements();
    const Scratch scratch(static_cast<size_t>(p_.num_threads * stride + stats_elements()) * sizeof(A));
    if (scratch.data() == nullptr) return Status::kOutOfMemory;
    A* buffers = reinterpret_cast<A*>(scratch.data());
    Stats<A>* stats = reinterpret_cast<Stats<A>*>(buffers + p_.num_threads * stride);
    RowWalk walk(p_, p_.mask_row_stride, 0);
    for (int64_t r = 0; r < rows_; ++r, walk.next()) {
      const RowAt at = walk.at();
      const int64_t n = kept(at.index), step = block_columns(), blocks = ceil_div(n, step);
      const auto for_blocks = [&](auto f) {
        parallel_for(ceil_div(blocks, blocks_per_task), p_.num_threads, [&](int64_t task, int thread) {
          for (int64_t b = task * blocks_per_task; b < min64(blocks, (task + 1) * blocks_per_task); ++b)
            f(b, b * step, min64(step, n - b * step), buffers + thread * stride);
          stream_fence();
        });
      };
      for_blocks(
          [&](int64_t b, int64_t first, int64_t count, A* s) { stats[b] = block_stats(at, first, count, false, s); });
      const Stats<A> row = join(stats, blocks);
      for_blocks([&](int64_t, int64_t first, int64_t count, A* s) {
        load_scores(at, first, count, s);
        finish(at, first, count, row, false, s);
      });
      fill_excluded(at, n);
    }
    return Status::kOk;
  }

  // --- a tile of rows at a time: statistics per lane

  struct LaneStats {
    Vec<A> max[kMaxTileLanes<A> / L], sum[kMaxTileLanes<A> / L];
  };

  void load_tile_scores(const Tile<A>& tile, int64_t first, int64_t count, A* s) const {
    load_tile(x_, tile, &RowAt::x, p_.x_stride, first, count, scale_, s);
    if (p_.mask != nullptr)
      with_mask<A>(p_, [&](auto* mask) { mask_tile(mask + first * p_.mask_stride, tile, p_.mask_stride, count, s); });
    if (p_.causal)
      for (int l = 0; l < tile.lanes; ++l)
        for (int64_t j = max64(0, kept(tile.at[l].index) - first); j < count; ++j)
          s[tile.lane(l, count) + j * W] = -INFINITY;
  }

  // Joins a block of scores to the statistics; the exponentials replace the scores when `keep`.
  void tile_stats(const Tile<A>& tile, int64_t count, bool keep, A* s, LaneStats* stats) const {
    for (int u = 0; u < tile.vectors(); ++u) {
      A* const lanes = s + tile.lane(u * L, count);
      Vec<A> m = stats->max[u];
      for (int64_t j = 0; j < count; ++j) m = vmax(m, load(lanes + j * W));
      const Vec<A> base = base_lanes(m);
      const Vec<A> earlier = stats->sum[u] * vexp_nonpositive(stats->max[u] - base);
      stats->max[u] = m;
      stats->sum[u] = earlier + sum_of_terms<Vec<A>, true>(count, [&](int64_t j) {
                        const Vec<A> e = vexp_nonpositive(load(lanes + j * W) - base);
                        if (keep) store(lanes + j * W, e);
                        return e;
                      });
    }
  }

  static Vec<A> base_lanes(Vec<A> max) { return max == broadcast<A>(-INFINITY) ? Vec<A>{} : max; }

  void one_tile(const Tile<A>& tile, int64_t step, A* s) const {
    const int64_t blocks = ceil_div(p_.n, step);
    LaneStats stats;
    for (int u = 0; u < tile.vectors(); ++u) stats.max[u] = broadcast<A>(-INFINITY), stats.sum[u] = Vec<A>{};
    for (int64_t b = 0; b < blocks; ++b) {
      const int64_t count = min64(step, p_.n - b * step);
      load_tile_scores(tile, b * step, count, s);
      tile_stats(tile, count, blocks == 1 && !p_.log, s, &stats);
    }
    for (int64_t b = 0; b < blocks; ++b) {
      const int64_t count = min64(step, p_.n - b * step);
      if (blocks > 1) load_tile_scores(tile, b * step, count, s);
      for (int u = 0; u < tile.vectors(); ++u)
        finish_lanes(count, stats.max[u], stats.sum[u], blocks == 1, s + tile.lane(u * L, count));
      store_tile(y_, tile, &RowAt::y, p_.y_stride, b * step, count, streaming_, s);
    }
  }

  Status tiles() const {
    const Tiling<A> tiling(p_, rows_, kResident);
    const int64_t stride = tiling.columns * tiling.width;
    const Scratch scratch(static_cast<size_t>(p_.num_threads * stride) * sizeof(A));
    if (scratch.data() == nullptr) return Status::kOutOfMemory;
    A* buffers = reinterpret_cast<A*>(scratch.data());
    for_tiles(p_, tiling, p_.mask_row_stride, max64(1, kTaskElements / (p_.n * tiling.width)),
              [&](const Tile<A>& tile, int thread) { one_tile(tile, tiling.columns, buffers + thread * stride); });
    return Status::kOk;
  }

  const SoftmaxParams& p_;
  Storage x_, y_;
  A scale_;
  int64_t rows_;
  bool streaming_;
};

}  // namespace

Status softmax_forward(const SoftmaxParams& p) {
  if (!valid_shape(p)) return Status::kBadShape;
  switch (p.dtype) {
    case DType::kFloat32:
    case DType::kFloat16:
    case DType::kBFloat16: return Forward<float>(p).run();
    case DType::kFloat64: return Forward<double>(p).run();
    case DType::kBool: break;
  }
  return Status::kUnsupportedDType;
}

}  // namespace TW_ISA
}  // namespace tilewright
