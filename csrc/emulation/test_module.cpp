// _emulation_test: small kernels, right and wrong, for the tests of the emulator itself. Not installed.
#include <primitives/copy.h>
#include <primitives/launch.h>
#include <primitives/mma.h>
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>

namespace py = pybind11;

namespace tilewright::gpu {
namespace {

template <class T>
using Lanes = std::array<T, kWarpSize>;

// --- one primitive, executed by one warp on what each lane is given ---

template <class T>
struct MultiplyArguments {
  const Lanes<std::array<uint32_t, 4>>* a;
  const Lanes<std::array<uint32_t, 2>>* b;
  Lanes<std::array<float, 4>>* d;
};

template <class T, bool kTf32>
TW_KERNEL(32)
multiply_kernel(TW_KERNEL_ARGUMENT MultiplyArguments<T> p) {
  const auto lane = static_cast<size_t>(lane_index());
  float d[4];
  uint32_t a[4], b[2];
  for (size_t i = 0; i < 4; ++i) d[i] = (*p.d)[lane][i], a[i] = (*p.a)[lane][i];
  for (size_t i = 0; i < 2; ++i) b[i] = (*p.b)[lane][i];
  if constexpr (kTf32)
    multiply_16x8x8(d, a, b);
  else
    multiply_16x8x16<T>(d, a, b);
  for (size_t i = 0; i < 4; ++i) (*p.d)[lane][i] = d[i];
}

template <auto kernel, class Params>
void run(const Params& params, const Grid& grid = {}, int threads = 32, int shared_bytes = 0,
         emulation::GlobalMemory memory = {}, uint64_t seed = 0) {
  emulation::run(std::move(memory), {seed}, [&] { return launch<kernel>(grid, threads, shared_bytes, {}, params); });
}

template <class T, bool kTf32>
Lanes<std::array<float, 4>> multiply(const Lanes<std::array<uint32_t, 4>>& a, const Lanes<std::array<uint32_t, 2>>& b,
                                     Lanes<std::array<float, 4>> d) {
  run<multiply_kernel<T, kTf32>>(MultiplyArguments<T>{&a, &b, &d});
  return d;
}

struct LoadArguments {
  const std::array<uint16_t, 256>* memory;  // four matrices of 8 x 8
  const Lanes<int>* rows;                   // the row, of 8 elements, whose address each lane gives
  Lanes<std::array<uint32_t, 4>>* out;
  bool transposed;
};

TW_KERNEL(32) load_kernel(TW_KERNEL_ARGUMENT LoadArguments p) {
  const auto s = shared_memory<Half>();
  const auto lane = static_cast<size_t>(lane_index());
  for (size_t i = 0; i < 8; ++i) s.store(static_cast<int>(8 * lane + i), Half{(*p.memory)[8 * lane + i]});
  sync_warp();
  uint32_t out[4];
  if (p.transposed)
    load_matrices_transposed(out, s + 8 * (*p.rows)[lane]);
  else
    load_matrices(out, s + 8 * (*p.rows)[lane]);
  for (size_t i = 0; i < 4; ++i) (*p.out)[lane][i] = out[i];
}

struct ShuffleArguments {
  std::string kind;
  const Lanes<float>* values;
  int argument;
  uint32_t mask;
  Lanes<float>* out;
};

TW_KERNEL(32) shuffle_kernel(TW_KERNEL_ARGUMENT ShuffleArguments p) {
  const auto lane = static_cast<size_t>(lane_index());
  const float value = (*p.values)[lane];
  if ((p.mask >> lane & 1) == 0) return;
  (*p.out)[lane] = p.kind == "xor"    ? shuffle_xor(value, p.argument, p.mask)
                   : p.kind == "down" ? shuffle_down(value, p.argument, p.mask)
                                      : shuffle(value, p.argument, p.mask);
}

// --- a kernel that is right, and with each of these wrong in one way ---

struct Reverse {
  Global<const float> x;  // blocks of 64
  Global<float> y;
  std::string wrong;
};

// Reverses each block of 64 elements through shared memory, with copies in two groups.
TW_KERNEL(64) reverse_kernel(TW_KERNEL_ARGUMENT Reverse p) {
  const auto s = shared_memory<float>();
  const int i = thread_index(), n = 64;
  const int64_t base = int64_t{block_x()} * n;
  const bool issuer = i < n / 4;
  if (p.wrong == "early exit" && i == 40) return;
  if (issuer) {
    const int to = p.wrong == "misaligned copy" ? 4 * i + 1 : p.wrong == "copy past the end" ? 4 * i + 8 : 4 * i;
    copy_async<16>(s + to, p.x + (base + 4 * i));
    commit_copies();
  }
  if (p.wrong != "no wait") {
    if (p.wrong == "one group too few")
      wait_for_copies<1>();
    else
      wait_for_copies<0>();
  }
  if (p.wrong != "no barrier") {
    if (p.wrong == "barrier in a branch" && i >= 32)
      sync_block();
    else
      sync_block();
  }
  const int from = p.wrong == "off by one" ? n - i : n - 1 - i;
  float value = s.load(from);
  if (p.wrong == "shuffle in a branch" && i % 2 == 0) value += 0.0f * shuffle_xor(value, 1);
  if (p.wrong == "write after read") s.store(i, value);
  if (p.wrong == "barrier that half reach" && i < 32) sync_block();
  const int64_t to = p.wrong == "past the tensor" ? base + i + 1 : p.wrong == "same place" ? i : base + i;
  if (p.wrong == "writes an input") Global<float>{const_cast<float*>(p.x.p)}.store(base + i, value);
  if (p.wrong == "reads the output") value += p.y.load(base + i);
  if (p.wrong == "misaligned vector") {
    const auto v = p.x.load_vector<4>(base + (i % 4));
    value += 0.0f * v[0];
  }
  p.y.store(to, value);
}

// --- the runtime ---

struct Large {
  char bytes[4097];
};
TW_KERNEL(64) idle_kernel(TW_KERNEL_ARGUMENT int) {}
TW_KERNEL(64) large_kernel(TW_KERNEL_ARGUMENT Large) {}

// The functions as they are, and launch() over them.
void add_runtime(py::module_& m) {
  using Shape = std::array<unsigned, 3>;
  const auto dims = [](Shape s) { return dim3(s[0], s[1], s[2]); };
  m.def("get_last_error", [] { return static_cast<int>(cudaGetLastError()); });
  m.def("peek_at_last_error", [] { return static_cast<int>(cudaPeekAtLastError()); });
  m.def("set_sticky_error", [](int error) { emulation::set_sticky_error(static_cast<cudaError_t>(error)); });
  m.def("ask_for_shared_memory", [](int bytes) {
    return static_cast<int>(
        cudaFuncSetAttribute(function_of<idle_kernel>(), cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
  });
  // clear: as launch() does, so that what is wrong is reported and nothing is left behind.
  m.def(
      "launch_kernel",
      [=](Shape grid, Shape block, size_t shared_bytes, bool large, bool clear) {
        return emulation::run({}, {}, [&] {
          const void* function = large ? function_of<large_kernel>() : function_of<idle_kernel>();
          Large parameters{};
          void* arguments[] = {&parameters};
          const cudaError_t error =
              cudaLaunchKernel(function, dims(grid), dims(block), arguments, shared_bytes, nullptr);
          return static_cast<int>(clear ? answered(error) : error);
        });
      },
      py::arg("grid") = Shape{1, 1, 1}, py::arg("block") = Shape{32, 1, 1}, py::kw_only(), py::arg("shared_bytes") = 0,
      py::arg("large") = false, py::arg("clear") = true);
  m.def(
      "launch",
      [](std::array<int64_t, 3> grid, int threads, int shared_bytes, bool checking) {
        return emulation::run({}, {}, [&] {
          return launch<idle_kernel>({grid[0], grid[1], grid[2]}, threads, shared_bytes, {nullptr, checking}, 0);
        });
      },
      py::arg("grid"), py::arg("threads") = 32, py::arg("shared_bytes") = 0, py::arg("checking") = false);
  m.def("set_compiled", [](const std::string& name, int registers, int threads, int shared_bytes) {
    emulation::set_compiled({{name, {registers, threads, shared_bytes}}});
  });
  m.def("forget_compiled", [] { emulation::set_compiled({}); });
}

}  // namespace
}  // namespace tilewright::gpu

PYBIND11_MODULE(_emulation_test, m) {
  namespace gpu = tilewright::gpu;
  using tilewright::emulation::GlobalMemory;
  py::register_exception<tilewright::emulation::KernelFault>(m, "KernelFault", PyExc_RuntimeError);
  m.def("multiply_half", &gpu::multiply<tilewright::Half, false>);
  m.def("multiply_bfloat16", &gpu::multiply<tilewright::BFloat16, false>);
  m.def("multiply_tf32", &gpu::multiply<float, true>);
  m.def("load_matrices", [](const std::array<uint16_t, 256>& memory, const gpu::Lanes<int>& rows, bool transposed) {
    gpu::Lanes<std::array<uint32_t, 4>> out{};
    gpu::run<gpu::load_kernel>(gpu::LoadArguments{&memory, &rows, &out, transposed}, {}, 32, 512);
    return out;
  });
  m.def("shuffle", [](const std::string& kind, const gpu::Lanes<float>& values, int argument, uint32_t mask) {
    gpu::Lanes<float> out{};
    gpu::run<gpu::shuffle_kernel>(gpu::ShuffleArguments{kind, &values, argument, mask, &out});
    return out;
  });
  m.def("reverse", [](py::array_t<float> x, const std::string& wrong, uint64_t seed) {
    py::array_t<float> y(x.size());
    const int64_t sizes[1] = {x.size()}, strides[1] = {1};
    GlobalMemory memory;
    memory.add("x", x.data(), 4, sizes, strides, 1, GlobalMemory::Use::kInput);
    memory.add("y", y.data(), 4, sizes, strides, 1, GlobalMemory::Use::kOutput);
    gpu::run<gpu::reverse_kernel>(gpu::Reverse{{x.data()}, {y.mutable_data()}, wrong}, {x.size() / 64}, 64, 64 * 4,
                                  std::move(memory), seed);
    return y;
  });
  gpu::add_runtime(m);
}
