// Reading what a params struct points to.
#pragma once

#include "../common/params.h"

#ifndef TW_DECLARATIONS
#include <primitives/memory.h>
#include <primitives/number.h>
#endif

namespace tilewright::gpu {

#ifndef TW_DECLARATIONS
template <class T>
TW_DEVICE Global<const T> global(const void* p) {
  return {static_cast<const T*>(p)};
}
template <class T>
TW_DEVICE Global<T> global(void* p) {
  return {static_cast<T*>(p)};
}

// Of a tensor of float32 or, with any other dtype, of T.
template <class T>
TW_DEVICE float load_float(const void* p, DType dtype, int64_t i) {
  return dtype == DType::kFloat32 ? global<float>(p).load(i) : widen(global<T>(p).load(i));
}

// A score and what a float mask adds: -inf excludes, whatever the score is, NaN as well.
TW_DEVICE float masked(float x, float added) { return added == -kInfinity ? added : x + added; }
#endif

}  // namespace tilewright::gpu
