// The fields of a plain struct as attributes of its Python class.
//
// A hot call sets some thirty of them, so they are getset descriptors over the struct's members (about 50 ns each)
// instead of pybind11 properties (about 300 ns). Each field is named once, in the table of the class.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <string>
#include <type_traits>

#include "../common/params.h"

namespace tilewright {

namespace py = pybind11;

// Codec<T>: set answers 0, or -1 with a Python exception set; get makes a new reference.
template <class T, class = void>
struct Codec;

inline int refuse(const char* name, const char* accepted, PyObject* value) {
  PyErr_Format(PyExc_TypeError, "%s must be %s, got %.200R", name, accepted, value);
  return -1;
}

inline int set_integer(long long* out, PyObject* value, const char* name, long long low, long long high) {
  if (!PyLong_Check(value)) return refuse(name, "an int", value);
  int overflow = 0;
  *out = PyLong_AsLongLongAndOverflow(value, &overflow);
  if (overflow != 0 || *out < low || *out > high) {
    PyErr_Format(PyExc_ValueError, "%s=%R is out of range: accepted are %lld to %lld", name, value, low, high);
    return -1;
  }
  return 0;
}

template <class T>
constexpr long long kEnumLast = -1;
template <>
constexpr long long kEnumLast<DType> = static_cast<long long>(DType::kBool);
template <>
constexpr long long kEnumLast<Causal> = static_cast<long long>(Causal::kBottomRight);
template <>
constexpr long long kEnumLast<Activation> = static_cast<long long>(Activation::kSwiglu);

template <class T>
struct Codec<T, std::enable_if_t<std::is_enum_v<T>>> {
  static int set(T& field, PyObject* value, const char* name) {
    long long x;
    if (set_integer(&x, value, name, 0, kEnumLast<T>) != 0) return -1;
    field = static_cast<T>(x);
    return 0;
  }
  static PyObject* get(const T& field) { return PyLong_FromLong(static_cast<long>(field)); }
};

template <>
struct Codec<bool> {
  static int set(bool& field, PyObject* value, const char* name) {
    if (!PyBool_Check(value)) return refuse(name, "a bool", value);
    field = value == Py_True;
    return 0;
  }
  static PyObject* get(const bool& field) { return PyBool_FromLong(field); }
};

template <class T>
struct Codec<T, std::enable_if_t<std::is_integral_v<T>>> {
  static int set(T& field, PyObject* value, const char* name) {
    long long x;
    constexpr long long high = sizeof(T) == 4 ? INT32_MAX : INT64_MAX;
    if (set_integer(&x, value, name, -high - 1, high) != 0) return -1;
    field = static_cast<T>(x);
    return 0;
  }
  static PyObject* get(const T& field) { return PyLong_FromLongLong(field); }
};

template <>
struct Codec<double> {
  static int set(double& field, PyObject* value, const char* name) {
    const double x = PyFloat_AsDouble(value);
    if (x == -1.0 && PyErr_Occurred() != nullptr) {
      PyErr_Clear();
      return refuse(name, "a float", value);
    }
    field = x;
    return 0;
  }
  static PyObject* get(const double& field) { return PyFloat_FromDouble(field); }
};

// An address, as Tensor.data_ptr() gives it; 0 is null.
template <class T>
struct Codec<T*> {
  static int set(T*& field, PyObject* value, const char* name) {
    if (!PyLong_Check(value)) return refuse(name, "an address (int)", value);
    void* p = PyLong_AsVoidPtr(value);
    if (p == nullptr && PyErr_Occurred() != nullptr) return -1;
    field = static_cast<T*>(p);
    return 0;
  }
  static PyObject* get(T* const& field) { return PyLong_FromVoidPtr(const_cast<std::remove_const_t<T>*>(field)); }
};

// A tuple of at most N ints; the rest become 0.
template <int N>
int set_tuple(int64_t (&out)[N], PyObject* value, const char* name) {
  const Py_ssize_t size = PyTuple_Check(value) ? PyTuple_GET_SIZE(value) : N + 1;
  if (size > N) return refuse(name, ("a tuple of at most " + std::to_string(N) + " ints").c_str(), value);
  int64_t parsed[N] = {};
  for (Py_ssize_t i = 0; i < size; ++i)
    if (Codec<int64_t>::set(parsed[i], PyTuple_GET_ITEM(value, i), name) != 0) return -1;
  for (int i = 0; i < N; ++i) out[i] = parsed[i];
  return 0;
}
template <int N>
PyObject* get_tuple(const int64_t (&values)[N]) {
  py::tuple t(N);
  for (int i = 0; i < N; ++i) t[static_cast<size_t>(i)] = values[i];
  return t.release().ptr();
}

template <int N>
struct Codec<int64_t[N]> {
  static int set(int64_t (&field)[N], PyObject* value, const char* name) { return set_tuple(field, value, name); }
  static PyObject* get(const int64_t (&field)[N]) { return get_tuple(field); }
};

// (address, strides), or None.
template <>
struct Codec<View4> {
  static int set(View4& field, PyObject* value, const char* name) {
    View4 view;
    if (value != Py_None) {
      if (!PyTuple_Check(value) || PyTuple_GET_SIZE(value) != 2)
        return refuse(name, "(address, strides) or None", value);
      if (Codec<void*>::set(view.data, PyTuple_GET_ITEM(value, 0), name) != 0) return -1;
      if (set_tuple(view.stride, PyTuple_GET_ITEM(value, 1), name) != 0) return -1;
    }
    field = view;
    return 0;
  }
  static PyObject* get(const View4& field) {
    if (field.data == nullptr) Py_RETURN_NONE;
    return py::make_tuple(reinterpret_cast<uintptr_t>(field.data),
                          py::reinterpret_steal<py::tuple>(get_tuple(field.stride)))
        .release()
        .ptr();
  }
};

template <class Member>
struct MemberTraits;
template <class S, class T>
struct MemberTraits<T S::*> {
  using Struct = S;
  using Type = T;
};

template <class Struct>
Struct* struct_of(PyObject* self) {
  void* p = reinterpret_cast<py::detail::instance*>(self)->get_value_and_holder().value_ptr();
  if (p == nullptr) PyErr_SetString(PyExc_TypeError, "__init__ was not called");
  return static_cast<Struct*>(p);
}

template <auto kMember>
int set_field(PyObject* self, PyObject* value, void* name) {
  using Traits = MemberTraits<decltype(kMember)>;
  auto* s = struct_of<typename Traits::Struct>(self);
  if (s == nullptr) return -1;
  if (value == nullptr) {
    PyErr_Format(PyExc_AttributeError, "%s cannot be deleted", static_cast<const char*>(name));
    return -1;
  }
  return Codec<typename Traits::Type>::set(s->*kMember, value, static_cast<const char*>(name));
}

template <auto kMember>
PyObject* get_field(PyObject* self, void*) {
  using Traits = MemberTraits<decltype(kMember)>;
  auto* s = struct_of<typename Traits::Struct>(self);
  return s == nullptr ? nullptr : Codec<typename Traits::Type>::get(s->*kMember);
}

#define TW_FIELD(name) \
  PyGetSetDef { #name, get_field<&Struct::name>, set_field<&Struct::name>, nullptr, const_cast<char*>(#name) }

// Adds a default-constructible class with the fields of `table` (ended by a null name) and a repr of those that are
// set.
template <class Struct>
void add_class(py::module_& m, const char* name, PyGetSetDef* table) {
  // Local: each compiled module has classes of its own, under the same names.
  py::class_<Struct> cls(m, name, py::module_local());
  cls.def(py::init<>());
  for (PyGetSetDef* field = table; field->name != nullptr; ++field) {
    PyObject* descriptor = PyDescr_NewGetSet(reinterpret_cast<PyTypeObject*>(cls.ptr()), field);
    if (descriptor == nullptr) throw py::error_already_set();
    cls.attr(field->name) = py::reinterpret_steal<py::object>(descriptor);
  }
  cls.def("__repr__", [cls_name = std::string(name), table](py::object self) {
    const py::object fresh = py::type::of(self)();
    std::string text;
    for (PyGetSetDef* field = table; field->name != nullptr; ++field) {
      const py::object value = self.attr(field->name);
      if (value.equal(fresh.attr(field->name))) continue;
      text += (text.empty() ? "" : ", ") + std::string(field->name) + "=" + std::string(py::repr(value));
    }
    return cls_name + "(" + text + ")";
  });
}

}  // namespace tilewright
