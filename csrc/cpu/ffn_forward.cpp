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

// Rows of a block. Each block packs the weights again, about 1% of its time; its hidden activation takes F * 6 KiB.
constexpr int64_t kBlockRows = 2 * kTaskRows;

template <class A>
Status run(const FfnParams& p) {
  const bool gated = is_gated(p.activation);
  const int64_t inner = gated ? 2 * p.hidden : p.hidden, block = min64(kBlockRows, p.rows);
  if (p.rows == 0) return Status::kOk;
  const Matrix x = matrix(p.x, p.dtype), w_in = matrix(p.w_in, p.dtype), w_out = matrix(p.w_out, p.dtype);
  const Matrix out = matrix(p.out, p.dtype), residual = matrix(p.residual, p.dtype);
  const Matrix b_in = contiguous(p.b_in, p.dtype, inner), b_out = contiguous(p.b_out, p.dtype, p.out_features);
  const Matrix pre = contiguous(p.pre, p.dtype, inner);
  const Dropout dropout(p);

  const auto first = [&](int64_t row, int64_t rows) {
    return Product<A>{x.from_row(row).operand(), w_in.operand(), rows, p.hidden, p.in_features, gated, p.num_threads};
  };
  const auto second = [&](const Matrix& hidden, int64_t rows) {
    return Product<A>{hidden.operand(), w_out.operand(), rows, p.out_features, p.hidden, false, p.num_threads};
  };
  const int64_t hidden_size = round_up(block * p.hidden, 16);
  const Scratch scratch(static_cast<size_t>(hidden_size + max64(gemm_scratch(first(0, block)), gemm_scratch(second({}, block))) + 16) *
                        sizeof(A));
  if (scratch.data() == nullptr) return Status::kOutOfMemory;
  A* const memory = reinterpret_cast<A*>(scratch.data());
  const Matrix hidden = contiguous(memory, kAccumulatorDType<A>, p.hidden);

  for (int64_t row = 0; row < p.rows; row += block) {
    const int64_t rows = min64(block, p.rows - row);
    gemm(first(row, rows), memory + hidden_size, [&](const FinishedTile<A>& t) {
      for_vectors(t, [&](int i, int j, int count) {
        Vec<A> v = load(t.tile + i * t.stride + j);
        if (b_in) v += read<A>(b_in, 0, t.n + j, count);
        if (pre) write<A>(pre, row + t.m + i, t.n + j, count, v);
        Vec<A> h = activate<A>(p.activation, v).value;
        if (gated) {
          Vec<A> up = load(t.second + i * t.stride + j);
          if (b_in) up += read<A>(b_in, 0, p.hidden + t.n + j, count);
          if (pre) write<A>(pre, row + t.m + i, p.hidden + t.n + j, count, up);
          h *= up;
        }
        write<A>(hidden, t.m + i, t.n + j, count, h);
      });
    });
    gemm(second(hidden, rows), memory + hidden_size, [&](const FinishedTile<A>& t) {
      for_vectors(t, [&](int i, int j, int count) {
        Vec<A> v = load(t.tile + i * t.stride + j);
        if (b_out) v += read<A>(b_out, 0, t.n + j, count);
        if (dropout) v *= dropout.factors<A>(row + t.m + i, t.n + j, count);
        if (residual) v += read<A>(residual, row + t.m + i, t.n + j, count);
        write<A>(out, row + t.m + i, t.n + j, count, v);
      });
    });
  }
  return Status::kOk;
}

}  // namespace

Status ffn_forward(const FfnParams& p) {
  if (!valid_shape(p)) return Status::kBadShape;
  if (p.dtype == DType::kBool) return Status::kUnsupportedDType;
  return p.dtype == DType::kFloat64 ? run<double>(p) : run<float>(p);
}

}  // namespace TW_ISA
}  // namespace tilewright
