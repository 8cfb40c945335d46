#include "runtime.h"

#include <cxxabi.h>

#include <cstdlib>
#include <memory>
#include <regex>

#include "machine.h"

namespace tilewright::emulation {
namespace {

// The call in progress.
struct Session {
  GlobalMemory memory;
  Watch watch;
  std::optional<Report> refused;  // the last launch, or what was asked for it
};
thread_local Session* t_session = nullptr;

// An error is kept until somebody asks for it; a later one takes its place, and success does not. A sticky one stays.
thread_local cudaError_t t_last = cudaSuccess;
thread_local cudaError_t t_sticky = cudaSuccess;

std::unordered_map<std::string, Compiled>& compiled() {
  static std::unordered_map<std::string, Compiled> kernels;
  return kernels;
}

// What the runtime answers for `f`, and why in words.
cudaError_t refuse(const Function& f, cudaError_t error, Fault fault, const std::string& message) {
  if (t_session != nullptr)
    t_session->refused = Report{fault, f.name, std::nullopt, -1, 0, {}, message + " (" + cudaGetErrorName(error) + ")"};
  return t_last = error;
}

unsigned round_up(unsigned n, unsigned unit) { return (n + unit - 1) / unit * unit; }

// The first limit of a chip that a launch breaks.
cudaError_t check(const Function& f, dim3 grid, dim3 block, size_t shared_bytes) {
  const auto text = [](auto number) { return std::to_string(number); };
  const auto shape = [&](dim3 d) { return text(d.x) + " x " + text(d.y) + " x " + text(d.z); };
  const unsigned given[3] = {grid.x, grid.y, grid.z};
  for (int i = 0; i < 3; ++i)
    if (given[i] == 0 || given[i] > Chip::kGrid[i])
      return refuse(f, cudaErrorInvalidConfiguration, Fault::kLaunchGrid,
                    "a grid of " + shape(grid) + " blocks; its " + "xyz"[i] + " is 1 to " + text(Chip::kGrid[i]));
  const unsigned threads = block.x * block.y * block.z;
  if (threads == 0 || threads > Chip::kThreads || block.y != 1 || block.z != 1)
    return refuse(f, cudaErrorInvalidConfiguration, Fault::kLaunchThreads,
                  "a block of " + shape(block) + " threads; it has 1 to " + text(Chip::kThreads) + " along x");
  if (f.parameter_bytes > Chip::kParameterBytes)
    return refuse(f, cudaErrorInvalidValue, Fault::kLaunchParameters,
                  text(f.parameter_bytes) + " bytes of parameters; at most " + text(Chip::kParameterBytes));
  Compiled made;
  if (!compiled().empty()) {
    const auto found = compiled().find(f.name);
    if (found == compiled().end())
      return refuse(f, cudaErrorInvalidValue, Fault::kLaunchUnlisted,
                    "no table has it; python csrc/cuda/machine_code.py writes them");
    made = found->second;
    if (threads > static_cast<unsigned>(made.threads))
      return refuse(f, cudaErrorLaunchOutOfResources, Fault::kLaunchThreads,
                    "a block of " + text(threads) + " threads; it was compiled for at most " + text(made.threads));
    const unsigned each = round_up(static_cast<unsigned>(made.registers), Chip::kRegistersAtATime);
    const unsigned warps = round_up((threads + kWarpSize - 1) / kWarpSize, Chip::kWarpsAtATime);
    if (warps * kWarpSize * each > Chip::kRegisters)
      return refuse(f, cudaErrorLaunchOutOfResources, Fault::kLaunchRegisters,
                    text(made.registers) + " registers of " + text(threads) + " threads, which are given as " +
                        text(each) + " to each of " + text(warps) + " warps, " + text(warps * kWarpSize * each) +
                        "; a block has at most " + text(Chip::kRegisters));
  }
  const int asked_for = f.shared_bytes_asked_for;
  const int64_t limit = asked_for > 0 ? asked_for : Chip::kSharedBytes - made.shared_bytes;
  if (static_cast<int64_t>(shared_bytes) > limit)
    return refuse(f, cudaErrorInvalidValue, Fault::kLaunchShared,
                  text(shared_bytes) + " bytes of shared memory; at most " + text(limit) +
                      (asked_for > 0 ? ", which was asked for" : " where no more is asked for"));
  return cudaSuccess;
}

}  // namespace

void set_compiled(std::unordered_map<std::string, Compiled> kernels) { compiled() = std::move(kernels); }

void set_sticky_error(cudaError_t error) { t_last = t_sticky = error; }

// Of "ns::detail::Kernel<&(void ns::(anonymous namespace)::f_kernel<ns::Half, 8>(Args))>": f<Half, 8>. A kernel that is no
// template has neither parentheses nor arguments.
std::string short_name(const std::type_info& type) {
  int status = 0;
  const std::unique_ptr<char, void (*)(void*)> demangled(abi::__cxa_demangle(type.name(), nullptr, nullptr, &status),
                                                         &std::free);
  std::string name = demangled != nullptr ? demangled.get() : type.name();
  name = name.substr(name.find('&') + 1);
  if (name[0] == '(') name = name.substr(1);
  name = std::regex_replace(name, std::regex(R"(\(anonymous namespace\)::|\b\w+::|^void )"), "");
  name = std::regex_replace(name, std::regex(R"(^(\w+)_kernel)"), "$1");
  int depth = 0;
  for (size_t i = 0; i < name.size(); ++i) {
    depth += (name[i] == '<') - (name[i] == '>');
    if (depth < 0 || (depth == 0 && name[i] == '(')) return name.substr(0, i);
  }
  return name;
}

int run(GlobalMemory memory, const Watch& watch, const std::function<int()>& launcher) {
  Session session{std::move(memory), watch, std::nullopt};
  struct Current {
    explicit Current(Session* s) { t_session = s; }
    ~Current() { t_session = nullptr; }
  } current(&session);
  const cudaError_t before = t_last;
  const int code = launcher();
  // A launch that fails takes the place of an error from before. Besides that, both are none of a call's business.
  if (t_last != before && (code == 0 || t_last != cudaSuccess)) {
    const std::string kernel = session.refused ? session.refused->kernel : "a launcher";
    throw KernelFault(Report{Fault::kErrorLeft,
                             kernel,
                             std::nullopt,
                             -1,
                             0,
                             {},
                             std::string("the runtime's last error was ") + cudaGetErrorName(before) +
                                 " before the call, and after it is " + cudaGetErrorName(t_last)});
  }
  if (code > 0 && session.refused) throw KernelFault(*session.refused);
  return code;
}

}  // namespace tilewright::emulation

using namespace tilewright::emulation;

const char* cudaGetErrorName(cudaError_t error) {
  switch (error) {
    case cudaSuccess: return "cudaSuccess";
    case cudaErrorInvalidValue: return "cudaErrorInvalidValue";
    case cudaErrorInvalidConfiguration: return "cudaErrorInvalidConfiguration";
    case cudaErrorIllegalAddress: return "cudaErrorIllegalAddress";
    case cudaErrorLaunchOutOfResources: return "cudaErrorLaunchOutOfResources";
  }
  return "unrecognized error code";
}

cudaError_t cudaPeekAtLastError() { return t_last; }

cudaError_t cudaGetLastError() {
  const cudaError_t last = t_last;
  t_last = t_sticky;
  return last;
}

cudaError_t cudaFuncSetAttribute(const void* function, cudaFuncAttribute, int value) {
  if (t_sticky != cudaSuccess) return t_sticky;
  auto& f = *static_cast<Function*>(const_cast<void*>(function));
  const auto made = compiled().find(f.name);
  const int limit = Chip::kSharedBytesAskedFor - (made != compiled().end() ? made->second.shared_bytes : 0);
  if (value < 0 || value > limit)
    return refuse(
        f, cudaErrorInvalidValue, Fault::kLaunchShared,
        "asks for " + std::to_string(value) + " bytes of shared memory; a block has at most " + std::to_string(limit));
  f.shared_bytes_asked_for = value;
  return cudaSuccess;
}

cudaError_t cudaLaunchKernel(const void* function, dim3 grid, dim3 block, void** arguments, size_t shared_bytes,
                             cudaStream_t) {
  if (t_sticky != cudaSuccess) return t_sticky;
  const auto& f = *static_cast<const Function*>(function);
  if (const cudaError_t error = check(f, grid, block, shared_bytes)) return error;
  Session& s = *t_session;
  const Launch launch{f.name.c_str(),
                      {static_cast<int>(grid.x), static_cast<int>(grid.y), static_cast<int>(grid.z)},
                      static_cast<int>(block.x),
                      shared_bytes,
                      s.watch.seed++,
                      s.watch.history,
                      s.watch.blocks};
  machine().run(launch, s.memory, [&] { f.call(arguments); });
  return cudaSuccess;
}
