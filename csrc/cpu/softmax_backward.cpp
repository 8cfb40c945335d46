// The gradients of softmax, dx = scale * y (dy - sum(y dy)), and of log_softmax, dx = scale * (dy - exp(y) sum(dy)).
// Excluded entries (y = 0, or y = -inf) get 0. A row that fits the buffers is read once and written once, longer rows
// are read twice.
#include "isa.h"
#include "parallel.h"
#include "scratch.h"
#include "softmax_io.h"

namespace tilewright {
namespace TW_ISA {
namespace {

// As in the forward, but for two buffers, y and dy.
constexpr int64_t kResident = 32 * 1024;
constexpr int64_t kWideBlock = 2048;
constexpr int64_t kTaskElements = 32 * 1024;
constexpr int64_t kStreamBytes = int64_t{8} << 20;

// The product with y in softmax's gradient. For log_softmax: y becomes exp(y), and dy 0 where an entry is excluded.
template <class A, bool log>
TW_INLINE void prepare(Vec<A>& y, Vec<A>& dy) {
  if (!log) return;
  dy = y == broadcast<A>(-INFINITY) ? Vec<A>{} : dy;
  y = vexp_nonpositive(y);
}
template <class A, bool log>
TW_INLINE Vec<A> gradient(Vec<A> y, Vec<A> dy, Vec<A> total, A scale) {
  return log ? scale * (dy - y * total) : scale * (y * (dy - total));
}

// Of whole vectors, in place; the sum that `gradient` takes.
template <class A, bool log>
A prepare_and_sum(A* y, A* dy, int64_t count) {
  constexpr int L = kLanes<A>;
  Vec<A> sum[kUnroll] = {};
  int64_t j = 0;
  const auto step = [&](int64_t at, Vec<A>& into) {
    Vec<A> vy = load(y + at), vdy = load(dy + at);
    prepare<A, log>(vy, vdy);
    if (log) store(y + at, vy), store(dy + at, vdy);
    into += log ? vdy : vy * vdy;
  };
  for (; j + kUnroll * L <= count; j += kUnroll * L)
    for (int u = 0; u < kUnroll; ++u) step(j + u * L, sum[u]);
  for (; j < count; j += L) step(j, sum[0]);
  return horizontal_sum((sum[0] + sum[1]) + (sum[2] + sum[3]));
}

template <class A, bool log>
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
    const int64_t block = by_row ? block_columns() : kResident / W;
    const int64_t stride = ceil_div(min64(block, p_.n), L) * L * (by_row ? 1 : W);
    const int64_t sums = ceil_div(ceil_div(p_.n, block), W) * W;
    const Scratch scratch(static_cast<size_t>(p_.num_threads * (2 * stride + sums)) * sizeof(A));
    if (scratch.data() == nullptr) return Status::kOutOfMemory;
    A* memory = reinterpret_cast<A*>(scratch.data());
    const auto buffers = [&](int thread) {
      A* own = memory + thread * (2 * stride + sums);
      return Buffers{own, own + stride, own + 2 * stride};
    };
    if (!by_row)
      for_tiles<A>(p_, p_.dy_row_stride, rows_, max64(1, kTaskElements / (p_.n * W)),
                   [&](const Tile<A>& tile, int thread) { one_tile(tile, buffers(thread)); });
    else if (p_.n <= kResident || rows_ >= 2 * p_.num_threads)
      rows(buffers);
    else
      wide_rows(buffers);
    return Status::kOk;
  }

 private:
  struct Buffers {
    A *y, *dy, *sums;
  };

  int64_t block_columns() const { return p_.n <= kResident ? kResident : kWideBlock; }

  A load_block(const RowAt& at, int64_t first, int64_t count, const Buffers& b) const {
    load_row(y_, at.y + first * p_.y_stride, p_.y_stride, count, log ? A{-INFINITY} : A{0}, b.y);
    load_row(dy_, at.third + first * p_.dy_stride, p_.dy_stride, count, A{0}, b.dy);
    return prepare_and_sum<A, log>(b.y, b.dy, count);
  }

  void finish(const RowAt& at, int64_t first, int64_t count, A total, const Buffers& b) const {
    const Vec<A> totals = broadcast<A>(total);
    for (int64_t j = 0; j < count; j += L)
      store(b.y + j, gradient<A, log>(load(b.y + j), load(b.dy + j), totals, scale_));
    store_row(dx_, at.x + first * p_.x_stride, p_.x_stride, count, streaming_, b.y);
  }

  static A total_of(const A* sums, int64_t count) {
    A total = 0;
    for (int64_t b = 0; b < count; ++b) total += sums[b];
    return total;
  }

  void one_row(const RowAt& at, const Buffers& buffers) const {
    const int64_t n = p_.n, step = block_columns(), blocks = ceil_div(n, step);
    for (int64_t b = 0; b < blocks; ++b) buffers.sums[b] = load_block(at, b * step, min64(step, n - b * step), buffers);
    const A total = total_of(buffers.sums, blocks);
    for (int64_t b = 0; b < blocks; ++b) {
      const int64_t count = min64(step, n - b * step);
      if (blocks > 1) load_block(at, b * step, count, buffers);
      finish(at, b * step, count, total, buffers);
    }
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
        sums[b] = load_block(at, first, count, own);
      });
      const A total = total_of(sums, blocks);
      for_blocks([&](int64_t, int64_t first, int64_t count, const Buffers& own) {
        load_block(at, first, count, own);
        finish(at, first, count, total, own);
      });
    }
  }

  void load_tile_block(const Tile<A>& tile, int64_t first, int64_t count, const Buffers& b) const {
    load_tile(y_, tile, &RowAt::y, p_.y_stride, first, count, b.y);
    load_tile(dy_, tile, &RowAt::third, p_.dy_stride, first, count, b.dy);
    if (!log) return;
    for (int64_t j = 0; j < count * W; j += L) {
      Vec<A> y = load(b.y + j), dy = load(b.dy + j);
      prepare<A, log>(y, dy);
      store(b.y + j, y);
      store(b.dy + j, dy);
    }
  }

  void one_tile(const Tile<A>& tile, const Buffers& buffers) const {
    const int64_t step = kResident / W, blocks = ceil_div(p_.n, step);
    Vec<A> total[kUnroll] = {};
    for (int64_t b = 0; b < blocks; ++b) {
      const int64_t count = min64(step, p_.n - b * step);
      load_tile_block(tile, b * step, count, buffers);
      for (int u = 0; u < kUnroll; ++u)
        for (int64_t j = 0; j < count;) {  // in groups: see the forward
          Vec<A> group = {};
          for (const int64_t end = min64(count, j + 64); j < end; ++j) {
            const Vec<A> dy = load(buffers.dy + j * W + u * L);
            group += log ? dy : load(buffers.y + j * W + u * L) * dy;
          }
          total[u] += group;
        }
    }
    for (int64_t b = 0; b < blocks; ++b) {
      const int64_t count = min64(step, p_.n - b * step);
      if (blocks > 1) load_tile_block(tile, b * step, count, buffers);
      for (int64_t j = 0; j < count; ++j)
        for (int u = 0; u < kUnroll; ++u) {
          A* y = buffers.y + j * W + u * L;
          store(y, gradient<A, log>(load(y), load(buffers.dy + j * W + u * L), total[u], scale_));
        }
      store_tile(dx_, tile, &RowAt::x, p_.x_stride, b * step, count, buffers.y);
    }
  }

  const SoftmaxParams& p_;
  Storage y_, dy_, dx_;
  A scale_;
  int64_t rows_;
  bool streaming_;
};

template <class A>
Status run(const SoftmaxParams& p) {
  return p.log ? Backward<A, true>(p).run() : Backward<A, false>(p).run();
}

}  // namespace

Status softmax_backward(const SoftmaxParams& p) {
  if (!valid_shape(p)) return Status::kBadShape;
  switch (p.dtype) {
    case DType::kFloat32:
    case DType::kFloat16:
    case DType::kBFloat16: return run<float>(p);
    case DType::kFloat64: return run<double>(p);
    case DType::kBool: break;
  }
  return Status::kUnsupportedDType;
}

}  // namespace TW_ISA
}  // namespace tilewright
