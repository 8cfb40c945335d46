// The instruction sets that the CPU kernels are compiled for, and the table of entry points of each.
#pragma once

#include "../common/params.h"

namespace tilewright {

struct CpuKernels {
  const char* name;
  Status (*attention_forward)(const AttentionParams&);
  Status (*attention_backward)(const AttentionParams&);
  Status (*kvcache_attention)(const AttentionParams&);
  Status (*softmax_forward)(const SoftmaxParams&);
  Status (*softmax_backward)(const SoftmaxParams&);
  Status (*ffn_forward)(const FfnParams&);
  Status (*ffn_backward)(const FfnParams&);
};

#define TW_DECLARE_ISA(isa)                               \
  namespace isa {                                         \
  Status attention_forward(const AttentionParams&);       \
  Status attention_backward(const AttentionParams&);      \
  Status kvcache_attention(const AttentionParams&);       \
  Status softmax_forward(const SoftmaxParams&);           \
  Status softmax_backward(const SoftmaxParams&);          \
  Status ffn_forward(const FfnParams&);                   \
  Status ffn_backward(const FfnParams&);                  \
  }
TW_DECLARE_ISA(portable)
TW_DECLARE_ISA(avx2)
TW_DECLARE_ISA(avx512)
#undef TW_DECLARE_ISA

// The best table for this CPU, or the one that TILEWRIGHT_CPU_ISA names. Throws std::runtime_error when that name is
// unknown or the CPU lacks it.
const CpuKernels& cpu_kernels();

// The best instruction set this CPU and this build have, by name.
const char* best_cpu_isa();

}  // namespace tilewright
