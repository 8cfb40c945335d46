#include "isa.h"

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

#if defined(TW_HAVE_AVX2)
#include <cpuid.h>
#endif
#if defined(TW_HAVE_AMX)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace tilewright {
namespace {

bool always() { return true; }

#if defined(TW_HAVE_AVX2)
bool has_avx2() {
  // __builtin_cpu_supports also asks whether the operating system saves the registers. It does not know "f16c" in every
  // compiler, so that bit (leaf 1, ecx bit 29) is read directly.
  unsigned eax, ebx, ecx = 0, edx;
  __get_cpuid(1, &eax, &ebx, &ecx, &edx);
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && (ecx >> 29 & 1) != 0;
}
#endif

#if defined(TW_HAVE_AVX512)
bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}
#endif

#if defined(TW_HAVE_AMX)
// Leaf 7, edx bits 22 (bfloat16) and 24 (tiles); such processors convert to bfloat16 as well. Linux gives a process the
// tile registers when it asks for them (arch_prctl, ARCH_REQ_XCOMP_PERM, feature 18), and refuses where it cannot save
// them.
bool has_amx() {
  unsigned eax, ebx, ecx, edx = 0;
  if (!has_avx512() || !__builtin_cpu_supports("avx512bf16") || __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) == 0)
    return false;
  return (edx >> 22 & 1) != 0 && (edx >> 24 & 1) != 0 && syscall(SYS_arch_prctl, 0x1023, 18) == 0;
}
#endif

#define TW_TABLE(isa, supported) \
  {#isa,                         \
   supported,                    \
   isa::attention_forward,       \
   isa::attention_backward,      \
   isa::kvcache_attention,       \
   isa::softmax_forward,         \
   isa::softmax_backward,        \
   isa::ffn_forward,             \
   isa::ffn_backward}

#if defined(TW_HAVE_AMX) || defined(TW_HAVE_TILES)
// What is computed in tiles: bfloat16, but for attention that a backward pass follows. That computes the scores in
// vectors, and its probabilities need the sums of the very same.
bool in_tiles(const FfnParams& p) { return p.dtype == DType::kBFloat16; }
bool in_tiles(const AttentionParams& p) { return p.dtype == DType::kBFloat16 && p.row_stats.data == nullptr; }

template <class Params, Status (*tiles)(const Params&), Status (*base)(const Params&)>
Status tiles_or(const Params& p) {
  return in_tiles(p) ? tiles(p) : base(p);
}
#endif

// An instruction set with tiles: everything else is `base`'s.
#define TW_TILES_TABLE(isa, base, supported)                                   \
  {#isa,                                                                       \
   supported,                                                                  \
   tiles_or<AttentionParams, isa::attention_forward, base::attention_forward>, \
   base::attention_backward,                                                   \
   tiles_or<AttentionParams, isa::kvcache_attention, base::kvcache_attention>, \
   base::softmax_forward,                                                      \
   base::softmax_backward,                                                     \
   tiles_or<FfnParams, isa::ffn_forward, base::ffn_forward>,                   \
   tiles_or<FfnParams, isa::ffn_backward, base::ffn_backward>}

// Best first. "wide" and "tiles" come last: they are only ever asked for by name.
const CpuKernels kTables[] = {
#if defined(TW_HAVE_AMX)
    TW_TILES_TABLE(amx, avx512, has_amx),
#endif
#if defined(TW_HAVE_AVX512)
    TW_TABLE(avx512, has_avx512),
#endif
#if defined(TW_HAVE_AVX2)
    TW_TABLE(avx2, has_avx2),
#endif
    TW_TABLE(portable, always),
#if defined(TW_HAVE_WIDE)
    TW_TABLE(wide, has_avx2),
#endif
#if defined(TW_HAVE_TILES)
    TW_TILES_TABLE(tiles, avx2, has_avx2),
#endif
};

struct Supported {
  const CpuKernels* table[sizeof kTables / sizeof *kTables];
  int count = 0;
};

const Supported& supported() {
  static const Supported found = [] {
    Supported s;
    for (const CpuKernels& table : kTables)
      if (table.supported()) s.table[s.count++] = &table;
    return s;
  }();
  return found;
}

const CpuKernels& by_name(const char* name, const char* who) {
  std::string names;
  for (int i = 0; i < supported().count; ++i) {
    const CpuKernels& table = *supported().table[i];
    if (std::strcmp(table.name, name) == 0) return table;
    names += (i == 0 ? "" : ", ") + std::string(table.name);
  }
  throw std::runtime_error(std::string(who) + " '" + name + "' is not one this CPU and this build have: " + names);
}

std::atomic<const CpuKernels*> current{nullptr};

}  // namespace

const CpuKernels& cpu_kernels() {
  const CpuKernels* table = current.load(std::memory_order_relaxed);
  if (table == nullptr) {
    const char* name = std::getenv("TILEWRIGHT_CPU_ISA");
    table = name != nullptr && name[0] != '\0' ? &by_name(name, "TILEWRIGHT_CPU_ISA") : supported().table[0];
    current.store(table, std::memory_order_relaxed);
  }
  return *table;
}

int cpu_isa_count() { return supported().count; }
const CpuKernels& cpu_isa(int index) { return *supported().table[index]; }
void set_cpu_isa(const char* name) { current.store(&by_name(name, "the instruction set"), std::memory_order_relaxed); }

}  // namespace tilewright
