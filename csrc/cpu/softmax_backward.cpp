// The gradients of softmax, dx = scale * y (dy - sum(y dy)), and of log_softmax, dx = scale * (dy - exp(y) sum(dy)).
// Excluded entries (y = 0, or y = -inf) get 0, and have no part in the sums, whatever dy holds there. A row that fits the
// buffers is read once and written once, longer rows are read twice.
#include "isa.h"
#include "parallel.h"
#include "scratch.h"
#include "softmax_io.h"
#include "sums.h"

namespace tilewright {
namespace TW_ISA {
namespace {

template <class A, bool log>
constexpr A kExcluded = log ? -INFINITY : 0;

// The term of the sum that `gradient` takes.
template <class A, bool log>
TW_INLINE Vec<A> term(Vec<A> y, Vec<A> dy) {
  return y == broadcast<A>(kExcluded<A, log>) ? Vec<A>{} : log ? dy : y * dy;
}
template <class A, bool log>
TW_INLINE Vec<A> gradient(Vec<A> y, Vec<A> dy, Vec<A> total, A scale) {
  const Vec<A> dx = log ? dy - vexp_nonpositive(y) * total : y * (dy - total);
  return y == broadcast<A>(kExcluded<A, log>) ? Vec<A>{} : scale * dx;
}

// Elements j to j + n - 1 of a contiguous row; what is past them adds nothing.
template <class T>
TW_INLINE Vec<Accumulator<T>> take(const T* row, int64_t j, int n, Accumulator<T> fill) {
  return n == kLanes<Accumulator<T>> ? load(row + j) : load_partial(row + j, n, fill);
}

template <class T, bool log, class A = Accumulator<T>>
A sum_row(const T* y, const T* dy, int64_t count) {
  constexpr int L = kLanes<A>;
  constexpr A excluded = kExcluded<A, log>;
  Vec<A> sum[kUnroll] = {};
  int64_t j = 0;
  for (; j + kUnroll * L <= count; j += kUnroll * L)
    for (int u = 0; u < kUnroll; ++u) sum[u] += term<A, log>(load(y + j + u * L), load(dy + j + u * L));
  for (; j < count; j += L) {
    const int n = static_cast<int>(min64(L, count - j));
    sum[0] += term<A, log>(take(y, j, n, excluded), take(dy, j, n, A{0}));
  }
  return horizontal_sum((sum[0] + sum[1]) + (sum[2] + sum[3]));
}

template <class T, bool log, class A = Accumulator<T>>
void gradient_row(const T* y, const T* dy, T* dx, int64_t count, A total, A scale, bool streaming, const Ahead& y_ahead,
                  const Ahead& dy_ahead) {
  const Vec<A> totals = broadcast<A>(total);
  write_row(
      dx, count, streaming,
      [&](int64_t j, int n) { return gradient<A, log>(take(y, j, n, A{0}), take(dy, j, n, A{0}), totals, scale); },
      [&](int64_t j, int n) {
        y_ahead.load(j, n);
        dy_ahead.load(j, n);
      });
}

// Calls f with log as a constant.
template <class F>
TW_INLINE void with_log(bool log, const F& f) {
  if (log) return f(std::true_type{});
  f(std::false_type{});
}

template <class A>
class Backward {
 public:
  static constexpr int L = kLanes<A>, W = kTileLanes<A>;

  explicit Backward(const SoftmaxParams& p)
      : p_(p),
        y_{p.dtype, p.y},
        dy_{p.dtype, const_cast<void*>(p.dy)},
        dx_{p.dtype, p.dx},
        scale_(static_cast<A>(p.scale)),
        rows_(row_count(p)),
        streaming_(rows_ * p.n * size_of(p.dtype) >= kStreamBytes) {}

  Status run() {
    if (rows_ == 0 || p_.n == 0) return Status::kOk;
    const bool unit_stride = p_.x_stride == 1 && p_.y_stride == 1 && p_.dy_stride == 1;
    const bool by_row = (unit_stride && p_.n >= W) || rows_ < L;
    const Tiling<A> tiling(p_, rows_, kResident);
    const int64_t block = by_row ? min64(block_columns(), p_.n) : tiling.columns;
    const int64_t stride = ceil_div(block, L) * L * (by_row ? 1 : tiling.width);
    const int64_t sums = ceil_div(ceil_div(p_.n, block), W) * W;
    const Scratch scratch(static_cast<size_t>(p_.num_threads * (2 * stride + sums)) * sizeof(A));
    if (scratch.data() == nullptr) return Status::kOutOfMemory;
    A* memory = reinterpret_cast<A*>(scratch.data());
    const auto buffers = [&](int thread) {
      A* own = memory + thread * (2 * stride + sums);
      return Buffers{own, own + stride, own + 2 * stride};
    };
    if (!by_row)
      for_tiles(p_, tiling, p_.dy_row_stride, max64(1, kTaskElements / (p_.n * tiling.width)),
                [&](const Tile<A>& tile, int thread) { one_tile(tile, block, buffers(thread)); });
    else if (p_.n <= kResident || rows_ >= 2 * p_.num_threads)
      rows(buffers);
    else
      wide_rows(buffers);
    return Status::kOk;
  }

 private:
  // As in the forward, but for two buffers, y and dy.
  static constexpr int64_t kResident = 32 * 1024;
  static constexpr int64_t kWideBlock = 2048;

  struct Buffers {
    A *y, *dy, *sums;
  };

  int64_t block_columns() const { return p_.n <= kResident ? kResident : kWideBlock; }

  // Whether the rows can be read and written where they are; otherwise they pass through the buffers.
  bool in_place() const { return p_.x_stride == 1 && p_.y_stride == 1 && p_.dy_stride == 1; }

  void gather(const RowAt& at, int64_t first, int64_t count, const Buffers& b) const {
    load_row(y_, at.y + first * p_.y_stride, p_.y_stride, count, A{1}, A{0}, b.y);
    load_row(dy_, at.third + first * p_.dy_stride, p_.dy_stride, count, A{1}, A{0}, b.dy);
  }

  A sum_block(const RowAt& at, int64_t first, int64_t count, const Buffers& b) const {
    A sum = 0;
    with_log(p_.log, [&](auto log) {
      if (!in_place()) {
        gather(at, first, count, b);
        sum = sum_row<A, log.value>(b.y, b.dy, count);
        return;
      }
      with_dtype<A>(p_.dtype, [&](auto t) {
        using T = decltype(t);
        sum = sum_row<T, log.value>(static_cast<const T*>(p_.y) + at.y + first,
                                    static_cast<const T*>(p_.dy) + at.third + first, count);
      });
    });
    return sum;
  }

  void finish(const RowAt& at, int64_t first, int64_t count, A total, const Buffers& b) const {
    const Ahead y_ahead(y_, at.y + first * p_.y_stride, count), dy_ahead(dy_, at.third + first * p_.dy_stride, count);
    with_log(p_.log, [&](auto log) {
      if (!in_place()) {
        gather(at, first, count, b);
        gradient_row<A, log.value>(b.y, b.dy, b.y, count, total, scale_, false, y_ahead, dy_ahead);
        return;
      }
      with_dtype<A>(p_.dtype, [&](auto t) {
        using T = decltype(t);
        gradient_row<T, log.value>(
            static_cast<const T*>(p_.y) + at.y + first, static_cast<const T*>(p_.dy) + at.third + first,
            static_cast<T*>(p_.dx) + at.x + first, count, total, scale_, streaming_, y_ahead, dy_ahead);
      });
    });
    if (!in_place())
      store_row(dx_, at.x + first * p_.x_stride, p_.x_stride, count, false, b.y, [](Vec<A> v) { return v; });
  }

  static A total_of(const A* sums, int64_t count) {
    A total = 0;
    for (int64_t b = 0; b < count; ++b) total += sums[b];
    return total;
  }

  void one_row(const RowAt& at, const Buffers& buffers) const {
    const int64_t n = p_.n, step = block_columns(), blocks = ceil_div(n, step);
    for (int64_t b = 0; b < blocks; ++b) buffers.sums[b] = sum_block(at, b * step, min64(step, n - b * step), buffers);
    const A total = total_of(buffers.sums, blocks);
    for (int64_t b = 0; b < blocks; ++b) finish(at, b * step, min64(step, n - b * step), total, buffers);
  }

  template <class F>
  void rows(const F& buffers) const {
    const int64_t per_task = max64(1, kTaskElements / p_.n);
    parallel_for(ceil_div(rows_, per_task), p_.num_threads, [&](int64_t task, int thread) {
      RowWalk walk(p_, p_.dy_row_stride, task * per_task);
      for (int64_t r = task * per_task; r < min64(rows_, (task + 1) * per_task); ++r, walk.next())
        one_row(walk.at(), buffers(thread));
      stream_fence();
    });
  }

  // Fewer rows than threads: the threads share each row's blocks. The sums of all blocks go to the first thread's.
  template <class F>
  void wide_rows(const F& buffers) const {
    constexpr int64_t blocks_per_task = 16;
    const int64_t step = block_columns(), blocks = ceil_div(p_.n, step);
    A* sums = buffers(0).sums;
    RowWalk walk(p_, p_.dy_row_stride, 0);
    for (int64_t r = 0; r < rows_; ++r, walk.next()) {
      const RowAt at = walk.at();
      const auto for_blocks = [&](auto f) {
        parallel_for(ceil_div(blocks, blocks_per_task), p_.num_threads, [&](int64_t task, int thread) {
          for (int64_t b = task * blocks_per_task; b < min64(blocks, (task + 1) * blocks_per_task); ++b)
            f(b, b * step, min64(step, p_.n - b * step), buffers(thread));
          stream_fence();
        });
      };
      for_blocks([&](int64_t b, int64_t first, int64_t count, const Buffers& own) {
        sums[b] = sum_block(at, first, count, own);
      });
      const A total = total_of(sums, blocks);
      for_blocks(
          [&](int64_t, int64_t first, int64_t count, const Buffers& own) { finish(at, first, count, total, own); });
    }
  }

  void load_tile_block(const Tile<A>& tile, int64_t first, int64_t count, const Buffers& b) const {
    load_tile(y_, tile, &RowAt::y, p_.y_stride, first, count, A{1}, b.y);
    load_tile(dy_, tile, &RowAt::third, p_.dy_stride, first, count, A{1}, b.dy);
  }

  void one_tile(const Tile<A>& tile, int64_t step, const Buffers& buffers) const {
    const int64_t blocks = ceil_div(p_.n, step);
    Vec<A> total[kMaxTileLanes<A> / L] = {};
    for (int64_t b = 0; b < blocks; ++b) {
      const int64_t count = min64(step, p_.n - b * step);
      load_tile_block(tile, b * step, count, buffers);
      with_log(p_.log, [&](auto log) {
        for (int u = 0; u < tile.vectors(); ++u)
          total[u] += sum_of_terms<Vec<A>>(count, [&](int64_t j) {
            const int64_t at = tile.lane(u * L, count) + j * W;
            return term<A, log.value>(load(buffers.y + at), load(buffers.dy + at));
          });
      });
    }
    for (int64_t b = 0; b < blocks; ++b) {
      const int64_t count = min64(step, p_.n - b * step);
      if (blocks > 1) load_tile_block(tile, b * step, count, buffers);
      with_log(p_.log, [&](auto log) {
        for (int u = 0; u < tile.vectors(); ++u)
          for (int64_t j = 0; j < count; ++j) {
            const int64_t at = tile.lane(u * L, count) + j * W;
            store(buffers.y + at,
                  gradient<A, log.value>(load(buffers.y + at), load(buffers.dy + at), total[u], scale_));
          }
      });
      store_tile(dx_, tile, &RowAt::x, p_.x_stride, b * step, count, streaming_, buffers.y);
    }
  }

  const SoftmaxParams& p_;
  Storage y_, dy_, dx_;
  A scale_;
  int64_t rows_;
  bool streaming_;
};

}  // namespace

Status softmax_backward(const SoftmaxParams& p) {
  if (!valid_shape(p)) return Status::kBadShape;
  switch (p.dtype) {
    case DType::kFloat32:
    case DType::kFloat16:
    case DType::kBFloat16: return Backward<float>(p).run();
    case DType::kFloat64: return Backward<double>(p).run();
    case DType::kBool: break;
  }
  return Status::kUnsupportedDType;
}

}  // namespace TW_ISA
}  // namespace tilewright
