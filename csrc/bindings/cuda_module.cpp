// tilewright._cuda, and with TW_EMULATED tilewright._cuda_emulated: parameter structs, and a function for each kernel that
// takes one and a stream (an address; 0 is the default stream). The caller keeps the memory alive until the work is
// enqueued, and has made the tensors' device current.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>
#include <string>
#include <tuple>
#include <unordered_map>

#ifndef TW_EMULATED
#define TW_DECLARATIONS  // what of the headers a host compiler understands
#endif
#include "../cuda/attention.h"
#include "../cuda/ffn.h"
#include "../cuda/softmax.h"
#include "params.h"

#ifdef TW_EMULATED
#include "../emulation/describe.h"
#include "../emulation/runtime.h"
#else
#include "cuda_devices.h"
#endif

namespace tilewright {
namespace {

std::string explain(int code) {
  switch (code) {
    case gpu::kUnsupported: return "a dtype is not one that this kernel takes";
    case gpu::kTooManyBlocks: return "it would take more blocks than a grid may have, 2^31 - 1";
    case gpu::kTooLong:
      return "its sizes are past what the kernels count: a sequence has at most 2^30 positions, and there are at most "
             "2^31 - 1 pairs of batch entry and head, and queries of the heads that share keys";
  }
#ifdef TW_EMULATED
  return cudaGetErrorName(static_cast<cudaError_t>(code));
#else
  return explain_cuda(code);
#endif
}

#ifdef TW_EMULATED
emulation::Watch g_watch;
#endif

// workspace: bytes that the call needs, or null. describe: see emulation/describe.h.
template <class Params, class Describe>
void add_kernel(py::module_& m, const char* name, int (*kernel)(const Params&, gpu::Stream),
                int64_t (*workspace)(const Params&), [[maybe_unused]] Describe describe) {
  m.def((std::string(name) + "_workspace").c_str(), workspace, "Bytes that params.workspace has to have.");
  m.def(
      name,
      [=](py::object params, [[maybe_unused]] uintptr_t stream) {
        const Params& p = params.cast<const Params&>();
        int code = 0;
        {
          py::gil_scoped_release release;
#ifdef TW_EMULATED
          emulation::GlobalMemory memory;
          describe(p, workspace(p), memory);
          code = emulation::run(std::move(memory), g_watch, [&] { return kernel(p, {}); });
#else
          code = kernel(p, {reinterpret_cast<cudaStream_t>(stream)});
#endif
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
  m.attr("MAX_SPLITS") = gpu::kMaxSplits;
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
  m.def(
      "last_error", [] { return static_cast<int>(cudaPeekAtLastError()); },
      "The last error of the runtime in this module, which stays there; 0 unless somebody left one.");
#ifdef TW_EMULATED
  m.def("set_seed", [](uint64_t seed) { g_watch.seed = seed; }, "Of the order in which blocks, warps and lanes run.");
  m.def(
      "watch",
      [](bool history, std::optional<int64_t> blocks) {
        const emulation::Watch whole;
        g_watch.history = history, g_watch.blocks = blocks.value_or(whole.blocks);
      },
      py::kw_only(), py::arg("history") = true, py::arg("blocks") = py::none(),
      "Without history unwritten memory and races between blocks are no faults, only accesses out of range are. Of a "
      "launch `blocks` run at most: the first, the last, and some that the seed draws.");
  m.def(
      "set_compiled",
      [](const std::unordered_map<std::string, std::tuple<int, int, int>>& kernels) {
        std::unordered_map<std::string, emulation::Compiled> all;
        for (const auto& [name, row] : kernels) all[name] = {std::get<0>(row), std::get<1>(row), std::get<2>(row)};
        emulation::set_compiled(std::move(all));
      },
      "What nvcc made of the kernels: by name registers, the most threads, and static shared memory. Launches are held "
      "against it; with an empty table they are not.");
  py::register_exception<emulation::KernelFault>(m, "KernelFault", PyExc_RuntimeError);
#else
  m.def("targets", &cuda_targets, "What it was built for, such as 'sm_80 sm_90a compute_80'.");
  m.def("cuda_version", &cuda_version, "Of the CUDA runtime in it.");
  m.def("serves", &cuda_serves, py::arg("major"), py::arg("minor"), "Whether it has code for a compute capability.");
  m.def("unusable", &cuda_unusable, "Why none of this machine's GPUs can run it, or None.");
#endif
}

}  // namespace tilewright
