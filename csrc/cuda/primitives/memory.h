// Views of global and shared memory. An index counts elements; a vector access needs an address that is a multiple of
// its size.
#pragma once

#include <cstdint>
#include <type_traits>

#include "thread.h"

namespace tilewright::gpu {

template <class T, int N>
struct alignas(sizeof(T) * N) Vector {
  T v[N];
  TW_DEVICE T& operator[](int i) { return v[i]; }
  TW_DEVICE const T& operator[](int i) const { return v[i]; }
};

namespace detail {

// One access, however the type is built.
template <int kBytes>
struct WordOf;
template <>
struct WordOf<4> {
  using type = uint32_t;
};
template <>
struct WordOf<8> {
  using type = uint2;
};
template <>
struct WordOf<16> {
  using type = uint4;
};

template <class V, class T>
TW_DEVICE V load_vector(const T* p) {
  if constexpr (sizeof(V) < 4) {
    return *reinterpret_cast<const V*>(p);
  } else {
    union {
      typename WordOf<sizeof(V)>::type word;
      V vector;
    } both;
    both.word = *reinterpret_cast<const typename WordOf<sizeof(V)>::type*>(p);
    return both.vector;
  }
}

template <class V, class T>
TW_DEVICE void store_vector(T* p, const V& value) {
  if constexpr (sizeof(V) < 4) {
    *reinterpret_cast<V*>(p) = value;
  } else {
    union {
      typename WordOf<sizeof(V)>::type word;
      V vector;
    } both;
    both.vector = value;
    *reinterpret_cast<typename WordOf<sizeof(V)>::type*>(p) = both.word;
  }
}

}  // namespace detail

template <class T>
struct Global {
  T* p = nullptr;

  TW_DEVICE explicit operator bool() const { return p != nullptr; }
  TW_DEVICE Global operator+(int64_t elements) const { return {p + elements}; }
  TW_DEVICE auto load(int64_t i = 0, Here = {}) const { return p[i]; }
  TW_DEVICE void store(int64_t i, T value, Here = {}) const { p[i] = value; }
  template <int N>
  TW_DEVICE auto load_vector(int64_t i = 0, Here = {}) const {
    return detail::load_vector<Vector<std::remove_const_t<T>, N>>(p + i);
  }
  template <int N>
  TW_DEVICE void store_vector(int64_t i, const Vector<T, N>& value, Here = {}) const {
    detail::store_vector(p + i, value);
  }
};

template <class T>
struct Shared {
  T* p = nullptr;

  TW_DEVICE Shared operator+(int elements) const { return {p + elements}; }
  template <class U>
  TW_DEVICE Shared<U> as() const {
    return {reinterpret_cast<U*>(p)};
  }
  TW_DEVICE T load(int i = 0, Here = {}) const { return p[i]; }
  TW_DEVICE void store(int i, T value, Here = {}) const { p[i] = value; }
  template <int N>
  TW_DEVICE auto load_vector(int i = 0, Here = {}) const {
    return detail::load_vector<Vector<T, N>>(p + i);
  }
  template <int N>
  TW_DEVICE void store_vector(int i, const Vector<T, N>& value, Here = {}) const {
    detail::store_vector(p + i, value);
  }
};

// The block's shared memory, whose size the launch gives, from an offset on.
template <class T>
TW_DEVICE Shared<T> shared_memory(int byte_offset = 0) {
  extern __shared__ __align__(128) unsigned char memory[];
  return {reinterpret_cast<T*>(memory + byte_offset)};
}

}  // namespace tilewright::gpu
