// tilewright._cpu: parameter structs with settable fields, and one function per kernel. Pointers come in as integers;
// whoever sets them keeps the memory alive during the call. Inputs were validated in Python.
#include <pybind11/pybind11.h>

#include <stdexcept>
#include <string>

#include "../common/dtype.h"
#include "../common/philox.h"
#include "../cpu/isa.h"
#include "../cpu/scratch.h"
#include "params.h"

namespace tilewright {
namespace {

const char* explain(Status status) {
  switch (status) {
    case Status::kOk: return "";
    case Status::kUnsupportedDType: return "a dtype is not one that this kernel takes";
    case Status::kBadShape: return "a size is negative or out of the accepted range";
    case Status::kBadLengths: return "cu_seqlens or cache_seqlens disagree with the tensors";
    case Status::kPageOutOfRange: return "block_table names a page that does not exist";
    case Status::kOutOfMemory: return "its working memory could not be allocated";
  }
  return "unknown status";
}

template <class Params>
void add_kernel(py::module_& m, const char* name, Status (*CpuKernels::*entry)(const Params&)) {
  m.def(name, [name, entry](py::object params) {
    const Params& p = params.cast<const Params&>();
    const CpuKernels& kernels = cpu_kernels();
    Status status;
    {
      py::gil_scoped_release release;
      status = (kernels.*entry)(p);
    }
    if (status == Status::kOk) return;
    const std::string message =
        std::string(name) + " (" + kernels.name + "): " + explain(status) + "; " + std::string(py::repr(params));
    if (status == Status::kOutOfMemory) {
      PyErr_SetString(PyExc_MemoryError, message.c_str());
      throw py::error_already_set();
    }
    throw py::value_error(message);
  });
}

#define TW_STRING_(x) #x
#define TW_STRING(x) TW_STRING_(x)
#if defined(__clang__)
constexpr const char* kCompiler = "clang " __clang_version__;
#else
constexpr const char* kCompiler =
    "gcc " TW_STRING(__GNUC__) "." TW_STRING(__GNUC_MINOR__) "." TW_STRING(__GNUC_PATCHLEVEL__);
#endif

}  // namespace

PYBIND11_MODULE(_cpu, m) {
  m.doc() = "C++ kernels for CPUs over raw pointers. The public functions are in tilewright.";
  add_params(m);

  add_kernel(m, "attention_forward", &CpuKernels::attention_forward);
  add_kernel(m, "attention_backward", &CpuKernels::attention_backward);
  add_kernel(m, "kvcache_attention", &CpuKernels::kvcache_attention);
  add_kernel(m, "softmax_forward", &CpuKernels::softmax_forward);
  add_kernel(m, "softmax_backward", &CpuKernels::softmax_backward);
  add_kernel(m, "ffn_forward", &CpuKernels::ffn_forward);
  add_kernel(m, "ffn_backward", &CpuKernels::ffn_backward);

  m.attr("compiler") = kCompiler;
  m.def("isa", [] { return cpu_kernels().name; }, "The instruction set whose kernels are in use.");
  m.def("best_isa", [] { return cpu_isa(0).name; }, "The best instruction set that this CPU and this build have.");
  m.def(
      "available_isas",
      [] {
        py::list names;
        for (int i = 0; i < cpu_isa_count(); ++i) names.append(cpu_isa(i).name);
        return names;
      },
      "The instruction sets that this CPU and this build have, best first.");

  // For tests.
  m.def("set_isa", [](const std::string& name) {
    try {
      set_cpu_isa(name.c_str());
    } catch (const std::runtime_error& error) {
      throw py::value_error(error.what());
    }
  });
  m.def("poison_scratch", &poison_scratch, "Fill new working memory with NaN.");
  m.def("philox", [](uint64_t seed, uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3) {
    const Philox4 r = philox(seed, c0, c1, c2, c3);
    return py::make_tuple(r.lane[0], r.lane[1], r.lane[2], r.lane[3]);
  });
  m.def("half_to_float", [](uint16_t bits) { return to_float(Half{bits}); });
  m.def("bfloat16_to_float", [](uint16_t bits) { return to_float(BFloat16{bits}); });
  m.def("float_to_half", [](float x) { return to_half(x).bits; });
  m.def("float_to_bfloat16", [](float x) { return to_bfloat16(x).bits; });
  cpu_kernels();  // an unusable TILEWRIGHT_CPU_ISA is an error of the import, before any work
}

}  // namespace tilewright
