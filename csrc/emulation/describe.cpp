#include "describe.h"

#include <algorithm>

#include "../common/dtype.h"

namespace tilewright::emulation {
namespace {

using Use = GlobalMemory::Use;

// A tensor of softmax: its row dimensions and its columns.
void add_rows(GlobalMemory& memory, const char* name, const void* data, DType dtype, const SoftmaxParams& p,
              const int64_t (&row_stride)[kMaxRowDims], int64_t stride, Use use) {
  int64_t sizes[kMaxRowDims + 1], strides[kMaxRowDims + 1];
  std::copy_n(p.row_shape, p.row_dims, sizes);
  std::copy_n(row_stride, p.row_dims, strides);
  sizes[p.row_dims] = p.n;
  strides[p.row_dims] = stride;
  memory.add(name, data, static_cast<size_t>(size_of(dtype)), sizes, strides, p.row_dims + 1, use);
}

void add_bytes(GlobalMemory& memory, const char* name, const void* data, int64_t bytes, Use use) {
  const int64_t stride = 1;
  memory.add(name, data, 1, &bytes, &stride, 1, use);
}

// (B, H, rows, width) with the view's strides; packed tensors have no batch dimension.
void add_heads(GlobalMemory& memory, const char* name, const View4& v, DType dtype, bool packed, int64_t batch,
               int64_t heads, int64_t rows, int64_t width, int64_t width_stride, Use use) {
  const int64_t sizes[4] = {packed ? 1 : batch, heads, rows, width};
  const int64_t strides[4] = {v.stride[0], v.stride[1], v.stride[2], width_stride};
  memory.add(name, v.data, static_cast<size_t>(size_of(dtype)), sizes, strides, 4, use);
}

// A mask or its gradient. Along a dimension that it is broadcast over it has one element, also where there are none.
void add_mask(GlobalMemory& memory, const char* name, const View4& v, DType dtype, const AttentionParams& p, Use use) {
  int64_t sizes[4] = {p.batch, p.heads, p.seqlen_q, p.seqlen_k};
  for (int d = 0; d < 4; ++d)
    if (v.stride[d] == 0) sizes[d] = 1;
  memory.add(name, v.data, static_cast<size_t>(size_of(dtype)), sizes, v.stride, 4, use);
}

// What forward and backward read: the operands, and what the options need.
void describe_attention_inputs(const AttentionParams& p, GlobalMemory& memory) {
  const bool packed = p.cu_seqlens_q != nullptr, paged = p.block_table != nullptr;
  const int64_t rows = packed ? p.total_q : p.seqlen_q;
  const int64_t keys = packed ? p.total_k : paged ? p.page_size : p.seqlen_k, places = paged ? p.num_pages : p.batch;
  const Use cache = p.k_new.data != nullptr ? Use::kInOut : Use::kInput;
  add_heads(memory, "q", p.q, p.dtype, packed, p.batch, p.heads, rows, p.head_dim, 1, Use::kInput);
  add_heads(memory, "k", p.k, p.dtype, packed, places, p.heads_kv, keys, p.head_dim, 1, cache);
  add_heads(memory, "v", p.v, p.dtype, packed, places, p.heads_kv, keys, p.head_dim_v, 1, cache);
  add_heads(memory, "k_new", p.k_new, p.dtype, false, p.batch, p.heads_kv, p.seqlen_new, p.head_dim, 1, Use::kInput);
  add_heads(memory, "v_new", p.v_new, p.dtype, false, p.batch, p.heads_kv, p.seqlen_new, p.head_dim_v, 1, Use::kInput);
  add_bytes(memory, "cache_seqlens", p.seqlens_k, p.batch * int64_t{sizeof(int32_t)}, Use::kInput);
  if (paged) {
    const int64_t table[2] = {p.batch, (p.seqlen_k + p.page_size - 1) / p.page_size};
    const int64_t strides[2] = {p.block_table_stride, 1};
    memory.add("block_table", p.block_table, sizeof(int32_t), table, strides, 2, Use::kInput);
  }
  add_mask(memory, "mask", p.mask, p.mask_dtype, p, Use::kInput);
  const int64_t slopes[2] = {p.batch, p.heads};
  memory.add("alibi_slopes", p.alibi_slopes.data, 4, slopes, p.alibi_slopes.stride, 2, Use::kInput);
  memory.add("sinks", p.sinks.data, static_cast<size_t>(size_of(p.sinks_dtype)), &p.heads, p.sinks.stride, 1,
             Use::kInput);
  add_bytes(memory, "rng", p.rng, 16, Use::kInput);
  const int64_t bounds = (p.batch + 1) * int64_t{sizeof(int32_t)};
  add_bytes(memory, "cu_seqlens_q", p.cu_seqlens_q, bounds, Use::kInput);
  add_bytes(memory, "cu_seqlens_k", p.cu_seqlens_k, bounds, Use::kInput);
}

void add_matrix(GlobalMemory& memory, const char* name, const View4& v, DType dtype, int64_t rows, int64_t columns,
                Use use) {
  const int64_t sizes[2] = {rows, columns};
  memory.add(name, v.data, static_cast<size_t>(size_of(dtype)), sizes, v.stride, 2, use);
}

int64_t inner_features(const FfnParams& p) { return is_gated(p.activation) ? 2 * p.hidden : p.hidden; }

void describe_ffn_inputs(const FfnParams& p, GlobalMemory& memory) {
  const int64_t size = size_of(p.dtype);
  add_matrix(memory, "x", p.x, p.dtype, p.rows, p.in_features, Use::kInput);
  add_matrix(memory, "w_in", p.w_in, p.dtype, inner_features(p), p.in_features, Use::kInput);
  add_matrix(memory, "w_out", p.w_out, p.dtype, p.out_features, p.hidden, Use::kInput);
  add_bytes(memory, "b_in", p.b_in, inner_features(p) * size, Use::kInput);
  add_bytes(memory, "rng", p.rng, 16, Use::kInput);
}

}  // namespace

void describe_attention_forward(const AttentionParams& p, int64_t workspace_bytes, GlobalMemory& memory) {
  describe_attention_inputs(p, memory);
  const bool packed = p.cu_seqlens_q != nullptr;
  const int64_t rows = packed ? p.total_q : p.seqlen_q;
  add_heads(memory, "out", p.out, p.dtype, packed, p.batch, p.heads, rows, p.head_dim_v, 1, Use::kOutput);
  add_heads(memory, "lse", p.lse, DType::kFloat32, packed, p.batch, p.heads, rows, 1, 1, Use::kOutput);
  add_heads(memory, "row_stats", p.row_stats, DType::kFloat32, packed, p.batch, p.heads, rows, 2, 1, Use::kOutput);
  add_bytes(memory, "workspace", p.workspace, workspace_bytes, Use::kOutput);
}

void describe_kvcache_attention(const AttentionParams& p, int64_t workspace_bytes, GlobalMemory& memory) {
  describe_attention_forward(p, workspace_bytes, memory);
}

void describe_attention_backward(const AttentionParams& p, int64_t workspace_bytes, GlobalMemory& memory) {
  describe_attention_inputs(p, memory);
  const bool packed = p.cu_seqlens_q != nullptr;
  const int64_t rows = packed ? p.total_q : p.seqlen_q, keys = packed ? p.total_k : p.seqlen_k;
  const auto add = [&](const char* name, const View4& v, DType dtype, int64_t heads, int64_t n, int64_t width,
                       Use use) { add_heads(memory, name, v, dtype, packed, p.batch, heads, n, width, 1, use); };
  add("out", p.out, p.dtype, p.heads, rows, p.head_dim_v, Use::kInput);
  add("row_stats", p.row_stats, DType::kFloat32, p.heads, rows, 2, Use::kInput);
  add("dout", p.dout, p.dtype, p.heads, rows, p.head_dim_v, Use::kInput);
  add("dlse", p.dlse, DType::kFloat32, p.heads, rows, 1, Use::kInput);
  add("dq", p.dq, p.dtype, p.heads, rows, p.head_dim, Use::kOutput);
  add("dk", p.dk, p.dtype, p.heads_kv, keys, p.head_dim, Use::kOutput);
  add("dv", p.dv, p.dtype, p.heads_kv, keys, p.head_dim_v, Use::kOutput);
  add_mask(memory, "dmask", p.dmask, DType::kFloat32, p, Use::kOutput);
  memory.add("dsinks", p.dsinks.data, sizeof(float), &p.heads, p.dsinks.stride, 1, Use::kOutput);
  add_bytes(memory, "workspace", p.workspace, workspace_bytes, Use::kOutput);
}

void describe_ffn_forward(const FfnParams& p, int64_t workspace_bytes, GlobalMemory& memory) {
  const int64_t size = size_of(p.dtype);
  describe_ffn_inputs(p, memory);
  add_bytes(memory, "b_out", p.b_out, p.out_features * size, Use::kInput);
  add_matrix(memory, "residual", p.residual, p.dtype, p.rows, p.out_features, Use::kInput);
  add_matrix(memory, "out", p.out, p.dtype, p.rows, p.out_features, Use::kOutput);
  add_bytes(memory, "pre", p.pre, p.rows * inner_features(p) * size, Use::kOutput);
  add_bytes(memory, "workspace", p.workspace, workspace_bytes, Use::kOutput);
}

void describe_ffn_backward(const FfnParams& p, int64_t workspace_bytes, GlobalMemory& memory) {
  const int64_t size = size_of(p.dtype);
  describe_ffn_inputs(p, memory);
  add_bytes(memory, "pre", p.pre, p.rows * inner_features(p) * size, Use::kInput);
  add_matrix(memory, "dout", p.dout, p.dtype, p.rows, p.out_features, Use::kInput);
  add_matrix(memory, "dx", p.dx, p.dtype, p.rows, p.in_features, Use::kOutput);
  add_matrix(memory, "dw_in", p.dw_in, p.dtype, inner_features(p), p.in_features, Use::kOutput);
  add_matrix(memory, "dw_out", p.dw_out, p.dtype, p.out_features, p.hidden, Use::kOutput);
  add_bytes(memory, "db_in", p.db_in, inner_features(p) * size, Use::kOutput);
  add_bytes(memory, "db_out", p.db_out, p.out_features * size, Use::kOutput);
  add_bytes(memory, "workspace", p.workspace, workspace_bytes, Use::kOutput);
}

void describe_softmax_forward(const SoftmaxParams& p, int64_t workspace_bytes, GlobalMemory& memory) {
  add_rows(memory, "x", p.x, p.dtype, p, p.x_row_stride, p.x_stride, Use::kInput);
  add_rows(memory, "mask", p.mask, p.mask_dtype, p, p.mask_row_stride, p.mask_stride, Use::kInput);
  add_rows(memory, "y", p.y, p.dtype, p, p.y_row_stride, p.y_stride, Use::kOutput);
  add_bytes(memory, "workspace", p.workspace, workspace_bytes, Use::kOutput);
}

void describe_softmax_backward(const SoftmaxParams& p, int64_t workspace_bytes, GlobalMemory& memory) {
  add_rows(memory, "y", p.y, p.dtype, p, p.y_row_stride, p.y_stride, Use::kInput);
  add_rows(memory, "dy", p.dy, p.dtype, p, p.dy_row_stride, p.dy_stride, Use::kInput);
  add_rows(memory, "dx", p.dx, p.dtype, p, p.x_row_stride, p.x_stride, Use::kOutput);
  add_bytes(memory, "workspace", p.workspace, workspace_bytes, Use::kOutput);
}

}  // namespace tilewright::emulation
