// One block at a time of a CUDA grid: its threads are fibers, its warps run in an order drawn from a seed.
//
// A thread runs until it has to wait for others: at the block's barrier, or at an instruction of its warp. The lane that
// completes a warp's instruction executes it for all. So between two such points a thread runs alone, and whether that
// hid a race is decided by the records in shared.h and global.h, not by luck.
#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <functional>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "fiber.h"
#include "global.h"
#include "report.h"
#include "shared.h"

namespace tilewright::emulation {

constexpr int kWarpSize = 32;
constexpr uint32_t kFullMask = 0xFFFFFFFFu;

struct Launch {
  const char* kernel = "";
  Dim3 grid;
  int threads = 0;
  size_t shared_bytes = 0;
  uint64_t seed = 0;
  bool history = true;  // as in Watch, runtime.h
  int64_t blocks = std::numeric_limits<int64_t>::max();
};

struct Thread;

// An instruction that the lanes named in a mask execute together.
struct Collective {
  const char* name = nullptr;  // null: none is being gathered
  uint32_t mask = 0, arrived = 0;
  Here here;
  std::array<void*, kWarpSize> operands{};  // each lane's, where it waits
};

struct Warp {
  std::array<Thread*, kWarpSize> lanes{};
  uint32_t live = 0;  // lanes that exist and have not ended
  Collective pending;
  uint32_t synchronisations = 0;
};

// A copy whose bytes have not landed.
struct Copy {
  uint8_t* to;
  const uint8_t* from;  // null: zeros
  uint32_t bytes, copied;
  Here here;
};

struct Thread {
  enum class State { kReady, kAtBarrier, kInCollective, kEnded };
  int index = 0, lane = 0;
  Warp* warp = nullptr;
  Context context = nullptr;
  State state = State::kEnded;
  Here here;                             // where it waits
  std::deque<std::vector<Copy>> groups;  // of asynchronous copies, oldest first; the last is not yet committed
};

class Machine {
 public:
  // Runs the blocks of a launch. Throws KernelFault.
  void run(const Launch& launch, GlobalMemory& memory, const std::function<void()>& kernel);

  // --- for the primitives, which run in a thread ---
  Thread& thread() { return *current_; }
  const Launch& launch() const { return *launch_; }
  Dim3 block() const { return block_; }
  GlobalMemory& memory() { return *memory_; }
  SharedMemory& shared() { return shared_; }
  Moment now() const { return {barriers_, current_->warp->synchronisations}; }
  uint32_t block_number() const { return block_number_; }

  // Ends the launch.
  [[noreturn]] void fail(Fault fault, Here here, const std::string& message);

  // Returns when all threads of the block have come here.
  void barrier(Here here);
  // Returns when all lanes in `mask` have come here and `execute` has been called with their operands, those of other
  // lanes being null.
  using Operands = std::array<void*, kWarpSize>;
  void collective(const char* name, uint32_t mask, void* operand, Here here,
                  void (*execute)(Machine&, const Operands&));
  void synchronise_warp(uint32_t mask, Here here);

  // --- memory ---
  // Checks and records an access; `bytes` is also the alignment that it needs.
  void check_global(const void* p, size_t bytes, bool write, Here here);
  void check_shared(const void* p, size_t bytes, bool write, Here here);
  void copy_async(void* to, const void* from, uint32_t bytes, uint32_t copied, Here here);
  void commit_copies();
  void wait_for_copies(size_t groups_left, Here here);

 private:
  static void enter(void* machine);
  std::vector<int64_t> draw_blocks();
  void run_block();
  void yield(Thread::State state, Here here);
  void resume(Thread& thread);
  [[noreturn]] void report_deadlock();

  const Launch* launch_ = nullptr;
  const std::function<void()>* kernel_ = nullptr;
  GlobalMemory* memory_ = nullptr;
  SharedMemory shared_;
  std::vector<std::unique_ptr<Stack>> stacks_;
  std::vector<Thread> threads_;
  std::vector<Warp> warps_;
  std::mt19937_64 random_;
  Dim3 block_;
  uint32_t block_number_ = 0, barriers_ = 0;
  int live_ = 0, at_barrier_ = 0;
  Thread* current_ = nullptr;
  Context scheduler_ = nullptr;
  std::unique_ptr<Report> fault_;
};

// The machine of this thread of the operating system.
Machine& machine();

}  // namespace tilewright::emulation
