// The main loop of the feed-forward block's products: a block of threads multiplies tiles of A and B from shared memory,
// while the next ones are copied there.
#pragma once

#include "ffn_product.h"
#include "operand.h"

namespace tilewright::gpu {

// Numbers along the depth of a step: 128 bytes.
template <class T>
constexpr int kStep = 128 / int{sizeof(T)};

// Which rows of an operand a tile has: from `first` on; where it is split, the second half has the same ones `limit`
// further, the up projection's to the gate's.
struct FfnRows {
  int64_t first, limit;
  int split;

  // Of row i; from how many on there is none.
  TW_DEVICE int64_t left(int i) const { return limit - first - i % split; }
  TW_DEVICE int64_t operator()(int i) const { return first + i % split + (i < split ? 0 : limit); }
};

// kSize rows of an operand, kStep deep: as they lie in shared memory, and what this thread copies of them. kColumns: depth
// by depth.
template <class T, int kSize, bool kColumns, int kThreads>
class FfnCopies {
 public:
  using Matrix = Tile<T, kColumns ? kSize : kStep<T>>;
  static constexpr int kBytes = kSize * 128;

  TW_DEVICE FfnCopies(const FfnOperand& operand, const FfnRows& rows, int64_t depth)
      : operand_(operand), rows_(rows), depth_(depth) {
    TW_UNROLL for (int i = 0; i < kCopies; ++i) {
      const Place place = find(i);
      if (rows.left(place.row) > 0) there_ |= 1u << i;
      at_[i] = rows.left(place.row) > 0 ? offset(place) : 0;
    }
  }

  // Issues the copies of a step, zeros for what is not there.
  TW_DEVICE void copy(const Matrix& to, int64_t depth) const {
    const Global<const T> from = global<T>(operand_.data) + depth * operand_.depth_stride;
    if (operand_.wide) {
      TW_UNROLL for (int i = 0; i < kCopies; ++i)
          copy_async<16>(chunk(to, i), from + at_[i], (there_ >> i & 1) != 0 ? count(find(i), depth) : 0);
      return;
    }
    const int64_t apart = kColumns ? operand_.stride : operand_.depth_stride;
    TW_UNROLL_BY(1) for (int i = 0; i < kCopies; ++i) {
      const Place place = find(i);
      const int elements = rows_.left(place.row) > 0 ? count(place, depth) : 0;
      Vector<T, kChunk<T>> values;
      TW_UNROLL for (int e = 0; e < kChunk<T>; ++e) values[e] =
          e < elements ? (from + offset(place)).load(e * apart) : narrow<T>(0.0f);
      chunk(to, i).template store_vector<kChunk<T>>(0, values);
    }
  }

 private:
  static constexpr int kHeight = kColumns ? kStep<T> : kSize, kChunks = Matrix::kChunks;
  static constexpr int kCopies = kHeight * kChunks / kThreads, kRowsApart = kThreads / kChunks;
  static_assert(kCopies * kThreads == kHeight * kChunks && kRowsApart * kChunks == kThreads);

  // Of chunk i, in the tile.
  struct Place {
    int row, depth;
  };
  TW_DEVICE static Place find(int i) {
    const int across = thread_index() % kChunks * kChunk<T>, down = thread_index() / kChunks + i * kRowsApart;
    return kColumns ? Place{across, down} : Place{down, across};
  }
  TW_DEVICE static Shared<T> chunk(const Matrix& to, int i) {
    return to.chunk(thread_index() / kChunks + i * kRowsApart, thread_index() % kChunks);
  }
  TW_DEVICE int64_t offset(Place place) const {
    return rows_(place.row) * operand_.stride + place.depth * operand_.depth_stride;
  }
  // How many elements there are of a chunk whose row there is.
  TW_DEVICE int count(Place place, int64_t depth) const {
    const int64_t deep = depth_ - depth - place.depth, along = kColumns ? rows_.left(place.row) : deep;
    return deep <= 0 ? 0 : along < kChunk<T> ? static_cast<int>(along) : kChunk<T>;
  }

  FfnOperand operand_;
  FfnRows rows_;
  int64_t depth_;
  int64_t at_[kCopies];  // of the chunks, at depth 0
  uint32_t there_ = 0;   // a bit for each
};

// kSize x kSize results: two rows of warps, each of which has 32 columns.
template <class T, int kSize, bool kAColumns, bool kBColumns>
struct FfnBlock {
  static constexpr int kThreads = 2 * kSize, kWarpRows = kSize / 2, kWarpColumns = 32;
  // Of large tiles two blocks share a multiprocessor, and one multiplies when the other waits.
  static constexpr int kStages = kSize == 128 ? 2 : 3;
  using A = FfnCopies<T, kSize, kAColumns, kThreads>;
  using B = FfnCopies<T, kSize, kBColumns, kThreads>;
  static constexpr int kStageBytes = A::kBytes + B::kBytes;

  float results[kWarpRows / 16][kWarpColumns / 8][4] = {};

  TW_DEVICE static int warp_row() { return warp_index() / (kSize / kWarpColumns) * kWarpRows; }
  TW_DEVICE static int warp_column() { return warp_index() % (kSize / kWarpColumns) * kWarpColumns; }

  // Leaves shared memory free.
  TW_DEVICE void multiply_all(const A& a, const B& b, int64_t depth) {
    const int steps = static_cast<int>((depth + kStep<T> - 1) / kStep<T>);
    const auto a_tile = [](int stage) { return typename A::Matrix{shared_memory<T>(stage * kStageBytes)}; };
    const auto b_tile = [](int stage) { return typename B::Matrix{shared_memory<T>(stage * kStageBytes + A::kBytes)}; };
    const auto copy = [&](int step, int stage) {
      if (step < steps) {
        a.copy(a_tile(stage), int64_t{step} * kStep<T>);
        b.copy(b_tile(stage), int64_t{step} * kStep<T>);
      }
      commit_copies();
    };
    TW_UNROLL for (int s = 0; s < kStages - 1; ++s) copy(s, s);
    for (int step = 0, stage = 0; step < steps; ++step) {
      wait_for_copies<kStages - 2>();
      sync_block();  // this step's tiles are there, and the last step's have been read
      copy(step + kStages - 1, stage == 0 ? kStages - 1 : stage - 1);
      multiply_step(a_tile(stage), b_tile(stage));
      stage = stage == kStages - 1 ? 0 : stage + 1;
    }
    wait_for_copies<0>();
    sync_block();
  }

  TW_DEVICE void multiply_step(const typename A::Matrix& a, const typename B::Matrix& b) {
    // float32's operands, in three parts, take so many registers that those of one depth have to do.
    if constexpr (sizeof(T) == 4)
      TW_UNROLL_BY(1) for (int depth = 0; depth < kStep<T>; depth += kDeep) multiply_depth(a, b, depth);
    else
      TW_UNROLL for (int depth = 0; depth < kStep<T>; depth += kDeep) multiply_depth(a, b, depth);
  }

  TW_DEVICE void multiply_depth(const typename A::Matrix& a, const typename B::Matrix& b, int depth) {
    LeftFragment<T> x[kWarpRows / 16];
    TW_UNROLL for (int i = 0; i < kWarpRows / 16; ++i) {
      if constexpr (kAColumns)
        load_left_of_columns(x[i], a, warp_row() + 16 * i, depth);
      else
        load_left(x[i], a, warp_row() + 16 * i, depth);
    }
    TW_UNROLL for (int j = 0; j < kWarpColumns / 8; j += 2) {
      RightFragment<T> y[2];
      if constexpr (kBColumns)
        load_right_of_columns(y, b, warp_column() + 8 * j, depth);
      else
        load_right(y, b, warp_column() + 8 * j, depth);
      TW_UNROLL for (int i = 0; i < kWarpRows / 16; ++i) TW_UNROLL for (int n = 0; n < 2; ++n)
          multiply<T>(results[i][j + n], x[i], y[n]);
    }
  }

  // To shared memory; complete after the block's next barrier.
  TW_DEVICE void store(Shared<float> to, int stride) const {
    const int row = warp_row() + lane_index() / 4, column = warp_column() + 2 * (lane_index() % 4);
    TW_UNROLL for (int i = 0; i < kWarpRows / 16; ++i) TW_UNROLL for (int j = 0; j < kWarpColumns / 8; ++j)
        TW_UNROLL for (int h = 0; h < 2; ++h) to.store_vector<2>((row + 16 * i + 8 * h) * stride + column + 8 * j,
                                                                 {{results[i][j][2 * h], results[i][j][2 * h + 1]}});
  }
};

}  // namespace tilewright::gpu
