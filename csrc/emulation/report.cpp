#include "report.h"

#include <cstring>

namespace tilewright::emulation {

const char* fault_name(Fault fault) {
  switch (fault) {
    case Fault::kGlobalOutOfRange: return "global-out-of-range";
    case Fault::kGlobalMisaligned: return "global-misaligned";
    case Fault::kGlobalUnwritten: return "global-unwritten";
    case Fault::kGlobalReadOnly: return "global-read-only";
    case Fault::kGlobalRace: return "global-race";
    case Fault::kSharedOutOfRange: return "shared-out-of-range";
    case Fault::kSharedMisaligned: return "shared-misaligned";
    case Fault::kSharedUnwritten: return "shared-unwritten";
    case Fault::kSharedRace: return "shared-race";
    case Fault::kCopyInFlight: return "copy-in-flight";
    case Fault::kDivergence: return "divergence";
    case Fault::kDeadlock: return "deadlock";
    case Fault::kLaunchGrid: return "launch-grid";
    case Fault::kLaunchThreads: return "launch-threads";
    case Fault::kLaunchRegisters: return "launch-registers";
    case Fault::kLaunchShared: return "launch-shared";
    case Fault::kLaunchParameters: return "launch-parameters";
    case Fault::kLaunchUnlisted: return "launch-unlisted";
    case Fault::kErrorLeft: return "error-left";
  }
  return "unknown";
}

std::string Report::text() const {
  std::string s = std::string(fault_name(fault)) + " in " + kernel;
  if (!block) return s + ": " + message;
  const char* slash = std::strrchr(here.file, '/');
  s += ", block (" + std::to_string(block->x) + ", " + std::to_string(block->y) + ", " + std::to_string(block->z) + ")";
  if (thread >= 0) s += ", thread " + std::to_string(thread);
  s += std::string(", ") + (slash != nullptr ? slash + 1 : here.file) + ":" + std::to_string(here.line);
  return s + ": " + message + " (seed " + std::to_string(seed) + ")";
}

}  // namespace tilewright::emulation
