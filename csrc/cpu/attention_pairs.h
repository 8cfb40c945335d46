// Sums over pairs of a query and a key where something is not finite.
//
// A product of matrices multiplies the weight of an excluded pair, 0, with what the key or the query holds, and 0 times an
// infinity is NaN. So where a sum is not finite, or what goes into it is not, and pairs may be excluded, it is taken pair
// by pair: one of weight 0 has no part in it, whatever it holds.
#pragma once

#include "attention_call.h"

namespace tilewright {
namespace TW_ISA {

// rows [count][stride], of which `dim` numbers each.
template <class A>
TW_NOINLINE bool all_finite(const A* rows, int64_t stride, int64_t count, int64_t dim) {
  constexpr int L = Simd<A>::lanes;
  Vec<A> seen{};
  for (int64_t i = 0; i < count; ++i, rows += stride) {
    int64_t d = 0;
    for (; d + L <= dim; d += L) {
      const Vec<A> x = load(rows + d);
      seen += x - x;
    }
    if (d < dim) {
      const Vec<A> x = load_partial(rows + d, static_cast<int>(dim - d));
      seen += x - x;
    }
  }
  return horizontal_sum(seen) == A{0};
}

// sums [dim][lanes] += the rows [n][stride] of keys, each by its weights [n][ld] of `count` queries.
template <class A>
TW_NOINLINE void add_keys(const A* rows, int64_t stride, int64_t n, int64_t dim, const A* weights, int64_t ld,
                          int count, A* sums) {
  for (int64_t j = 0; j < n; ++j)
    for (int r = 0; r < count; ++r) {
      const A weight = weights[j * ld + r];
      if (weight == A{0}) continue;
      for (int64_t d = 0; d < dim; ++d) sums[d * kStripLanes<A> + r] += weight * rows[j * stride + d];
    }
}

// sums [n][width] of keys += the rows [count][stride] of queries, each by its weights [n][ld].
template <class A>
TW_NOINLINE void add_queries(const A* rows, int64_t stride, int64_t count, int64_t dim, const A* weights, int64_t ld,
                             int64_t n, A* sums, int64_t width) {
  for (int64_t j = 0; j < n; ++j)
    for (int64_t r = 0; r < count; ++r) {
      const A weight = weights[j * ld + r];
      if (weight == A{0}) continue;
      for (int64_t d = 0; d < dim; ++d) sums[j * width + d] += weight * rows[r * stride + d];
    }
}

}  // namespace TW_ISA
}  // namespace tilewright
