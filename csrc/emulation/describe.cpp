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

}  // namespace

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
