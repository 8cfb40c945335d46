// The structs of csrc/common/params.h as Python classes, for every module. A header, since most of what compiling a file with
// pybind11 takes is pybind11: a module is one such file.
#pragma once

#include "fields.h"

namespace tilewright {
namespace {

PyGetSetDef* attention_fields() {
  using Struct = AttentionParams;
  static PyGetSetDef fields[] = {
      TW_FIELD(dtype),
      TW_FIELD(mask_dtype),
      TW_FIELD(sinks_dtype),
      TW_FIELD(q),
      TW_FIELD(k),
      TW_FIELD(v),
      TW_FIELD(out),
      TW_FIELD(lse),
      TW_FIELD(row_stats),
      TW_FIELD(mask),
      TW_FIELD(alibi_slopes),
      TW_FIELD(sinks),
      TW_FIELD(rng),
      TW_FIELD(cu_seqlens_q),
      TW_FIELD(cu_seqlens_k),
      TW_FIELD(seqlens_k),
      TW_FIELD(block_table),
      TW_FIELD(page_size),
      TW_FIELD(num_pages),
      TW_FIELD(batch),
      TW_FIELD(heads),
      TW_FIELD(heads_kv),
      TW_FIELD(seqlen_q),
      TW_FIELD(seqlen_k),
      TW_FIELD(total_q),
      TW_FIELD(total_k),
      TW_FIELD(head_dim),
      TW_FIELD(head_dim_v),
      TW_FIELD(causal),
      TW_FIELD(window_left),
      TW_FIELD(window_right),
      TW_FIELD(scale),
      TW_FIELD(softcap),
      TW_FIELD(dropout_p),
      TW_FIELD(num_splits),
      TW_FIELD(num_threads),
      TW_FIELD(deterministic),
      TW_FIELD(k_new),
      TW_FIELD(v_new),
      TW_FIELD(seqlen_new),
      TW_FIELD(dout),
      TW_FIELD(dlse),
      TW_FIELD(dq),
      TW_FIELD(dk),
      TW_FIELD(dv),
      TW_FIELD(dmask),
      TW_FIELD(dsinks),
      TW_FIELD(block_table_stride),
      TW_FIELD(workspace),
      {},
  };
  return fields;
}

PyGetSetDef* softmax_fields() {
  using Struct = SoftmaxParams;
  static PyGetSetDef fields[] = {
      TW_FIELD(dtype),
      TW_FIELD(mask_dtype),
      TW_FIELD(log),
      TW_FIELD(x),
      TW_FIELD(mask),
      TW_FIELD(y),
      TW_FIELD(row_dims),
      TW_FIELD(row_shape),
      TW_FIELD(x_row_stride),
      TW_FIELD(y_row_stride),
      TW_FIELD(n),
      TW_FIELD(mask_row_stride),
      TW_FIELD(x_stride),
      TW_FIELD(y_stride),
      TW_FIELD(mask_stride),
      TW_FIELD(causal),
      TW_FIELD(causal_shift),
      TW_FIELD(scale),
      TW_FIELD(num_threads),
      TW_FIELD(workspace),
      TW_FIELD(dy),
      TW_FIELD(dx),
      TW_FIELD(dy_stride),
      TW_FIELD(dy_row_stride),
      {},
  };
  return fields;
}

PyGetSetDef* ffn_fields() {
  using Struct = FfnParams;
  static PyGetSetDef fields[] = {
      TW_FIELD(dtype), TW_FIELD(activation), TW_FIELD(x),           TW_FIELD(w_in),        TW_FIELD(w_out),
      TW_FIELD(b_in),  TW_FIELD(b_out),      TW_FIELD(out),         TW_FIELD(residual),    TW_FIELD(pre),
      TW_FIELD(rng),   TW_FIELD(dropout_p),  TW_FIELD(rows),        TW_FIELD(in_features), TW_FIELD(hidden),
      TW_FIELD(dout),  TW_FIELD(dx),         TW_FIELD(dw_in),       TW_FIELD(dw_out),      TW_FIELD(out_features),
      TW_FIELD(db_in), TW_FIELD(db_out),     TW_FIELD(num_threads), TW_FIELD(workspace),   {},
  };
  return fields;
}

inline void add_params(py::module_& m) {
  add_class<AttentionParams>(m, "AttentionParams", attention_fields());
  add_class<SoftmaxParams>(m, "SoftmaxParams", softmax_fields());
  add_class<FfnParams>(m, "FfnParams", ffn_fields());
}

}  // namespace
}  // namespace tilewright
