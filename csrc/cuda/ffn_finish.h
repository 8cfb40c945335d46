// What becomes of a tile of a product. It lies in shared memory, in float32, so that a thread finishes four neighbours of
// a row at a time, which are one access to memory and one draw of random numbers.
#pragma once

#include "../common/philox.h"
#include "ffn_activation.h"
#include "ffn_product.h"

namespace tilewright::gpu {

// kColumns columns of results from `row`, `column` on; paired, the gate's in the left half and the up projection's in the
// right one. Padded: lanes that hold different rows of a result write to different banks.
template <int kRows, int kColumns, int kThreads>
struct FfnTile {
  static constexpr int kStride = kColumns + 8, kFours = kColumns / 4;
  static constexpr int kBytes = kRows * kStride * int{sizeof(float)};
  // Threads with the same columns, in all its rows.
  static constexpr int kGroups = kThreads / kFours;

  Shared<float> at;
  int64_t row, column;

  TW_DEVICE Vector<float, 4> load(int i, int j) const { return at.template load_vector<4>(i * kStride + j); }

  // f(row and column in the tile, row and column of the result, of how many of its four columns there are).
  template <class F>
  TW_DEVICE void for_fours(const FfnProduct& p, const F& f) const {
    const int fours = p.paired ? kFours / 2 : kFours, shift = p.paired ? kLog2 - 1 : kLog2;
    for (int at_four = thread_index(); at_four < kRows * fours; at_four += kThreads) {
      const int i = at_four >> shift, j = 4 * (at_four & (fours - 1));
      if (row + i >= p.m || column + j >= p.n) continue;
      const int64_t left = p.n - column - j;
      f(i, j, row + i, column + j, left < 4 ? static_cast<int>(left) : 4);
    }
  }

 private:
  static constexpr int log2(int x) { return x == 1 ? 0 : 1 + log2(x / 2); }
  static constexpr int kLog2 = log2(kFours);
};

// Which elements of the output dropout keeps, scaled; the same ones on every backend.
struct FfnDropout {
  bool on = false;
  uint64_t seed = 0;
  uint32_t offset = 0, threshold = 0;
  float scale = 1.0f;

  TW_DEVICE static FfnDropout of(const int64_t* rng, double p) {
    if (rng == nullptr) return {};
    const Global<const int64_t> numbers{rng};
    return {true, static_cast<uint64_t>(numbers.load(0)), static_cast<uint32_t>(numbers.load(1)), dropout_threshold(p),
            static_cast<float>(dropout_scale(p))};
  }
  // Four neighbours, from a column on that is a multiple of 4.
  TW_DEVICE void apply(Vector<float, 4>& x, int64_t row, int64_t column) const {
    const Philox4 bits = philox(seed, static_cast<uint32_t>(column / 4), static_cast<uint32_t>(row),
                                static_cast<uint32_t>(row >> 32), offset);
    TW_UNROLL for (int e = 0; e < 4; ++e) x[e] = bits.lane[e] >= threshold ? x[e] * scale : 0.0f;
  }
};

template <class T>
TW_DEVICE void add_bias(Vector<float, 4>& x, const void* bias, int64_t column, int count) {
  if (bias == nullptr) return;
  TW_UNROLL for (int e = 0; e < 4; ++e) if (e < count) x[e] += widen(global<T>(bias).load(column + e));
}

template <class T, class Tile>
TW_DEVICE void finish_out(const FfnProduct& p, const Tile& tile) {
  const FfnDropout dropout = FfnDropout::of(p.rng, p.dropout_p);
  tile.for_fours(p, [&](int i, int j, int64_t row, int64_t column, int count) {
    Vector<float, 4> x = tile.load(i, j);
    add_bias<T>(x, p.bias, column, count);
    if (dropout.on) dropout.apply(x, row, column);
    if (p.residual.data != nullptr) {
      const Vector<float, 4> before = p.residual.load<T>(row, column, count);
      TW_UNROLL for (int e = 0; e < 4; ++e) x[e] += before[e];
    }
    p.out.store<T>(row, column, count, x);
  });
}

template <class T, class Tile>
TW_DEVICE void finish_hidden(const FfnProduct& p, const Tile& tile) {
  const bool gated = p.paired;
  tile.for_fours(p, [&](int i, int j, int64_t row, int64_t column, int count) {
    Vector<float, 4> gate = tile.load(i, j), up{};
    add_bias<T>(gate, p.bias, column, count);
    if (gated) {
      up = tile.load(i, Tile::kFours * 2 + j);
      add_bias<T>(up, p.bias, p.n + column, count);
    }
    if (p.pre[0].data != nullptr) {
      p.pre[0].store<T>(row, column, count, gate);
      if (gated) p.pre[1].store<T>(row, column, count, up);
    }
    if (p.hidden.data == nullptr) return;
    TW_UNROLL for (int e = 0; e < 4; ++e) {
      gate[e] = activate<T>(p.activation, gate[e]).value;
      if (gated) gate[e] *= up[e];
    }
    p.hidden.store<T>(row, column, count, gate);
  });
}

// A sum that keeps what its additions round off (Kahan): a bias has as many terms as there are rows.
struct LongSum {
  float sum = 0.0f, lost = 0.0f;

  TW_DEVICE void add(float x) {
    const float y = x - lost, next = sum + y, error = (next - sum) - y;
    lost = error == error ? error : 0.0f;  // an infinite sum has lost nothing, though inf - inf is NaN
    sum = next;
  }
};

// Sums of the tile's columns, from those of the threads in `groups` groups; thread `group`, `j` has four columns. All
// threads of the block come here. `scratch`, which may still be in use, has groups * columns floats.
TW_DEVICE void store_sums(const LongSum (&mine)[4], Shared<float> scratch, int groups, int group, int j, int columns,
                          Global<float> to, int64_t column, int64_t limit) {
  sync_block();
  scratch.store_vector<4>(group * columns + j, {{mine[0].sum, mine[1].sum, mine[2].sum, mine[3].sum}});
  sync_block();
  for (int c = thread_index(); c < columns; c += block_threads()) {
    if (column + c >= limit) continue;
    LongSum whole;
    for (int g = 0; g < groups; ++g) whole.add(scratch.load(g * columns + c));
    to.store(column + c, whole.sum);
  }
}

template <class T, class Tile>
TW_DEVICE void finish_gradient(const FfnProduct& p, const Tile& tile, int64_t row_block) {
  const bool gated = p.gated;
  LongSum sums[4], up_sums[4];
  tile.for_fours(p, [&](int i, int j, int64_t row, int64_t column, int count) {
    const Vector<float, 4> gate = p.pre[0].load<T>(row, column, count);
    Vector<float, 4> dpre = tile.load(i, j), hidden;
    if (gated) {
      const Vector<float, 4> up = p.pre[1].load<T>(row, column, count);
      Vector<float, 4> dup;
      TW_UNROLL for (int e = 0; e < 4; ++e) {
        const Activated gated_by = activate<T>(p.activation, gate[e]);
        hidden[e] = gated_by.value * up[e];
        dup[e] = dpre[e] * gated_by.value;
        dpre[e] *= gated_by.slope * up[e];
        if (e < count) up_sums[e].add(dup[e]);
      }
      p.dpre[1].store<T>(row, column, count, dup);
    } else {
      TW_UNROLL for (int e = 0; e < 4; ++e) {
        const Activated activated = activate<T>(p.activation, gate[e]);
        hidden[e] = activated.value;
        dpre[e] *= activated.slope;
      }
    }
    TW_UNROLL for (int e = 0; e < 4; ++e) if (e < count) sums[e].add(dpre[e]);
    p.dpre[0].store<T>(row, column, count, dpre);
    if (p.hidden.data != nullptr) p.hidden.store<T>(row, column, count, hidden);
  });
  if (p.sums == nullptr) return;
  const int group = thread_index() / Tile::kFours, j = 4 * (thread_index() % Tile::kFours);
  const Global<float> to = Global<float>{p.sums} + row_block * (gated ? 2 * p.n : p.n);
  store_sums(sums, tile.at, Tile::kGroups, group, j, 4 * Tile::kFours, to, tile.column, p.n);
  if (gated) store_sums(up_sums, tile.at, Tile::kGroups, group, j, 4 * Tile::kFours, to + p.n, tile.column, p.n);
}

}  // namespace tilewright::gpu
