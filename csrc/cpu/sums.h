// Sums of many terms.
#pragma once

#include "integers.h"
#include "simd.h"

namespace tilewright {
namespace TW_ISA {

// The sum of term(j) over j in [0, count), lane by lane: groups of 16, each in four chains, and their sums in pairs, so that
// the rounding error grows with the logarithm of the number of terms. kInTurn: one chain after the other, for terms of which
// several at once would not fit the registers.
template <class V, bool kInTurn = false, class F>
TW_INLINE V sum_of_terms(int64_t count, const F& term) {
  constexpr int64_t kGroup = 16;
  const auto sum_group = [&](int64_t j, int64_t end) {
    if constexpr (kInTurn) {
      V chain[4];
      for (int c = 0; c < 4; ++c) {
        V sum = {};
        for (int64_t at = j + c; at < end; at += 4) sum += term(at);
        chain[c] = sum;
      }
      return (chain[0] + chain[1]) + (chain[2] + chain[3]);
    } else {
      V a = {}, b = {}, c = {}, d = {};
      for (; j + 4 <= end; j += 4) a += term(j), b += term(j + 1), c += term(j + 2), d += term(j + 3);
      if (j < end) a += term(j);
      if (j + 1 < end) b += term(j + 1);
      if (j + 2 < end) c += term(j + 2);
      return (a + b) + (c + d);
    }
  };
  if (count <= kGroup) return sum_group(0, count);
  V pairs[64];  // pairs[l]: of 2^l groups, where that bit of the number of groups is set
  int64_t groups = 0;
  for (int64_t j = 0; j < count; j += kGroup, ++groups) {
    V sum = sum_group(j, min64(count, j + kGroup));
    int level = 0;
    for (; (groups >> level & 1) != 0; ++level) sum = pairs[level] + sum;
    pairs[level] = sum;
  }
  V total = {};
  for (int level = 0; groups >> level != 0; ++level)
    if ((groups >> level & 1) != 0) total = pairs[level] + total;
  return total;
}

}  // namespace TW_ISA
}  // namespace tilewright
