// Tensor-core products and the loads that feed them, emulated after the PTX documentation's fragment layouts. See
// csrc/cuda/primitives/mma.h.
#pragma once

#include "memory.h"
#include "number.h"

namespace tilewright::gpu {
namespace detail {

template <bool kTransposed, int kMatrices>
struct LoadMatrix {
  const uint8_t* row;  // the address that this lane gives
  uint32_t* out;
  Here here;

  // Row i of matrix n is at the address of lane 8 n + i. Lane l receives elements (l / 4, 2 (l % 4) + {0, 1}) of each
  // matrix, of 8 x 8 elements of 16 bits; transposed, elements (2 (l % 4) + {0, 1}, l / 4).
  static void execute(emulation::Machine&, const emulation::Machine::Operands& operands) {
    for (int n = 0; n < kMatrices; ++n) {
      uint16_t matrix[8][8];
      for (int i = 0; i < 8; ++i)
        std::memcpy(matrix[i], static_cast<LoadMatrix*>(operands[static_cast<size_t>(8 * n + i)])->row, 16);
      for (int l = 0; l < kWarpSize; ++l) {
        const int i = l / 4, j = 2 * (l % 4);
        const uint32_t low = kTransposed ? matrix[j][i] : matrix[i][j];
        const uint32_t high = kTransposed ? matrix[j + 1][i] : matrix[i][j + 1];
        static_cast<LoadMatrix*>(operands[static_cast<size_t>(l)])->out[n] = low | high << 16;
      }
    }
  }
};

template <bool kTransposed, class T>
void load_matrices(uint32_t (&out)[4], Shared<T> row, Here here) {
  emulation::machine().check_shared(row.p, 16, false, here);
  LoadMatrix<kTransposed, 4> operand{reinterpret_cast<const uint8_t*>(row.p), out, here};
  emulation::machine().collective(kTransposed ? "load_matrices_transposed" : "load_matrices", kFullMask, &operand, here,
                                  &LoadMatrix<kTransposed, 4>::execute);
}

struct Multiply {
  float* d;
  const uint32_t* a;
  const uint32_t* b;
};

template <class T>
float half_of(uint32_t pair, int high) {
  return widen(T{static_cast<uint16_t>(high ? pair >> 16 : pair)});
}

// Rounded toward zero.
inline float cut(double x) {
  const float nearest = static_cast<float>(x);
  return std::fabs(double{nearest}) > std::fabs(x) ? float_of(bits_of(nearest) - 1) : nearest;
}

// d (16 x 8) += a (16 x kDepth) b (kDepth x 8). Products and their sum are exact here, and cut to float at the end, as Fasi
// et al. found ("Numerical behavior of NVIDIA tensor cores", 2021); the hardware's sum of products of very different size
// is cut too. Written so that a compiler makes vectors of d's rows.
template <int kDepth>
void multiply(const float (&a)[16][kDepth], const float (&b)[kDepth][8], const emulation::Machine::Operands& operands) {
  float* out[kWarpSize];
  for (int l = 0; l < kWarpSize; ++l) out[l] = static_cast<const Multiply*>(operands[static_cast<size_t>(l)])->d;
  // Registers 0 to 3 of d hold rows g, g, g + 8, g + 8 and columns 2 t, 2 t + 1, 2 t, 2 t + 1: g = lane / 4, t = lane % 4.
  for (int i = 0; i < 16; ++i) {
    double row[8];
    for (int j = 0; j < 8; ++j) row[j] = double{out[i % 8 * 4 + j / 2][i / 8 * 2 + j % 2]};
    for (int k = 0; k < kDepth; ++k)
      for (int j = 0; j < 8; ++j) row[j] += double{a[i][k]} * double{b[k][j]};
    for (int j = 0; j < 8; ++j) out[i % 8 * 4 + j / 2][i / 8 * 2 + j % 2] = cut(row[j]);
  }
}

// a: registers 0 to 3 hold rows g, g + 8, g, g + 8 and columns 2 t, 2 t, 2 t + 8, 2 t + 8, and the next column.
// b: registers 0, 1 hold rows 2 t, 2 t + 8, and the next row, of column g.
template <class T>
void execute_mma_16x8x16(emulation::Machine&, const emulation::Machine::Operands& operands) {
  float a[16][16], b[16][8];
  for (int l = 0; l < kWarpSize; ++l) {
    const auto& m = *static_cast<const Multiply*>(operands[static_cast<size_t>(l)]);
    const int g = l / 4, t = l % 4;
    for (int r = 0; r < 4; ++r)
      for (int h = 0; h < 2; ++h) a[g + 8 * (r % 2)][2 * t + 8 * (r / 2) + h] = half_of<T>(m.a[r], h);
    for (int r = 0; r < 2; ++r)
      for (int h = 0; h < 2; ++h) b[2 * t + 8 * r + h][g] = half_of<T>(m.b[r], h);
  }
  multiply<16>(a, b, operands);
}

// TF32: the lowest 13 bits are ignored.
// a: registers 0 to 3 hold (g, t), (g + 8, t), (g, t + 4), (g + 8, t + 4). b: registers 0, 1 hold (t, g), (t + 4, g).
inline void execute_mma_16x8x8(emulation::Machine&, const emulation::Machine::Operands& operands) {
  float a[16][8], b[8][8];
  const auto tf32 = [](uint32_t x) { return float_of(x & 0xFFFFE000u); };
  for (int l = 0; l < kWarpSize; ++l) {
    const auto& m = *static_cast<const Multiply*>(operands[static_cast<size_t>(l)]);
    const int g = l / 4, t = l % 4;
    for (int r = 0; r < 4; ++r) a[g + 8 * (r % 2)][t + 4 * (r / 2)] = tf32(m.a[r]);
    for (int r = 0; r < 2; ++r) b[t + 4 * r][g] = tf32(m.b[r]);
  }
  multiply<8>(a, b, operands);
}

}  // namespace detail

template <class T>
void load_matrices(uint32_t (&out)[4], Shared<T> row, Here here = Here::now()) {
  detail::load_matrices<false>(out, row, here);
}
template <class T>
void load_matrices_transposed(uint32_t (&out)[4], Shared<T> row, Here here = Here::now()) {
  detail::load_matrices<true>(out, row, here);
}

template <class T>
void multiply_16x8x16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Here here = Here::now()) {
  detail::Multiply operand{d, a, b};
  emulation::machine().collective("multiply_16x8x16", kFullMask, &operand, here, &detail::execute_mma_16x8x16<T>);
}
inline void multiply_16x8x8(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Here here = Here::now()) {
  detail::Multiply operand{d, a, b};
  emulation::machine().collective("multiply_16x8x8", kFullMask, &operand, here, &detail::execute_mma_16x8x8);
}

}  // namespace tilewright::gpu
