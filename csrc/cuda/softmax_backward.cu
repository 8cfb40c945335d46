// softmax and log_softmax, backward: dx = scale y (dy - sum(y dy)), and of log_softmax dx = scale (dy - exp(y) sum(dy)).
// Rows are divided as in softmax_forward.cu. dx has x's strides.
#include "softmax_rows.h"

namespace tilewright::gpu {
namespace {

// Excluded elements have y = 0, of log_softmax -inf. They get 0, and have no part in the row's sum, whatever dy holds there.
TW_DEVICE bool excluded(float y, bool log) { return y == (log ? -kInfinity : 0.0f); }

// What an element adds to its row's sum.
TW_DEVICE float term(float y, float dy, bool log) { return excluded(y, log) ? 0.0f : log ? dy : y * dy; }

template <class T>
TW_DEVICE float gradient(float y, float dy, float sum, bool log, float scale) {
  if (excluded(y, log)) return 0.0f;
  return (log ? dy - exp_of<T>(y) * sum : y * (dy - sum)) * scale;
}

template <class T, int V, bool kBlock>
TW_KERNEL(kSoftmaxThreads)
softmax_backward_kernel(TW_KERNEL_ARGUMENT SoftmaxLaunch l) {
  const SoftmaxParams& p = l.call;
  const int lane = thread_index() % l.lanes;
  const int64_t row = int64_t{block_x()} * (block_threads() / l.lanes) + thread_index() / l.lanes;
  const RowAt at = row < l.rows ? find_row(p, p.dy_row_stride, row) : RowAt{};
  float y[kSoftmaxElements / V][V], dy[kSoftmaxElements / V][V];
  float sum = 0.0f;
  TW_UNROLL for (int k = 0; k < kSoftmaxElements / V; ++k) {
    const int64_t column = (int64_t{k} * l.lanes + lane) * V;
    if (row < l.rows && column < p.n) {
      load_values<T, V>(p.y, at.y, p.y_stride, column, y[k]);
      load_values<T, V>(p.dy, at.third, p.dy_stride, column, dy[k]);
      TW_UNROLL for (int i = 0; i < V; ++i) sum += term(y[k][i], dy[k][i], p.log);
    }
  }
  sum = reduce(sum, kBlock, l.lanes, Sum{}, shared_memory<float>());
  TW_UNROLL for (int k = 0; k < kSoftmaxElements / V; ++k) {
    const int64_t column = (int64_t{k} * l.lanes + lane) * V;
    if (row < l.rows && column < p.n) {
      TW_UNROLL for (int i = 0; i < V; ++i) dy[k][i] =
          gradient<T>(y[k][i], dy[k][i], sum, p.log, static_cast<float>(p.scale));
      store_values<T, V>(p.dx, at.x, p.x_stride, column, dy[k]);
    }
  }
}

template <class T, int V>
TW_DEVICE void write(const SoftmaxParams& p, const RowAt& at, int64_t column, float sum) {
  float y[V], dy[V];
  load_values<T, V>(p.y, at.y, p.y_stride, column, y);
  load_values<T, V>(p.dy, at.third, p.dy_stride, column, dy);
  TW_UNROLL for (int i = 0; i < V; ++i) dy[i] = gradient<T>(y[i], dy[i], sum, p.log, static_cast<float>(p.scale));
  store_values<T, V>(p.dx, at.x, p.x_stride, column, dy);
}

template <class T, int V>
TW_DEVICE float terms(const SoftmaxParams& p, const RowAt& at, int64_t column) {
  float y[V], dy[V], sum = 0.0f;
  load_values<T, V>(p.y, at.y, p.y_stride, column, y);
  load_values<T, V>(p.dy, at.third, p.dy_stride, column, dy);
  TW_UNROLL for (int i = 0; i < V; ++i) sum += term(y[i], dy[i], p.log);
  return sum;
}

// The phases are those of the forward's looped kernel.
template <class T, int V, int kPhase>
TW_KERNEL(kSoftmaxThreads)
softmax_backward_looped_kernel(TW_KERNEL_ARGUMENT SoftmaxLaunch l) {
  const SoftmaxParams& p = l.call;
  const int64_t row = block_x();
  const RowAt at = find_row(p, p.dy_row_stride, row);
  const int64_t begin = block_y() * l.piece, end = begin + l.piece < p.n ? begin + l.piece : p.n;
  const auto partial = global<float>(p.workspace) + row * l.pieces;
  float sum = 0.0f;
  if constexpr (kPhase != 2) {
    for (int64_t column = begin + thread_index() * V; column < end; column += int64_t{block_threads()} * V)
      sum += terms<T, V>(p, at, column);
    sum = reduce(sum, true, l.lanes, Sum{}, shared_memory<float>());
  }
  if constexpr (kPhase == 1) {
    if (thread_index() == 0) partial.store(block_y(), sum);
    return;
  }
  if constexpr (kPhase == 2)
    for (int i = 0; i < l.pieces; ++i) sum += partial.load(i);
  for (int64_t column = begin + thread_index() * V; column < end; column += int64_t{block_threads()} * V)
    write<T, V>(p, at, column, sum);
}

template <class T>
TW_KERNEL(kSoftmaxThreads)
softmax_backward_across_kernel(TW_KERNEL_ARGUMENT SoftmaxLaunch l) {
  const SoftmaxParams& p = l.call;
  const int64_t row = int64_t{block_x()} * kWarpSize + lane_index();
  const auto scratch = shared_memory<float>();
  const int warps = block_threads() / kWarpSize;
  const RowAt at = row < l.rows ? find_row(p, p.dy_row_stride, row) : RowAt{};
  const int64_t columns = row < l.rows ? p.n : 0;
  float mine = 0.0f, sum = 0.0f;
  for (int64_t column = warp_index(); column < columns; column += warps) mine += terms<T, 1>(p, at, column);
  scratch.store(thread_index(), mine);
  sync_block();
  for (int w = 0; w < warps; ++w) sum += scratch.load(w * kWarpSize + lane_index());
  for (int64_t column = warp_index(); column < columns; column += warps) write<T, 1>(p, at, column, sum);
}

struct Kernels {
  template <class T, int V, bool kBlock>
  static constexpr auto kRows = softmax_backward_kernel<T, V, kBlock>;
  template <class T, int V, int kPhase>
  static constexpr auto kLooped = softmax_backward_looped_kernel<T, V, kPhase>;
  template <class T>
  static constexpr auto kAcross = softmax_backward_across_kernel<T>;
  static constexpr int kAcrossBytes = 4;
};

}  // namespace

int softmax_backward(const SoftmaxParams& p, Stream stream) {
  const bool vectors = softmax_vectors(p, p.dx, p.x_row_stride, p.x_stride) &&
                       softmax_vectors(p, p.y, p.y_row_stride, p.y_stride) &&
                       softmax_vectors(p, p.dy, p.dy_row_stride, p.dy_stride);
  return softmax_launch<Kernels>(p, vectors, stream);
}

}  // namespace tilewright::gpu
