// Tensor-core products (mma.sync, sm_80) and the loads that feed them. A warp executes each together; the emulated twin
// says which lane holds what.
#pragma once

#include "memory.h"
#include "number.h"

namespace tilewright::gpu {

// Four matrices of 8 x 8 elements of 16 bits: lane 8 n + i gives the address of row i of matrix n, a multiple of 16.
// Elements of 32 bits come as pairs of them: 8 x 4.
template <class T>
TW_DEVICE void load_matrices(uint32_t (&out)[4], Shared<T> row, Here = {}) {
  const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(row.p));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(address)
               : "memory");
}
template <class T>
TW_DEVICE void load_matrices_transposed(uint32_t (&out)[4], Shared<T> row, Here = {}) {
  const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(row.p));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(address)
               : "memory");
}

// d (16 x 8, float) += a (16 x 16) b (16 x 8), of Half or BFloat16.
template <class T>
TW_DEVICE void multiply_16x8x16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Here = {});
template <>
TW_DEVICE void multiply_16x8x16<Half>(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Here) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, "
      "%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
template <>
TW_DEVICE void multiply_16x8x16<BFloat16>(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Here) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, "
      "%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// d (16 x 8, float) += a (16 x 8) b (8 x 8), of TF32 in 32 bits each.
TW_DEVICE void multiply_16x8x8(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Here = {}) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, "
      "%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

}  // namespace tilewright::gpu
