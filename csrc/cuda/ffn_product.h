// A product of the feed-forward block as its kernels see it: A (m, k) times the transpose of B (n, k), and what becomes
// of the result.
#pragma once

#include <primitives/launch.h>
#include <primitives/memory.h>
#include <primitives/number.h>

#include "../common/dtype.h"
#include "../common/params.h"
#include "access.h"

namespace tilewright::gpu {

// Element (i, k) is at i * stride + k * depth_stride. columns: kernels take it depth by depth, since stride is 1.
// wide: what they take begins at multiples of 16 bytes; else they take it element by element, whatever the strides.
struct FfnOperand {
  const void* data = nullptr;
  int64_t stride = 0, depth_stride = 0;
  bool columns = false, wide = false;

  static FfnOperand of(const void* data, int64_t stride, int64_t depth_stride, bool columns, int64_t size) {
    const int64_t inner = columns ? stride : depth_stride, outer = columns ? depth_stride : stride;
    return {data, stride, depth_stride, columns,
            inner == 1 && outer * size % 16 == 0 && reinterpret_cast<uintptr_t>(data) % 16 == 0};
  }
  // The same where tiles have a second half, `rows` further, which has to begin there as well.
  FfnOperand with_half_at(int64_t rows, int64_t size) const {
    FfnOperand r = *this;
    r.wide = wide && rows * stride * size % 16 == 0;
    return r;
  }
};

// What an epilogue reads or writes; null data is an absent one. wide: four neighbours of a row are one access.
struct FfnMatrix {
  void* data = nullptr;
  int64_t row_stride = 0, column_stride = 1;
  bool wide = false;

  static FfnMatrix of(void* data, int64_t row_stride, int64_t column_stride, int64_t size) {
    return {data, row_stride, column_stride,
            column_stride == 1 && row_stride % 4 == 0 && reinterpret_cast<uintptr_t>(data) % (4 * size) == 0};
  }

  template <class T>
  TW_DEVICE Vector<float, 4> load(int64_t row, int64_t column, int count) const {
    const Global<const T> from =
        global<T>(static_cast<const void*>(data)) + (row * row_stride + column * column_stride);
    Vector<float, 4> x{};
    if (wide && count == 4) {
      const auto values = from.template load_vector<4>();
      TW_UNROLL for (int e = 0; e < 4; ++e) x[e] = widen(values[e]);
    } else {
      TW_UNROLL for (int e = 0; e < 4; ++e) if (e < count) x[e] = widen(from.load(e * column_stride));
    }
    return x;
  }
  template <class T>
  TW_DEVICE void store(int64_t row, int64_t column, int count, const Vector<float, 4>& x) const {
    const Global<T> to = global<T>(data) + (row * row_stride + column * column_stride);
    if (wide && count == 4) {
      Vector<T, 4> values;
      TW_UNROLL for (int e = 0; e < 4; ++e) values[e] = narrow<T>(x[e]);
      to.template store_vector<4>(0, values);
    } else {
      TW_UNROLL for (int e = 0; e < 4; ++e) if (e < count) to.store(e * column_stride, narrow<T>(x[e]));
    }
  }
};

enum class Finish : int32_t {
  kOut,     // out = residual + dropout(result + bias)
  kHidden,  // pre = result + bias, hidden = act(pre); gated, B is paired: n rows of the gate, then n of the up projection
  kGradient,  // the result is hidden's gradient: dpre, hidden again and the sums of dpre's columns, from it and pre
};

struct FfnProduct {
  FfnOperand a, b;
  int64_t m = 0, n = 0, k = 0;
  Finish finish = Finish::kOut;
  Activation activation = Activation::kRelu;
  bool gated = false;   // the activation
  bool paired = false;  // B has the up projection's rows as well: a block computes both of the same columns
  const void* bias = nullptr;
  FfnMatrix out, residual;
  const int64_t* rng = nullptr;
  double dropout_p = 0.0;
  FfnMatrix hidden, pre[2], dpre[2];  // of the gate, of the up projection
  float* sums = nullptr;              // (row blocks, n or 2 n)
};

// Rows and columns of the tiles that a product is cut into: large ones need fewer reads, small ones leave no
// multiprocessor without work. An A100 has 108.
inline int ffn_tile_size(const FfnProduct& p) {
  const int64_t columns = p.paired ? 64 : 128;
  return (p.m + 127) / 128 * ((p.n + columns - 1) / columns) >= 108 ? 128 : 64;
}
// So many rows at most are multiplied without tiles of A.
constexpr int kFewRows = 16;

// The block's own products. w as B: its rows, or its columns, are the result's columns.
inline FfnOperand ffn_rows(const View4& x, int64_t size) {
  return FfnOperand::of(x.data, x.stride[0], x.stride[1], false, size);
}
inline FfnOperand ffn_weights(const View4& w, bool of_rows, int64_t size) {
  const int64_t stride = w.stride[of_rows ? 0 : 1], depth_stride = w.stride[of_rows ? 1 : 0];
  return FfnOperand::of(w.data, stride, depth_stride, stride == 1 && depth_stride != 1, size);
}
inline int64_t ffn_inner(const FfnParams& p) { return is_gated(p.activation) ? 2 * p.hidden : p.hidden; }

// Both halves of pre, or of a matrix like it.
inline void ffn_set_halves(FfnMatrix (&halves)[2], void* data, const FfnParams& p, int64_t size) {
  if (data == nullptr) return;
  halves[0] = FfnMatrix::of(data, ffn_inner(p), 1, size);
  if (is_gated(p.activation))
    halves[1] = FfnMatrix::of(static_cast<char*>(data) + p.hidden * size, ffn_inner(p), 1, size);
}

// pre = x w_in^T + b_in and hidden = act(pre), each where it is not null.
inline FfnProduct ffn_hidden_product(const FfnParams& p, void* pre, void* hidden, int64_t size) {
  FfnProduct r;
  r.a = ffn_rows(p.x, size), r.b = ffn_weights(p.w_in, true, size);
  r.m = p.rows, r.n = p.hidden, r.k = p.in_features;
  r.finish = Finish::kHidden, r.activation = p.activation, r.gated = r.paired = is_gated(p.activation);
  if (r.paired) r.b = r.b.with_half_at(p.hidden, size);
  r.bias = p.b_in;
  ffn_set_halves(r.pre, pre, p, size);
  if (hidden != nullptr) r.hidden = FfnMatrix::of(hidden, p.hidden, 1, size);
  return r;
}

// Each answers 0 or an error. The first chooses; the second takes at most kFewRows rows, and a B that is not in columns.
int ffn_product(const FfnProduct& p, DType dtype, Stream stream);
int ffn_product_of_few_rows(const FfnProduct& p, DType dtype, Stream stream);

}  // namespace tilewright::gpu
