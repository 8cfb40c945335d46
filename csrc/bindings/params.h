// The structs of csrc/common/params.h as Python classes, for every module.
#pragma once

#include <pybind11/pybind11.h>

#include "../common/params.h"

namespace tilewright {

namespace py = pybind11;

void add_params(py::module_& m);

}  // namespace tilewright
