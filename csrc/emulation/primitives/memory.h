// Global and shared memory, emulated: every access is checked. See csrc/cuda/primitives/memory.h.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "thread.h"

namespace tilewright::gpu {

template <class T, int N>
struct alignas(sizeof(T) * N) Vector {
  T v[N];
  T& operator[](int i) { return v[i]; }
  const T& operator[](int i) const { return v[i]; }
};

namespace detail {

template <bool kGlobal, class T>
std::remove_const_t<T> load(const T* p, Here here) {
  auto& m = emulation::machine();
  kGlobal ? m.check_global(p, sizeof(T), false, here) : m.check_shared(p, sizeof(T), false, here);
  T value;
  std::memcpy(&value, p, sizeof(T));
  return value;
}

template <bool kGlobal, class T>
void store(T* p, const T& value, Here here) {
  auto& m = emulation::machine();
  kGlobal ? m.check_global(p, sizeof(T), true, here) : m.check_shared(p, sizeof(T), true, here);
  std::memcpy(static_cast<void*>(p), &value, sizeof(T));
}

}  // namespace detail

template <class T>
struct Global {
  T* p = nullptr;

  explicit operator bool() const { return p != nullptr; }
  Global operator+(int64_t elements) const { return {p + elements}; }
  std::remove_const_t<T> load(int64_t i = 0, Here here = Here::now()) const { return detail::load<true>(p + i, here); }
  void store(int64_t i, T value, Here here = Here::now()) const { detail::store<true>(p + i, value, here); }
  template <int N>
  auto load_vector(int64_t i = 0, Here here = Here::now()) const {
    return detail::load<true>(reinterpret_cast<const Vector<std::remove_const_t<T>, N>*>(p + i), here);
  }
  template <int N>
  void store_vector(int64_t i, const Vector<T, N>& value, Here here = Here::now()) const {
    detail::store<true>(reinterpret_cast<Vector<T, N>*>(p + i), value, here);
  }
};

template <class T>
struct Shared {
  T* p = nullptr;

  Shared operator+(int elements) const { return {p + elements}; }
  template <class U>
  Shared<U> as() const {
    return {reinterpret_cast<U*>(p)};
  }
  T load(int i = 0, Here here = Here::now()) const { return detail::load<false>(p + i, here); }
  void store(int i, T value, Here here = Here::now()) const { detail::store<false>(p + i, value, here); }
  template <int N>
  Vector<T, N> load_vector(int i = 0, Here here = Here::now()) const {
    return detail::load<false>(reinterpret_cast<const Vector<T, N>*>(p + i), here);
  }
  template <int N>
  void store_vector(int i, const Vector<T, N>& value, Here here = Here::now()) const {
    detail::store<false>(reinterpret_cast<Vector<T, N>*>(p + i), value, here);
  }
};

template <class T>
Shared<T> shared_memory(int byte_offset = 0) {
  return {reinterpret_cast<T*>(emulation::machine().shared().data() + byte_offset)};
}

}  // namespace tilewright::gpu
