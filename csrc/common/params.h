// What crosses from Python to a kernel: one plain struct per op, the same for every target (CPU, CUDA, emulated CUDA).
//
// Conventions
//   * Strides and sizes count elements, never bytes, and are 64-bit: a tensor may pass 2^31 elements.
//   * A null `data` means "not given" for an input and "not wanted" for an output.
//   * A broadcast dimension has stride 0.
//   * Structs are plain data; whoever fills them keeps the memory alive until the kernel has run.
#pragma once

#include <cstdint>

namespace tilewright {

enum class DType : int32_t { kFloat32 = 0, kFloat16 = 1, kBFloat16 = 2, kFloat64 = 3, kBool = 4 };

enum class Causal : int32_t { kNone = 0, kTopLeft = 1, kBottomRight = 2 };

enum class Activation : int32_t {
  kRelu = 0,
  kRelu2 = 1,
  kGelu = 2,
  kGeluTanh = 3,
  kSilu = 4,
  // Gated: act(gate) * up, where w_in stacks [gate; up] along its rows.
  kReglu = 5,
  kGeglu = 6,
  kGegluTanh = 7,
  kSwiglu = 8,
};

constexpr bool is_gated(Activation a) { return static_cast<int32_t>(a) >= static_cast<int32_t>(Activation::kReglu); }

// What a launcher answers. Python already validated the call; these guard memory safety only.
enum class Status : int32_t {
  kOk = 0,
  kUnsupportedDType = 1,
  kBadShape = 2,        // a size is negative, or head_dim is outside [1, 256]
  kBadLengths = 3,      // cu_seqlens or cache_seqlens disagree with the tensors
  kPageOutOfRange = 4,  // block_table names a page that does not exist
  kOutOfMemory = 5,
};

constexpr int kMaxHeadDim = 256;
constexpr int kMaxRowDims = 7;

// A strided view of up to four dimensions.
struct View4 {
  void* data = nullptr;
  int64_t stride[4] = {0, 0, 0, 0};
};

// attention, varlen_attention and kvcache_attention: the same kernels over differently addressed sequences.
//   plain    q (B, H, Sq, D), k (B, Hkv, Sk, D), v (B, Hkv, Sk, Dv), out (B, H, Sq, Dv), lse (B, H, Sq)
//   varlen   cu_seqlens_* set: stride[0] is unused, sequence b is rows [cu[b], cu[b+1]) of dimension 2;
//            lse (-, H, total_q)
//   kvcache  seqlens_k set: sequence b attends to its first seqlens_k[b] + seqlen_new keys; with block_table, key j of
//            sequence b is row j % page_size of page block_table[b, j / page_size], and stride[0] of k and v steps
//            between pages
// The last stride of q, k, v, out and their gradients is 1.
struct AttentionParams {
  DType dtype = DType::kFloat32;        // of q, k, v, out and their gradients
  DType mask_dtype = DType::kFloat32;   // kBool (nonzero attends), kFloat32, or dtype
  DType sinks_dtype = DType::kFloat32;  // kFloat32 or dtype

  View4 q, k, v, out;
  View4 lse;           // strides (b, h, s); float, or double when dtype is kFloat64
  View4 row_stats;     // (b, h, s, 2): the row's maximum and 1 / sum, from forward to backward
  View4 mask;          // (B, H, Sq, Sk) broadcast by stride 0; indexed by position within the sequence
  View4 alibi_slopes;  // float, strides (b, h)
  View4 sinks;         // stride (h)

  const int64_t* rng = nullptr;           // {seed, offset} of the dropout mask (see philox.h)
  const int32_t* cu_seqlens_q = nullptr;  // (B + 1)
  const int32_t* cu_seqlens_k = nullptr;  // (B + 1)
  const int32_t* seqlens_k = nullptr;     // (B), before new keys are appended
  const int32_t* block_table = nullptr;   // (B, *), row stride below
  int64_t block_table_stride = 0;
  int64_t page_size = 0;
  int64_t num_pages = 0;

  int64_t batch = 0, heads = 0, heads_kv = 0;
  int64_t seqlen_q = 0, seqlen_k = 0;  // the longest, for varlen; the capacity, for kvcache
  int64_t total_q = 0, total_k = 0;    // rows of the packed tensors, for varlen
  int64_t head_dim = 0, head_dim_v = 0;

  Causal causal = Causal::kNone;
  int64_t window_left = -1, window_right = -1;  // -1: no limit
  double scale = 1.0, softcap = 0.0, dropout_p = 0.0;

  int32_t num_splits = 0;  // decode: parts of the key range worked on side by side; 0 chooses
  int32_t num_threads = 1;
  bool deterministic = false;

  // kvcache: new keys and values (B, Hkv, S_new, D), written at positions [seqlens_k[b], seqlens_k[b] + seqlen_new) of
  // the caches before attending.
  View4 k_new, v_new;
  int64_t seqlen_new = 0;

  void* workspace = nullptr;  // CUDA: of as many bytes as the launcher's <name>_workspace() says

  // Backward. dlse joins the gradient as if lse were an output. dmask (strides as mask's broadcast: 0 where the mask
  // is broadcast) and dsinks are accumulated in float, or double when dtype is kFloat64, and arrive zeroed.
  View4 dout, dlse, dq, dk, dv, dmask, dsinks;
};

// softmax and log_softmax over rows of n elements, y = softmax(scale * x + mask).
// Rows are enumerated by up to kMaxRowDims outer dimensions, each with its own stride per tensor.
struct SoftmaxParams {
  DType dtype = DType::kFloat32;
  DType mask_dtype = DType::kFloat32;  // kBool, kFloat32, or dtype
  bool log = false;

  const void* x = nullptr;
  const void* mask = nullptr;
  void* y = nullptr;

  int32_t row_dims = 0;
  int64_t row_shape[kMaxRowDims] = {};
  int64_t x_row_stride[kMaxRowDims] = {}, y_row_stride[kMaxRowDims] = {}, mask_row_stride[kMaxRowDims] = {};
  int64_t n = 0, x_stride = 1, y_stride = 1, mask_stride = 1;

  // Causal: column j of row i (its index along the last row dimension) is kept when j <= i + causal_shift.
  bool causal = false;
  int64_t causal_shift = 0;
  double scale = 1.0;
  int32_t num_threads = 1;
  void* workspace = nullptr;  // CUDA: of as many bytes as softmax_workspace() says

  // Backward reads y and dy and writes dx, which has x's strides; the mask is not needed again.
  const void* dy = nullptr;
  void* dx = nullptr;
  int64_t dy_row_stride[kMaxRowDims] = {};
  int64_t dy_stride = 1;
};

// out = residual + dropout(act(x @ w_in^T + b_in) @ w_out^T + b_out)
//   x (M, C), w_in (F or 2F, C), w_out (E, F), out and residual (M, E);
//   pre = x @ w_in^T + b_in: (M, F or 2F), contiguous
struct FfnParams {
  DType dtype = DType::kFloat32;  // of every tensor
  Activation activation = Activation::kGeluTanh;

  View4 x, w_in, w_out, residual, out;  // strides (row, column)
  const void* b_in = nullptr;           // contiguous
  const void* b_out = nullptr;
  void* pre = nullptr;  // forward: written when not null; backward: read when not null, recomputed otherwise
  const int64_t* rng = nullptr;
  double dropout_p = 0.0;
  int64_t rows = 0, in_features = 0, hidden = 0, out_features = 0;  // M, C, F, E
  int32_t num_threads = 1;
  void* workspace = nullptr;  // CUDA: of as many bytes as ffn_forward_workspace() or ffn_backward_workspace() says

  // Backward. The gradients are contiguous unless their view says otherwise; null is not computed.
  View4 dout, dx, dw_in, dw_out;
  void* db_in = nullptr;
  void* db_out = nullptr;
};

}  // namespace tilewright
