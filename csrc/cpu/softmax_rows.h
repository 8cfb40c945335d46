// Which rows a softmax call has, and where each begins in its tensors.
#pragma once

#include "integers.h"
#include "simd.h"

namespace tilewright {
namespace TW_ISA {

// What the module re-checks for memory safety; the rest was validated in Python.
TW_INLINE bool valid_shape(const SoftmaxParams& p) {
  bool valid = p.row_dims >= 0 && p.row_dims <= kMaxRowDims && p.n >= 0 && p.num_threads >= 1;
  for (int d = 0; valid && d < p.row_dims; ++d) valid = p.row_shape[d] >= 0;
  return valid;
}

TW_INLINE int64_t row_count(const SoftmaxParams& p) {
  int64_t rows = 1;
  for (int d = 0; d < p.row_dims; ++d) rows *= p.row_shape[d];
  return rows;
}

// Where a row begins in each tensor; `third` is the mask, or dy in the backward. `index` counts along the last
// dimension.
struct RowAt {
  int64_t x, y, third, index;
};

// Steps through the rows in order.
class RowWalk {
 public:
  TW_MEMBER RowWalk(const SoftmaxParams& p, const int64_t* third_stride, int64_t row) : p_(p), third_(third_stride) {
    for (int d = p.row_dims - 1; d >= 0; --d) {
      move(d, row % p.row_shape[d]);
      row /= p.row_shape[d];
    }
  }
  TW_MEMBER RowAt at() const { return at_; }
  TW_MEMBER void next() {
    for (int d = p_.row_dims - 1; d >= 0; --d) {
      if (coordinate_[d] + 1 < p_.row_shape[d]) return move(d, 1);
      move(d, -coordinate_[d]);
    }
  }

 private:
  TW_MEMBER void move(int d, int64_t by) {
    coordinate_[d] += by;
    at_.x += by * p_.x_row_stride[d];
    at_.y += by * p_.y_row_stride[d];
    at_.third += by * third_[d];
    if (d == p_.row_dims - 1) at_.index += by;
  }
  const SoftmaxParams& p_;
  const int64_t* third_;
  int64_t coordinate_[kMaxRowDims] = {};
  RowAt at_{};
};

}  // namespace TW_ISA
}  // namespace tilewright
