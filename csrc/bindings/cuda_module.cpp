// tilewright._cuda, and with TW_EMULATED tilewright._cuda_emulated: parameter structs, and a function for each kernel that
// takes one and a stream (an address; 0 is the default stream). The caller keeps the memory alive until the work is
// enqueued, and has made the tensors' device current.
#include <pybind11/pybind11.h>

#include <cstdlib>
#include <string>

#ifndef TW_EMULATED
#define TW_DECLARATIONS  // what of the headers a host compiler understands
#endif
#include "../cuda/attention.h"
#include "../cuda/ffn.h"
#include "../cuda/softmax.h"
#include "params.h"

#ifdef TW_EMULATED
#include "../emulation/describe.h"
#else
#include <pybind11/stl.h>

#include "cuda_devices.h"
#endif

namespace tilewright {
namespace {

std::string explain(int code) {
  if (code == gpu::kUnsupported) return "a dtype is not one that this kernel takes";
#ifdef TW_EMULATED
  return "code " + std::to_string(code);
#else
  return explain_cuda(code);
#endif
}

#ifdef TW_EMULATED
uint64_t g_seed = 0;
#endif

// workspace: bytes that the call needs, or null. describe: see emulation/describe.h.
template <class Params, class Describe>
void add_kernel(py::module_& m, const char* name, int (*kernel)(const Params&, gpu::Stream),
                int64_t (*workspace)(const Params&), [[maybe_unused]] Describe describe) {
  m.def((std::string(name) + "_workspace").c_str(), workspace, "Bytes that params.workspace has to have.");
  m.def(
      name,
      [=](py::object params, uintptr_t stream) {
        const Params& p = params.cast<const Params&>();
        int code = 0;
        {
          py::gil_scoped_release release;
#ifdef TW_EMULATED
          emulation::GlobalMemory memory;
          describe(p, workspace(p), memory);
          gpu::Session session{&memory, g_seed};
          gpu::session() = &session;
#endif
          code = kernel(p, reinterpret_cast<gpu::Stream>(stream));
        }
        if (code != 0)
          throw std::runtime_error(std::string(name) + ": " + explain(code) + "; " + std::string(py::repr(params)));
      },
      py::arg("params"), py::arg("stream") = 0);
}

#ifdef TW_EMULATED
#define TW_DESCRIBE(name) emulation::describe_##name
#else
#define TW_DESCRIBE(name) nullptr
#endif

}  // namespace

#ifdef TW_EMULATED
#define TW_MODULE _cuda_emulated
#else
#define TW_MODULE _cuda
#endif

PYBIND11_MODULE(TW_MODULE, m) {
  m.doc() = "CUDA C++ kernels over raw pointers. The public functions are in tilewright.";
  add_params(m);
  add_kernel(m, "attention_forward", &gpu::attention_forward, &gpu::attention_forward_workspace,
             TW_DESCRIBE(attention_forward));
  add_kernel(m, "attention_backward", &gpu::attention_backward, &gpu::attention_backward_workspace,
             TW_DESCRIBE(attention_backward));
  add_kernel(m, "kvcache_attention", &gpu::kvcache_attention, &gpu::kvcache_attention_workspace,
             TW_DESCRIBE(kvcache_attention));
  add_kernel(m, "ffn_forward", &gpu::ffn_forward, &gpu::ffn_forward_workspace, TW_DESCRIBE(ffn_forward));
  add_kernel(m, "ffn_backward", &gpu::ffn_backward, &gpu::ffn_backward_workspace, TW_DESCRIBE(ffn_backward));
  add_kernel(m, "softmax_forward", &gpu::softmax_forward, &gpu::softmax_workspace, TW_DESCRIBE(softmax_forward));
  add_kernel(m, "softmax_backward", &gpu::softmax_backward, &gpu::softmax_workspace, TW_DESCRIBE(softmax_backward));
#ifdef TW_EMULATED
  m.def("set_seed", [](uint64_t seed) { g_seed = seed; }, "Of the order in which blocks, warps and lanes run.");
  py::register_exception<emulation::KernelFault>(m, "KernelFault", PyExc_RuntimeError);
#else
  m.def("targets", &cuda_targets, "What it was built for, such as 'sm_80 sm_90a compute_80'.");
  m.def("cuda_version", &cuda_version, "Of the CUDA runtime in it.");
  m.def("serves", &cuda_serves, py::arg("major"), py::arg("minor"), "Whether it has code for a compute capability.");
  m.def("unusable", &cuda_unusable, "Why none of this machine's GPUs can run it, or None.");
#endif
}

}  // namespace tilewright
