// softmax and log_softmax, forward. A row that its threads can keep in registers is read once: by a few lanes of a warp,
// a warp, or a block. Wider ones are looped over, with a running maximum and sum (Milakov & Gimelshein, "Online
// normalizer calculation for softmax", 2018), and read again to be written; a few very wide ones are cut into pieces for
// several blocks, in two launches. Where columns are not neighbours in memory, a warp takes 32 rows that are.
#include "softmax_rows.h"

namespace tilewright::gpu {
namespace {

// kBlock: whether a row has a block or a part of a warp. Vectors leave the registers to ask when it runs.
template <class T, int V, bool kBlock>
TW_KERNEL(kSoftmaxThreads)
softmax_forward_kernel(TW_KERNEL_ARGUMENT SoftmaxLaunch l) {
  const SoftmaxParams& p = l.call;
  const int lane = thread_index() % l.lanes;
  const int64_t row = int64_t{block_x()} * (block_threads() / l.lanes) + thread_index() / l.lanes;
  const auto scratch = shared_memory<float>();
  const RowAt at = row < l.rows ? find_row(p, p.mask_row_stride, row) : RowAt{};
  float s[kSoftmaxElements / V][V];
  float top = -kInfinity;
  TW_UNROLL for (int k = 0; k < kSoftmaxElements / V; ++k) {
    const int64_t column = (int64_t{k} * l.lanes + lane) * V;
    if (row < l.rows && column < p.n) {
      load_scores<T, V>(p, at, column, s[k]);
      TW_UNROLL for (int i = 0; i < V; ++i) top = Maximum{}(top, s[k][i]);
    }
  }
  const bool block = V == 1 ? kBlock : l.lanes > kWarpSize;
  top = reduce(top, block, l.lanes, Maximum{}, scratch);
  if (top == -kInfinity) top = 0.0f;
  float sum = 0.0f;
  TW_UNROLL for (int k = 0; k < kSoftmaxElements / V; ++k) if (row < l.rows && (int64_t{k} * l.lanes + lane) * V < p.n)
      TW_UNROLL for (int i = 0; i < V; ++i) sum += exp_of<T>(s[k][i] - top);
  sum = reduce(sum, block, l.lanes, Sum{}, scratch);
  const RowSum whole = to_result({top, sum}, p.log);
  TW_UNROLL for (int k = 0; k < kSoftmaxElements / V; ++k) {
    const int64_t column = (int64_t{k} * l.lanes + lane) * V;
    if (row < l.rows && column < p.n) {
      TW_UNROLL for (int i = 0; i < V; ++i) s[k][i] = softmax_of<T>(s[k][i], whole, p.log);
      store_values<T, V>(p.y, at.y, p.y_stride, column, s[k]);
    }
  }
}

// One score more: two exponentials of which one is 1 would be one too many.
template <class T>
TW_DEVICE void add(RowSum& row, float s) {
  if (s > row.top) {
    row.sum = row.sum * exp_of<T>(row.top - s) + 1.0f;
    row.top = s;
  } else {
    row.sum += exp_of<T>(s - row.top);
  }
}

// Piece block_y of row block_x. phase 0: both passes, of the only piece; 1: the sums, to the workspace; 2: the results.
template <class T, int V, int kPhase>
TW_KERNEL(kSoftmaxThreads)
softmax_forward_looped_kernel(TW_KERNEL_ARGUMENT SoftmaxLaunch l) {
  const SoftmaxParams& p = l.call;
  const int64_t row = block_x();
  const auto scratch = shared_memory<float>();
  const RowAt at = find_row(p, p.mask_row_stride, row);
  const int64_t begin = block_y() * l.piece, end = begin + l.piece < p.n ? begin + l.piece : p.n;
  const auto partial = global<float>(p.workspace) + row * l.pieces * 2;
  RowSum whole;
  if constexpr (kPhase != 2) {
    RowSum mine;
    TW_UNROLL_BY(1)
    for (int64_t column = begin + thread_index() * V; column < end; column += int64_t{block_threads()} * V) {
      float s[V];
      load_scores<T, V>(p, at, column, s);
      TW_UNROLL for (int i = 0; i < V; ++i) add<T>(mine, s[i]);
    }
    whole = reduce_sums<T>(mine, scratch);
  }
  if constexpr (kPhase == 1) {
    if (thread_index() == 0) {
      partial.store(2 * block_y(), whole.top);
      partial.store(2 * block_y() + 1, whole.sum);
    }
    return;
  }
  if constexpr (kPhase == 2)
    for (int i = 0; i < l.pieces; ++i) whole = join<T>(whole, {partial.load(2 * i), partial.load(2 * i + 1)});
  whole = to_result(whole, p.log);
  TW_UNROLL_BY(1)
  for (int64_t column = begin + thread_index() * V; column < end; column += int64_t{block_threads()} * V) {
    float s[V];
    load_scores<T, V>(p, at, column, s);
    TW_UNROLL for (int i = 0; i < V; ++i) s[i] = softmax_of<T>(s[i], whole, p.log);
    store_values<T, V>(p.y, at.y, p.y_stride, column, s);
  }
}

// Rows block_x * 32 + lane; each warp of the block takes every so many-th column.
template <class T>
TW_KERNEL(kSoftmaxThreads)
softmax_forward_across_kernel(TW_KERNEL_ARGUMENT SoftmaxLaunch l) {
  const SoftmaxParams& p = l.call;
  const int64_t row = int64_t{block_x()} * kWarpSize + lane_index();
  const auto scratch = shared_memory<float>();
  const int warps = block_threads() / kWarpSize;
  const RowAt at = row < l.rows ? find_row(p, p.mask_row_stride, row) : RowAt{};
  const int64_t columns = row < l.rows ? p.n : 0;
  RowSum mine;
  TW_UNROLL_BY(1)
  for (int64_t column = warp_index(); column < columns; column += warps) {
    float s[1];
    load_scores<T, 1>(p, at, column, s);
    add<T>(mine, s[0]);
  }
  scratch.store(2 * thread_index(), mine.top);
  scratch.store(2 * thread_index() + 1, mine.sum);
  sync_block();
  RowSum whole;
  for (int w = 0; w < warps; ++w) {
    const int at_thread = 2 * (w * kWarpSize + lane_index());
    whole = join<T>(whole, {scratch.load(at_thread), scratch.load(at_thread + 1)});
  }
  whole = to_result(whole, p.log);
  TW_UNROLL_BY(1)
  for (int64_t column = warp_index(); column < columns; column += warps) {
    float s[1];
    load_scores<T, 1>(p, at, column, s);
    s[0] = softmax_of<T>(s[0], whole, p.log);
    store_values<T, 1>(p.y, at.y, p.y_stride, column, s);
  }
}

struct Kernels {
  template <class T, int V, bool kBlock>
  static constexpr auto kRows = softmax_forward_kernel<T, V, V == 1 && kBlock>;
  template <class T, int V, int kPhase>
  static constexpr auto kLooped = softmax_forward_looped_kernel<T, V, kPhase>;
  template <class T>
  static constexpr auto kAcross = softmax_forward_across_kernel<T>;
  static constexpr int kAcrossBytes = 8;
};

}  // namespace

int64_t softmax_workspace(const SoftmaxParams& p) {
  const int64_t rows = softmax_row_count(p);
  const int pieces = rows == 0 ? 1 : softmax_pieces(p, rows);
  return pieces == 1 ? 0 : rows * pieces * 2 * int64_t{sizeof(float)};
}

int softmax_forward(const SoftmaxParams& p, Stream stream) {
  const bool vectors =
      softmax_vectors(p, p.x, p.x_row_stride, p.x_stride) && softmax_vectors(p, p.y, p.y_row_stride, p.y_stride);
  return softmax_launch<Kernels>(p, vectors, stream);
}

}  // namespace tilewright::gpu
