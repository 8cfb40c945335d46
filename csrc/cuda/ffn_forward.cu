// The feed-forward block, forward: two products, with everything after each in its epilogue. What is between them,
// hidden, goes through the workspace.
#include "ffn.h"
#include "ffn_product.h"

namespace tilewright::gpu {

int64_t ffn_forward_workspace(const FfnParams& p) { return p.rows * p.hidden * size_of(p.dtype); }

int ffn_forward(const FfnParams& p, Stream stream) {
  const int64_t size = size_of(p.dtype);
  FfnProduct r;
  r.a = FfnOperand::of(p.workspace, p.hidden, 1, false, size), r.b = ffn_weights(p.w_out, true, size);
  r.m = p.rows, r.n = p.out_features, r.k = p.hidden;
  r.bias = p.b_out;
  r.out = FfnMatrix::of(p.out.data, p.out.stride[0], p.out.stride[1], size);
  r.residual = FfnMatrix::of(p.residual.data, p.residual.stride[0], p.residual.stride[1], size);
  r.rng = p.rng, r.dropout_p = p.dropout_p;
  return launch_all(stream, [&](Stream s) {
    if (const int error = ffn_product(ffn_hidden_product(p, p.pre, p.workspace, size), p.dtype, s)) return error;
    return ffn_product(r, p.dtype, s);
  });
}

}  // namespace tilewright::gpu
