// The feed-forward block: hidden = act(x w_in^T + b_in), out = residual + dropout(hidden w_out^T + b_out).
//
// Two matrix products over a block of rows, with everything between and after them in their epilogues. The hidden
// activation exists for one block of rows at a time, as floats, and is read again while it is in the last-level cache.
#include "ffn.h"
#include "isa.h"
#include "scratch.h"

namespace tilewright {
namespace TW_ISA {
namespace {

template <class A>
Status run(const FfnParams& p) {
  // Rows of a block. Each block packs the weights again, about 1% of its time; its hidden activation takes F * 6 KiB of
  // memory.
  constexpr int64_t kBlockRows = 4 * kTaskRows;
  if (p.rows == 0) return Status::kOk;
  const bool gated = is_gated(p.activation);
  const int64_t inner = gated ? 2 * p.hidden : p.hidden, block = min64(kBlockRows, p.rows);
  const Matrix x = matrix(p.x, p.dtype), w_in = matrix(p.w_in, p.dtype), w_out = matrix(p.w_out, p.dtype);
  const Matrix out = matrix(p.out, p.dtype), residual = matrix(p.residual, p.dtype),
               pre = contiguous(p.pre, p.dtype, inner);
  const Dropout dropout(p);

  const auto first = [&](int64_t row, int64_t rows) {
    return Product<A>{x.from_row(row).operand(), w_in.operand(), rows, p.hidden, p.in_features, gated, p.num_threads};
  };
  const auto second = [&](const Buffer<A>& hidden, int64_t rows) {
    return Product<A>{hidden.matrix().operand(), w_out.operand(), rows, p.out_features, p.hidden, false, p.num_threads};
  };
  // Working memory: the biases, a block's hidden activation, and what the products need.
  const int64_t strides[] = {Buffer<A>::padded(inner), Buffer<A>::padded(p.out_features), Buffer<A>::padded(p.hidden)};
  const int64_t own = strides[0] + strides[1] + block * strides[2];
  const int64_t products = max64(gemm_scratch(first(0, block)), gemm_scratch(second({}, block)));
  const Scratch scratch(static_cast<size_t>(own + products) * sizeof(A));
  if (scratch.data() == nullptr) return Status::kOutOfMemory;
  A* const memory = reinterpret_cast<A*>(scratch.data());
  const Buffer<A> b_in{memory, strides[0]}, b_out{memory + strides[0], strides[1]};
  const Buffer<A> hidden{memory + strides[0] + strides[1], strides[2]};
  widen_bias(p.b_in, p.dtype, inner, b_in);
  widen_bias(p.b_out, p.dtype, p.out_features, b_out);

  for (int64_t row = 0; row < p.rows; row += block) {
    const int64_t rows = min64(block, p.rows - row);
    gemm(first(row, rows), memory + own, [&](const FinishedTile<A>& t) {
      for_vectors(t, [&](int i, int j, int, int64_t at) {
        const Vec<A> gate = load(t.tile + at) + b_in.read(0, t.n + j);
        store(t.tile + at, gate);
        Vec<A> h = activate<A>(p.activation, gate).value;
        if (gated) {
          const Vec<A> up = load(t.second + at) + b_in.read(0, p.hidden + t.n + j);
          store(t.second + at, up);
          h *= up;
        }
        hidden.write(t.m + i, t.n + j, h);
      });
      if (!pre) return;
      write(pre, t, row, 0, t.tile);
      if (gated) write(pre, t, row, p.hidden, t.second);
    });
    gemm(second(hidden, rows), memory + own, [&](const FinishedTile<A>& t) {
      alignas(64) A added[kTileElements<A>];
      if (residual) read(residual, t, row, 0, added);
      for_vectors(t, [&](int i, int j, int count, int64_t at) {
        Vec<A> v = load(t.tile + at) + b_out.read(0, t.n + j);
        if (dropout) v *= dropout.factors<A>(row + t.m + i, t.n + j, count);
        if (residual) v += load(added + at);
        store(t.tile + at, v);
      });
      write(out, t, row, 0, t.tile);
    });
  }
  return Status::kOk;
}

}  // namespace

Status ffn_forward(const FfnParams& p) {
  if (!valid_shape(p)) return Status::kBadShape;
  if (p.dtype == DType::kBool) return Status::kUnsupportedDType;
#if !defined(TW_TILES)
  if (p.dtype == DType::kFloat64) return run<double>(p);
#endif
  return run<float>(p);
}

}  // namespace TW_ISA
}  // namespace tilewright
