// The gradients of the feed-forward block, a block of rows at a time:
//   dz = dropout(dout); dh = dz w_out; dpre = dh act'(pre)
//   (gated: dgate = dh up act'(gate), dup = dh act(gate)); dx = dpre w_in
//   dw_in += dpre^T x; dw_out += dz^T hidden; db_in, db_out: column sums of dpre, dz
// The dropout mask is generated again, hidden is recomputed from pre, and pre from x where it was not kept. Every sum
// has a fixed order, whatever the number of threads.
#include "ffn.h"
#include "isa.h"
#include "scratch.h"

namespace tilewright {
namespace TW_ISA {
namespace {

// A gradient that is summed over blocks of rows: in `wide` until the last block stores it in `out`.
template <class A>
struct RunningSum {
  Matrix out, wide;

  TW_MEMBER void add(const FinishedTile<A>& t, bool first, bool last) const {
    if (!first) {
      alignas(64) A before[kTileElements<A>];
      read(wide, t, 0, 0, before);
      for_vectors(t, [&](int, int, int, int64_t at) { store(t.tile + at, load(t.tile + at) + load(before + at)); });
    }
    write(last ? out : wide, t, 0, 0, t.tile);
  }
};

template <class A>
class Backward {
 public:
  static constexpr int L = Simd<A>::lanes;
  // Rows of a block: the depth of the weight gradients' products. Its dpre and hidden are kept as floats.
  static constexpr int64_t kBlockRows = 1024;

  explicit Backward(const FfnParams& p)
      : p_(p),
        gated_(is_gated(p.activation)),
        inner_(gated_ ? 2 * p.hidden : p.hidden),
        block_(min64(kBlockRows, p.rows)),
        several_(p.rows > block_),
        dropout_(p) {}

  Status run() {
    plan();
    const Scratch scratch(static_cast<size_t>(used_ + gemm_elements_ + 16) * sizeof(A));
    if (scratch.data() == nullptr) return Status::kOutOfMemory;
    memory_ = reinterpret_cast<A*>(scratch.data());
    // At least once: without rows the weight gradients are sums over nothing, zero.
    for (int64_t row = 0; row == 0 || row < p_.rows; row += block_) {
      one_block(row, min64(block_, p_.rows - row));
      if (block_ == 0) break;
    }
    return Status::kOk;
  }

 private:
  int64_t reserve(bool wanted, int64_t rows, int64_t columns) {
    const int64_t at = used_;
    if (wanted) used_ += rows * Buffer<A>::padded(columns);
    return at;
  }

  // Where the parts of the working memory are, and how much the largest product needs besides.
  void plan() {
    const bool wide = several_ && p_.dtype != kAccumulatorDType<A>;
    b_in_at_ = reserve(p_.pre == nullptr, 1, inner_);
    pre_at_ = reserve(p_.pre == nullptr, block_, inner_);
    dpre_at_ = reserve(true, block_, inner_);
    hidden_at_ = reserve(true, block_, p_.hidden);
    dz_at_ = reserve(bool(dropout_), block_, p_.out_features);
    dw_in_at_ = reserve(wide && p_.dw_in.data != nullptr, inner_, p_.in_features);
    dw_out_at_ = reserve(wide && p_.dw_out.data != nullptr, p_.out_features, p_.hidden);
    db_in_at_ = reserve(wide && p_.db_in != nullptr, 1, inner_);
    db_out_at_ = reserve(wide && p_.db_out != nullptr, 1, p_.out_features);
    const Matrix none{};
    gemm_elements_ = 0;
    for (const Product<A>& product :
         {pre_product(0, block_), hidden_gradient(none, block_), input_gradient(none, block_),
          in_weight_gradient(none, none, block_), out_weight_gradient(none, none, block_)})
      gemm_elements_ = max64(gemm_elements_, gemm_scratch(product));
  }

  Buffer<A> buffer(int64_t at, int64_t columns) const { return {memory_ + at, Buffer<A>::padded(columns)}; }
  RunningSum<A> running(const Matrix& out, int64_t at, int64_t columns) const {
    return {out, p_.dtype == kAccumulatorDType<A> ? out : buffer(at, columns).matrix()};
  }

  Matrix x() const { return matrix(p_.x, p_.dtype); }
  Matrix w_in() const { return matrix(p_.w_in, p_.dtype); }
  Matrix w_out() const { return matrix(p_.w_out, p_.dtype); }

  Product<A> pre_product(int64_t row, int64_t rows) const {
    return {x().from_row(row).operand(), w_in().operand(), rows, inner_, p_.in_features, false, p_.num_threads};
  }
  Product<A> hidden_gradient(const Matrix& dz, int64_t rows) const {
    return {dz.operand(), w_out().transposed(), rows, p_.hidden, p_.out_features, false, p_.num_threads};
  }
  Product<A> input_gradient(const Matrix& dpre, int64_t rows) const {
    return {dpre.operand(), w_in().transposed(), rows, p_.in_features, inner_, false, p_.num_threads};
  }
  Product<A> in_weight_gradient(const Matrix& dpre, const Matrix& x, int64_t rows) const {
    return {dpre.transposed(), x.transposed(), inner_, p_.in_features, rows, false, p_.num_threads};
  }
  Product<A> out_weight_gradient(const Matrix& dz, const Matrix& hidden, int64_t rows) const {
    return {dz.transposed(), hidden.transposed(), p_.out_features, p_.hidden, rows, false, p_.num_threads};
  }

  void one_block(int64_t row, int64_t rows) const {
    const bool first = row == 0, last = row + rows >= p_.rows;
    A* const scratch = memory_ + used_;
    const Matrix dout = matrix(p_.dout, p_.dtype).from_row(row);
    const Buffer<A> dropped = buffer(dz_at_, p_.out_features);
    if (dropout_) drop(dout, dropped, row, rows);
    const Matrix dz = dropout_ ? dropped.matrix() : dout;
    const bool needs_pre =
        p_.dx.data != nullptr || p_.dw_in.data != nullptr || p_.dw_out.data != nullptr || p_.db_in != nullptr;
    if (needs_pre) {
      const Buffer<A> recomputed = buffer(pre_at_, inner_);
      if (p_.pre == nullptr) recompute(row, rows, recomputed, scratch);
      const Matrix pre = p_.pre != nullptr ? contiguous(p_.pre, p_.dtype, inner_).from_row(row) : recomputed.matrix();
      differentiate(dz, rows, pre, scratch);
      const Matrix dpre = buffer(dpre_at_, inner_).matrix(), hidden = buffer(hidden_at_, p_.hidden).matrix();
      if (const Matrix dx = matrix(p_.dx, p_.dtype).from_row(row))
        gemm(input_gradient(dpre, rows), scratch, [&](const FinishedTile<A>& t) { write(dx, t, 0, 0, t.tile); });
      if (const Matrix dw = matrix(p_.dw_in, p_.dtype))
        sum_product(in_weight_gradient(dpre, x().from_row(row), rows), running(dw, dw_in_at_, p_.in_features), first,
                    last, scratch);
      if (const Matrix db = contiguous(p_.db_in, p_.dtype, inner_))
        sum_columns(dpre, rows, inner_, running(db, db_in_at_, inner_), first, last);
      if (const Matrix dw = matrix(p_.dw_out, p_.dtype))
        sum_product(out_weight_gradient(dz, hidden, rows), running(dw, dw_out_at_, p_.hidden), first, last, scratch);
    }
    if (const Matrix db = contiguous(p_.db_out, p_.dtype, p_.out_features))
      sum_columns(dz, rows, p_.out_features, running(db, db_out_at_, p_.out_features), first, last);
  }

  void drop(const Matrix& dout, const Buffer<A>& dz, int64_t row, int64_t rows) const {
    parallel_for(rows, p_.num_threads, [&](int64_t i, int) {
      read(dout, i, 0, 1, static_cast<int>(p_.out_features), dz.data + i * dz.stride, dz.stride);
      for (int64_t j = 0; j < p_.out_features; j += L) {
        const int n = static_cast<int>(min64(L, p_.out_features - j));
        dz.write(i, j, dz.read(i, j) * dropout_.template factors<A>(row + i, j, n), n);
      }
    });
  }

  void recompute(int64_t row, int64_t rows, const Buffer<A>& pre, A* scratch) const {
    const Buffer<A> b_in = buffer(b_in_at_, inner_);
    widen_bias(p_.b_in, p_.dtype, inner_, b_in);
    gemm(pre_product(row, rows), scratch, [&](const FinishedTile<A>& t) {
      for_vectors(t, [&](int i, int j, int, int64_t at) {
        pre.write(t.m + i, t.n + j, load(t.tile + at) + b_in.read(0, t.n + j));
      });
    });
  }

  // Fills dpre and hidden.
  void differentiate(const Matrix& dz, int64_t rows, const Matrix& pre, A* scratch) const {
    const Buffer<A> dpre = buffer(dpre_at_, inner_), hidden = buffer(hidden_at_, p_.hidden);
    const auto epilogue = [&](const FinishedTile<A>& t) {
      alignas(64) A gates[kTileElements<A>], ups[kTileElements<A>];
      read(pre, t, 0, 0, gates);
      if (gated_) read(pre, t, 0, p_.hidden, ups);
      for_vectors(t, [&](int i, int j, int n, int64_t at) {
        const int64_t row = t.m + i, column = t.n + j;
        const Vec<A> dh = load(t.tile + at);
        const Activated<Vec<A>> act = activate<A>(p_.activation, load(gates + at));
        Vec<A> h = act.value, dgate = dh * act.slope;
        if (gated_) {
          dpre.write(row, p_.hidden + column, dh * act.value, n);
          h *= load(ups + at);
          dgate *= load(ups + at);
        }
        dpre.write(row, column, dgate, n);
        hidden.write(row, column, h);
      });
    };
    const auto load_ahead = [&](int64_t row, int64_t column) {
      prefetch_at(pre, row, column);
      if (gated_) prefetch_at(pre, row, p_.hidden + column);
    };
    const Prefetch prefetch(load_ahead);
    gemm(hidden_gradient(dz, rows), scratch, epilogue, &prefetch);
  }

  void sum_product(const Product<A>& product, const RunningSum<A>& sum, bool first, bool last, A* scratch) const {
    gemm(product, scratch, [&](const FinishedTile<A>& t) { sum.add(t, first, last); });
  }

  // Compensated (Kahan): the sum over a block of rows is as exact as one rounding, like that of torch's cascades.
  void sum_columns(const Matrix& m, int64_t rows, int64_t columns, const RunningSum<A>& sum, bool first,
                   bool last) const {
    constexpr int kVectors = 8, kRows = 8;
    parallel_for(ceil_div(columns, kVectors * L), p_.num_threads, [&](int64_t task, int) {
      const int64_t column = task * kVectors * L;
      const int count = static_cast<int>(min64(kVectors * L, columns - column));
      alignas(64) A terms[kRows * kVectors * L] = {}, sums[kVectors * L];
      Vec<A> total[kVectors] = {}, lost[kVectors] = {};
      for (int64_t i = 0; i < rows; i += kRows) {
        const int here = static_cast<int>(min64(kRows, rows - i));
        read(m, i, column, here, count, terms, kVectors * L);
        for (int r = 0; r < here; ++r)
          for (int v = 0; v < kVectors; ++v) {
            const Vec<A> term = load(terms + (r * kVectors + v) * L) - lost[v], next = total[v] + term;
            lost[v] = (next - total[v]) - term;
            total[v] = next;
          }
      }
      for (int v = 0; v < kVectors; ++v) store(sums + v * L, total[v]);
      sum.add({0, column, 1, count, sums, nullptr, kVectors * L}, first, last);
    });
  }

  const FfnParams& p_;
  const bool gated_;
  const int64_t inner_, block_;
  const bool several_;
  const Dropout dropout_;
  int64_t used_ = 0, gemm_elements_ = 0;
  int64_t b_in_at_ = 0, pre_at_ = 0, dpre_at_ = 0, hidden_at_ = 0, dz_at_ = 0, dw_in_at_ = 0, dw_out_at_ = 0,
          db_in_at_ = 0, db_out_at_ = 0;
  A* memory_ = nullptr;
};

}  // namespace

Status ffn_backward(const FfnParams& p) {
  if (!valid_shape(p)) return Status::kBadShape;
  if (p.dtype == DType::kBool) return Status::kUnsupportedDType;
#if !defined(TW_TILES)
  if (p.dtype == DType::kFloat64) return Backward<double>(p).run();
#endif
  return Backward<float>(p).run();
}

}  // namespace TW_ISA
}  // namespace tilewright
