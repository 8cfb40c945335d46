// What went wrong in an emulated kernel, and where.
#pragma once

#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>

namespace tilewright::emulation {

// A place in the source. As the default value of a parameter, `Here here = Here::now()`, it is the caller's.
struct Here {
  const char* file = "";
  int line = 0;
  static constexpr Here now(const char* file = __builtin_FILE(), int line = __builtin_LINE()) { return {file, line}; }
};

struct Dim3 {
  int x = 1, y = 1, z = 1;
};

// The kinds of fault; their names are in fault_name(), and what each means in docs/emulator.md.
enum class Fault {
  kGlobalOutOfRange,
  kGlobalMisaligned,
  kGlobalUnwritten,
  kGlobalReadOnly,
  kGlobalRace,
  kSharedOutOfRange,
  kSharedMisaligned,
  kSharedUnwritten,
  kSharedRace,
  kCopyInFlight,
  kDivergence,
  kDeadlock,
  kLaunchGrid,
  kLaunchThreads,
  kLaunchRegisters,
  kLaunchShared,
  kLaunchParameters,
  kLaunchUnlisted,
  kErrorLeft,
};

const char* fault_name(Fault fault);

struct Report {
  Fault fault;
  std::string kernel;
  std::optional<Dim3> block;  // none of a launch that was not made
  int thread = -1;
  uint64_t seed = 0;
  Here here;
  std::string message;

  // "shared-race in softmax<Half>, block (0, 3, 0), thread 17, softmax.cu:88: ..."
  std::string text() const;
};

// Thrown for the first fault of a launch.
class KernelFault : public std::runtime_error {
 public:
  explicit KernelFault(Report r) : std::runtime_error(r.text()), report(std::move(r)) {}
  Report report;
};

}  // namespace tilewright::emulation
