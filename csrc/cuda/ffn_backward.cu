// The gradients of the feed-forward block:
//   dz = dropout(dout); dh = dz w_out; dpre = dh act'(pre) (gated: dgate = dh up act'(gate), dup = dh act(gate));
//   dx = dpre w_in; dw_in = dpre^T x; dw_out = dz^T hidden; db_in, db_out: column sums of dpre, dz.
//
// dpre, hidden (again) and the sums of db_in over a block of rows come out of the epilogue of dz w_out; pre is computed
// again where it was not kept. Every sum has a fixed order: there are no atomics.
#include "ffn.h"
#include "ffn_finish.h"

namespace tilewright::gpu {
namespace {

constexpr int kWarps = 8, kThreads = kWarps * kWarpSize;

// dz = dropout(dout), if it is wanted; and the sums of its columns over blocks of kDropRows rows, if they are.
struct FfnDrop {
  FfnMatrix dout, dz;
  float* sums = nullptr;
  int64_t rows = 0, columns = 0;
  const int64_t* rng = nullptr;
  double dropout_p = 0.0;
};
constexpr int kDropRows = 64, kDropColumns = 4 * kWarpSize;

template <class T>
TW_KERNEL(kThreads)
ffn_drop_kernel(TW_KERNEL_ARGUMENT FfnDrop p) {
  const int column_blocks = static_cast<int>((p.columns + kDropColumns - 1) / kDropColumns);
  const int64_t row_block = block_x() / column_blocks, first = row_block * kDropRows;
  const int64_t column = int64_t{block_x() % column_blocks} * kDropColumns, mine = column + 4 * lane_index();
  const int64_t left = p.columns - mine;
  const int count = left < 0 ? 0 : left < 4 ? static_cast<int>(left) : 4;
  const FfnDropout dropout = FfnDropout::of(p.rng, p.dropout_p);
  LongSum sums[4];
  for (int i = warp_index(); i < kDropRows && first + i < p.rows && count > 0; i += kWarps) {
    Vector<float, 4> x = p.dout.load<T>(first + i, mine, count);
    if (dropout.on) dropout.apply(x, first + i, mine);
    if (p.dz.data != nullptr) p.dz.store<T>(first + i, mine, count, x);
    TW_UNROLL for (int e = 0; e < 4; ++e) if (e < count) sums[e].add(x[e]);
  }
  if (p.sums != nullptr)
    store_sums(sums, shared_memory<float>(), kWarps, warp_index(), 4 * lane_index(), kDropColumns,
               Global<float>{p.sums} + row_block * p.columns, column, p.columns);
}

// out[c]: the sum of parts[i][c] over i. The warps of a block share its parts.
struct FfnSum {
  const float* parts = nullptr;
  void* out = nullptr;
  int64_t count = 0, columns = 0;
};

template <class T>
TW_KERNEL(kThreads)
ffn_sum_kernel(TW_KERNEL_ARGUMENT FfnSum p) {
  const int64_t column = int64_t{block_x()} * kWarpSize + lane_index();
  const Global<const float> parts{p.parts};
  LongSum mine, whole;
  for (int64_t i = warp_index(); i < p.count && column < p.columns; i += kWarps)
    mine.add(parts.load(i * p.columns + column));
  const auto scratch = shared_memory<float>();
  scratch.store(thread_index(), mine.sum);
  sync_block();
  if (warp_index() != 0 || column >= p.columns) return;
  for (int w = 0; w < kWarps; ++w) whole.add(scratch.load(w * kWarpSize + lane_index()));
  global<T>(p.out).store(column, narrow<T>(whole.sum));
}

template <class T>
int drop(const FfnDrop& d, Stream stream) {
  const int64_t blocks = (d.rows + kDropRows - 1) / kDropRows * ((d.columns + kDropColumns - 1) / kDropColumns);
  return launch<ffn_drop_kernel<T>>({blocks}, kThreads, kThreads * 4 * int{sizeof(float)}, stream, d);
}

template <class T>
int sum(const FfnSum& s, Stream stream) {
  return launch<ffn_sum_kernel<T>>({(s.columns + kWarpSize - 1) / kWarpSize}, kThreads, kThreads * int{sizeof(float)},
                                   stream, s);
}

// Where in the workspace everything is that is wanted; null where it is not.
struct Plan {
  char *dz = nullptr, *pre = nullptr, *dpre = nullptr, *hidden = nullptr, *in_sums = nullptr, *out_sums = nullptr;
  int64_t bytes = 0;

  static bool needs_pre(const FfnParams& p) {
    return p.dx.data != nullptr || p.dw_in.data != nullptr || p.dw_out.data != nullptr || p.db_in != nullptr;
  }
  static Plan of(const FfnParams& p) {
    Plan plan;
    const auto take = [&](char*& place, bool wanted, int64_t rows, int64_t columns, int64_t size) {
      if (!wanted) return;
      place = static_cast<char*>(p.workspace) + plan.bytes;
      plan.bytes += (rows * columns * size + 255) / 256 * 256;
    };
    const int64_t size = size_of(p.dtype), inner = ffn_inner(p);
    take(plan.dz, needs_pre(p) && p.rng != nullptr, p.rows, p.out_features, size);
    take(plan.pre, needs_pre(p) && p.pre == nullptr, p.rows, inner, size);
    take(plan.dpre, needs_pre(p), p.rows, inner, size);
    take(plan.hidden, p.dw_out.data != nullptr, p.rows, p.hidden, size);
    take(plan.in_sums, p.db_in != nullptr, (p.rows + 63) / 64, inner, sizeof(float));
    take(plan.out_sums, p.db_out != nullptr, (p.rows + kDropRows - 1) / kDropRows, p.out_features, sizeof(float));
    return plan;
  }
};

// A product whose result is all that is wanted of it.
FfnProduct plain(const FfnOperand& a, const FfnOperand& b, int64_t m, int64_t n, int64_t k, const View4& out,
                 int64_t size) {
  FfnProduct r;
  r.a = a, r.b = b, r.m = m, r.n = n, r.k = k;
  r.out = FfnMatrix::of(out.data, out.stride[0], out.stride[1], size);
  return r;
}

template <class T>
int run(const FfnParams& p, Stream stream) {
  const int64_t size = sizeof(T), inner = ffn_inner(p);
  const Plan plan = Plan::of(p);
  const auto multiply = [&](const FfnProduct& r) { return ffn_product(r, p.dtype, stream); };

  FfnDrop d;
  d.dout = FfnMatrix::of(p.dout.data, p.dout.stride[0], p.dout.stride[1], size);
  d.dz = FfnMatrix::of(plan.dz, p.out_features, 1, size);
  d.sums = reinterpret_cast<float*>(plan.out_sums);
  d.rows = p.rows, d.columns = p.out_features, d.rng = p.rng, d.dropout_p = p.dropout_p;
  if (plan.dz != nullptr || plan.out_sums != nullptr)
    if (const int error = drop<T>(d, stream)) return error;
  if (p.db_out != nullptr)
    if (const int error = sum<T>({d.sums, p.db_out, (p.rows + kDropRows - 1) / kDropRows, p.out_features}, stream))
      return error;
  if (!Plan::needs_pre(p)) return 0;

  View4 dz = p.dout;
  if (plan.dz != nullptr) dz.data = plan.dz, dz.stride[0] = p.out_features, dz.stride[1] = 1;
  if (p.pre == nullptr)
    if (const int error = multiply(ffn_hidden_product(p, plan.pre, nullptr, size))) return error;

  FfnProduct r;
  r.a = ffn_rows(dz, size), r.b = ffn_weights(p.w_out, false, size);
  r.m = p.rows, r.n = p.hidden, r.k = p.out_features;
  r.finish = Finish::kGradient, r.activation = p.activation, r.gated = is_gated(p.activation);
  ffn_set_halves(r.pre, p.pre != nullptr ? p.pre : plan.pre, p, size);
  ffn_set_halves(r.dpre, plan.dpre, p, size);
  r.hidden = FfnMatrix::of(plan.hidden, p.hidden, 1, size);
  r.sums = reinterpret_cast<float*>(plan.in_sums);
  if (const int error = multiply(r)) return error;
  if (p.db_in != nullptr) {
    const int64_t tile = ffn_tile_size(r);
    if (const int error = sum<T>({r.sums, p.db_in, (p.rows + tile - 1) / tile, inner}, stream)) return error;
  }

  const auto columns = [&](const void* data, int64_t stride, int64_t depth_stride) {
    return FfnOperand::of(data, stride, depth_stride, true, size);
  };
  if (p.dx.data != nullptr) {
    const FfnOperand dpre = FfnOperand::of(plan.dpre, inner, 1, false, size);
    if (const int error =
            multiply(plain(dpre, ffn_weights(p.w_in, false, size), p.rows, p.in_features, inner, p.dx, size)))
      return error;
  }
  if (p.dw_in.data != nullptr) {
    const FfnOperand x = columns(p.x.data, p.x.stride[1], p.x.stride[0]);
    if (const int error = multiply(plain(columns(plan.dpre, 1, inner), x, inner, p.in_features, p.rows, p.dw_in, size)))
      return error;
  }
  if (p.dw_out.data == nullptr) return 0;
  return multiply(plain(columns(dz.data, dz.stride[1], dz.stride[0]), columns(plan.hidden, 1, p.hidden), p.out_features,
                        p.hidden, p.rows, p.dw_out, size));
}

}  // namespace

int64_t ffn_backward_workspace(const FfnParams& p) { return Plan::of(p).bytes; }

int ffn_backward(const FfnParams& p, Stream stream) {
  return launch_all(stream, [&](Stream s) {
    switch (p.dtype) {
      case DType::kFloat32: return run<float>(p, s);
      case DType::kFloat16: return run<Half>(p, s);
      case DType::kBFloat16: return run<BFloat16>(p, s);
      default: return kUnsupported;
    }
  });
}

}  // namespace tilewright::gpu
