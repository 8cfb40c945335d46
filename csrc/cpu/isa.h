// The instruction sets that the CPU kernels are compiled for, and the table of entry points of each.
#pragma once

#include "../common/params.h"

namespace tilewright {

struct CpuKernels {
  const char* name;
  bool (*supported)();  // by the CPU we run on
  Status (*attention_forward)(const AttentionParams&);
  Status (*attention_backward)(const AttentionParams&);
  Status (*kvcache_attention)(const AttentionParams&);
  Status (*softmax_forward)(const SoftmaxParams&);
  Status (*softmax_backward)(const SoftmaxParams&);
  Status (*ffn_forward)(const FfnParams&);
  Status (*ffn_backward)(const FfnParams&);
};

#define TW_DECLARE_ISA(isa)                          \
  namespace isa {                                    \
  Status attention_forward(const AttentionParams&);  \
  Status attention_backward(const AttentionParams&); \
  Status kvcache_attention(const AttentionParams&);  \
  Status softmax_forward(const SoftmaxParams&);      \
  Status softmax_backward(const SoftmaxParams&);     \
  Status ffn_forward(const FfnParams&);              \
  Status ffn_backward(const FfnParams&);             \
  }
TW_DECLARE_ISA(portable)
TW_DECLARE_ISA(avx2)
TW_DECLARE_ISA(avx512)
TW_DECLARE_ISA(amx)  // bfloat16 in AMX's tiles, the rest as avx512: see tiles.h
// For tests, on an AVX2 machine: AVX-512's vector width, and the tiles in plain C++.
TW_DECLARE_ISA(wide)
TW_DECLARE_ISA(tiles)
#undef TW_DECLARE_ISA

// The table in use: the best for this CPU, unless TILEWRIGHT_CPU_ISA or set_cpu_isa names another. Throws
// std::runtime_error when TILEWRIGHT_CPU_ISA names one that is unknown or that the CPU lacks.
const CpuKernels& cpu_kernels();

// The tables of this build that this CPU can run, best first: count of them, and each by index.
int cpu_isa_count();
const CpuKernels& cpu_isa(int index);

// Throws std::runtime_error when the name is unknown or the CPU lacks it.
void set_cpu_isa(const char* name);

}  // namespace tilewright
