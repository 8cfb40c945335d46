// Attention over checked parameters; attention_forward.cpp has the algorithm. Shared with kvcache_attention.cpp.
#pragma once

#include "attention_softmax.h"

namespace tilewright {
namespace TW_ISA {

// Keys per tile. A multiple of 4 (Philox yields four keys at a time) and of the register tile's rows.
constexpr int64_t kKeyTile = 96;

// `splits` parts of the key range are attended to separately and merged by their sums; 0 chooses.
Status attend(const AttentionParams& p, int64_t splits);

}  // namespace TW_ISA
}  // namespace tilewright
