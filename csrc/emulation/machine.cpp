#include "machine.h"

#include <algorithm>
#include <cstring>
#include <numeric>
#include <set>

namespace tilewright::emulation {
namespace {
// Kernels keep their accumulators on it: 256 floats and as many more in temporaries.
constexpr size_t kStackBytes = 96 * 1024;

std::string at(Here here) {
  const char* slash = std::strrchr(here.file, '/');
  return std::string(slash != nullptr ? slash + 1 : here.file) + ":" + std::to_string(here.line);
}

bool same(Here a, Here b) { return a.line == b.line && std::strcmp(a.file, b.file) == 0; }
}  // namespace

Machine& machine() {
  thread_local Machine instance;
  return instance;
}

void Machine::run(const Launch& launch, GlobalMemory& memory, const std::function<void()>& kernel) {
  launch_ = &launch, memory_ = &memory, kernel_ = &kernel;
  fault_.reset();
  memory.begin_launch(launch.history);
  random_.seed(launch.seed);
  while (stacks_.size() < static_cast<size_t>(launch.threads)) stacks_.push_back(std::make_unique<Stack>(kStackBytes));
  for (const int64_t number : draw_blocks()) {
    block_number_ = static_cast<uint32_t>(number);
    block_ = {static_cast<int>(number % launch.grid.x), static_cast<int>(number / launch.grid.x % launch.grid.y),
              static_cast<int>(number / launch.grid.x / launch.grid.y)};
    run_block();
  }
}

// Their numbers, in the order in which they run.
std::vector<int64_t> Machine::draw_blocks() {
  const int64_t count = int64_t{launch_->grid.x} * launch_->grid.y * launch_->grid.z;
  std::vector<int64_t> order;
  if (count <= launch_->blocks) {
    order.resize(static_cast<size_t>(count));
    std::iota(order.begin(), order.end(), int64_t{0});
  } else {
    std::set<int64_t> drawn{0, count - 1};
    while (static_cast<int64_t>(drawn.size()) < launch_->blocks)
      drawn.insert(static_cast<int64_t>(random_() % static_cast<uint64_t>(count)));
    order.assign(drawn.begin(), drawn.end());
  }
  std::shuffle(order.begin(), order.end(), random_);
  return order;
}

void Machine::run_block() {
  const int count = launch_->threads;
  shared_.reset(launch_->shared_bytes);
  threads_.assign(static_cast<size_t>(count), Thread{});
  warps_.assign(static_cast<size_t>((count + kWarpSize - 1) / kWarpSize), Warp{});
  barriers_ = 0, at_barrier_ = 0, live_ = count;
  for (int i = 0; i < count; ++i) {
    Thread& t = threads_[static_cast<size_t>(i)];
    Warp& w = warps_[static_cast<size_t>(i / kWarpSize)];
    t.index = i, t.lane = i % kWarpSize, t.warp = &w, t.state = Thread::State::kReady;
    t.groups.emplace_back();
    t.context = stacks_[static_cast<size_t>(i)]->start(&Machine::enter, this);
    w.lanes[static_cast<size_t>(t.lane)] = &t;
    w.live |= 1u << t.lane;
  }
  std::vector<Warp*> runnable;
  while (live_ > 0) {
    runnable.clear();
    for (Warp& w : warps_)
      if (std::any_of(w.lanes.begin(), w.lanes.end(),
                      [](const Thread* t) { return t != nullptr && t->state == Thread::State::kReady; }))
        runnable.push_back(&w);
    if (runnable.empty()) report_deadlock();
    Warp& w = *runnable[random_() % runnable.size()];
    // Lanes in turn from a random one on, forwards or backwards.
    const int first = static_cast<int>(random_() % kWarpSize), step = random_() % 2 == 0 ? 1 : kWarpSize - 1;
    for (int i = 0; i < kWarpSize; ++i) {
      Thread* t = w.lanes[static_cast<size_t>((first + i * step) % kWarpSize)];
      if (t != nullptr && t->state == Thread::State::kReady) resume(*t);
    }
  }
}

void Machine::enter(void* self) {
  auto& m = *static_cast<Machine*>(self);
  (*m.kernel_)();
  Thread& t = *m.current_;
  t.warp->live &= ~(1u << t.lane);
  --m.live_;
  for (const Thread& other : m.threads_)
    if (other.state == Thread::State::kAtBarrier)
      m.fail(Fault::kDivergence, other.here,
             "this thread ended, while thread " + std::to_string(other.index) + " of its block waits at the barrier");
  m.yield(Thread::State::kEnded, t.here);
}

void Machine::resume(Thread& t) {
  current_ = &t;
  switch_context(&scheduler_, t.context);
  current_ = nullptr;
  if (fault_ != nullptr) throw KernelFault(std::move(*fault_));
}

void Machine::yield(Thread::State state, Here here) {
  Thread& t = *current_;
  t.state = state, t.here = here;
  switch_context(&t.context, scheduler_);
}

void Machine::fail(Fault fault, Here here, const std::string& message) {
  fault_ =
      std::make_unique<Report>(Report{fault, launch_->kernel, block_, current_->index, launch_->seed, here, message});
  // The other fibers are left as they are: what they hold is on their stacks, which the next block starts over.
  Context abandoned;
  switch_context(&abandoned, scheduler_);
  __builtin_unreachable();
}

void Machine::report_deadlock() {
  std::string waiting;
  Here here;
  for (const Warp& w : warps_) {
    if (w.pending.name != nullptr) {
      const uint32_t missing = w.pending.mask & ~w.pending.arrived;
      const int lane = __builtin_ctz(missing);
      const Thread* t = w.lanes[static_cast<size_t>(lane)];
      waiting +=
          (waiting.empty() ? "" : "; ") + std::string("warp ") + std::to_string(&w - warps_.data()) + " waits in " +
          w.pending.name + " (" + at(w.pending.here) + ") for lane " + std::to_string(lane) +
          (t == nullptr || t->state == Thread::State::kEnded ? ", which has ended" : ", which waits at " + at(t->here));
      here = w.pending.here;
    }
  }
  for (const Thread& t : threads_)
    if (t.state == Thread::State::kAtBarrier) {
      waiting += (waiting.empty() ? "" : "; ") + std::to_string(at_barrier_) + " of " + std::to_string(live_) +
                 " threads wait at the barrier (" + at(t.here) + ")";
      if (here.line == 0) here = t.here;
      break;
    }
  throw KernelFault(Report{Fault::kDeadlock, launch_->kernel, block_, -1, launch_->seed, here, waiting});
}

void Machine::barrier(Here here) {
  Thread& me = *current_;
  if (live_ < launch_->threads)
    fail(Fault::kDivergence, here,
         "a barrier of the whole block, of which " + std::to_string(launch_->threads - live_) + " threads have ended");
  if (at_barrier_ > 0)
    for (const Thread& t : threads_)
      if (t.state == Thread::State::kAtBarrier && !same(t.here, here))
        fail(Fault::kDivergence, here,
             "thread " + std::to_string(t.index) + " waits at another barrier, " + at(t.here));
  if (++at_barrier_ < live_) {
    yield(Thread::State::kAtBarrier, here);
    return;
  }
  at_barrier_ = 0;
  ++barriers_;
  for (Thread& t : threads_)
    if (t.state == Thread::State::kAtBarrier) t.state = Thread::State::kReady;
  me.here = here;
}

void Machine::collective(const char* name, uint32_t mask, void* operand, Here here,
                         void (*execute)(Machine&, const Operands&)) {
  Thread& me = *current_;
  Warp& w = *me.warp;
  Collective& c = w.pending;
  const uint32_t bit = 1u << me.lane;
  if ((mask & bit) == 0)
    fail(Fault::kDivergence, here,
         std::string(name) + " by lane " + std::to_string(me.lane) + ", which its mask leaves out");
  if ((mask & ~w.live) != 0)
    fail(Fault::kDivergence, here,
         std::string(name) + " of lane " + std::to_string(__builtin_ctz(mask & ~w.live)) +
             ", which has ended or does not exist");
  if (c.name == nullptr) {
    c.name = name, c.mask = mask, c.arrived = 0, c.here = here;
    c.operands.fill(nullptr);
  } else if (c.mask != mask || std::strcmp(c.name, name) != 0 || !same(c.here, here)) {
    fail(Fault::kDivergence, here,
         std::string(name) + ", while other lanes of this warp wait in " + c.name + " (" + at(c.here) + ")");
  }
  c.arrived |= bit;
  c.operands[static_cast<size_t>(me.lane)] = operand;
  if (c.arrived != c.mask) {
    yield(Thread::State::kInCollective, here);
    return;
  }
  execute(*this, c.operands);
  c.name = nullptr;
  for (Thread* t : w.lanes)
    if (t != nullptr && t->state == Thread::State::kInCollective) t->state = Thread::State::kReady;
}

void Machine::synchronise_warp(uint32_t mask, Here here) {
  collective("sync_warp", mask, nullptr, here, [](Machine& m, const Operands&) {
    // A partial mask orders its own lanes only, which is not recorded: the rest of the warp would seem ordered too.
    Warp& w = *m.current_->warp;
    if (w.pending.mask == w.live) ++w.synchronisations;
  });
}

void Machine::check_global(const void* p, size_t bytes, bool write, Here here) {
  const auto address = reinterpret_cast<uintptr_t>(p);
  const char* verb = write ? "writes " : "reads ";
  Range* r = memory_->find(address);
  if (r == nullptr || !r->contains(address, bytes))
    fail(Fault::kGlobalOutOfRange, here, verb + std::to_string(bytes) + " bytes at " + memory_->describe(address));
  if (address % bytes != 0)
    fail(
        Fault::kGlobalMisaligned, here,
        verb + std::to_string(bytes) + " bytes at an address that is no multiple of it, " + memory_->describe(address));
  if (!r->writable) {
    if (write) fail(Fault::kGlobalReadOnly, here, "writes to an input, " + memory_->describe(address));
    return;
  }
  if (r->writers.empty()) return;
  const uint32_t me = block_number_ + 1;
  uint32_t* writers = r->writers.data() + (address - r->begin);
  for (size_t i = 0; i < bytes; ++i) {
    if (writers[i] != 0 && writers[i] != me && writers[i] != Range::kEarlier)
      fail(Fault::kGlobalRace, here,
           verb + memory_->describe(address + i) + ", which block number " + std::to_string(writers[i] - 1) +
               " wrote in the same launch");
    if (write)
      writers[i] = me;
    else if (writers[i] == 0 && !r->written)
      fail(Fault::kGlobalUnwritten, here, "reads " + memory_->describe(address + i) + ", which nothing wrote");
  }
}

void Machine::check_shared(const void* p, size_t bytes, bool write, Here here) {
  const char* verb = write ? "writes " : "reads ";
  const auto offset = static_cast<const uint8_t*>(p) - shared_.data();
  if (!shared_.contains(p, bytes))
    fail(Fault::kSharedOutOfRange, here,
         verb + std::to_string(bytes) + " bytes at shared byte " + std::to_string(offset) + " of " +
             std::to_string(shared_.size()));
  if (offset % static_cast<ptrdiff_t>(bytes) != 0)
    fail(Fault::kSharedMisaligned, here,
         verb + std::to_string(bytes) + " bytes at shared byte " + std::to_string(offset) + ", no multiple of it");
  const auto wrong =
      write ? shared_.write(p, bytes, current_->index, now(), here) : shared_.read(p, bytes, current_->index, now());
  if (wrong) fail(wrong->first, here, wrong->second);
}

void Machine::copy_async(void* to, const void* from, uint32_t bytes, uint32_t copied, Here here) {
  const auto offset = static_cast<const uint8_t*>(to) - shared_.data();
  if (!shared_.contains(to, bytes))
    fail(Fault::kSharedOutOfRange, here,
         "copies " + std::to_string(bytes) + " bytes to shared byte " + std::to_string(offset) + " of " +
             std::to_string(shared_.size()));
  if (offset % bytes != 0)
    fail(Fault::kSharedMisaligned, here,
         "copies " + std::to_string(bytes) + " bytes to shared byte " + std::to_string(offset) + ", no multiple of it");
  if (copied > 0) {
    // All of an element of `bytes` has to be aligned, and what is copied of it inside.
    if (reinterpret_cast<uintptr_t>(from) % bytes != 0)
      fail(Fault::kGlobalMisaligned, here,
           "copies " + std::to_string(bytes) + " bytes from an address that is no " + "multiple of it, " +
               memory_->describe(reinterpret_cast<uintptr_t>(from)));
    for (uint32_t i = 0; i < copied; i += 2) check_global(static_cast<const uint8_t*>(from) + i, 2, false, here);
  }
  if (const auto wrong = shared_.begin_copy(to, bytes, current_->index, now(), here))
    fail(wrong->first, here, wrong->second);
  current_->groups.back().push_back(
      {static_cast<uint8_t*>(to), static_cast<const uint8_t*>(from), bytes, copied, here});
}

void Machine::commit_copies() { current_->groups.emplace_back(); }

void Machine::wait_for_copies(size_t groups_left, Here here) {
  auto& groups = current_->groups;
  while (groups.size() - 1 > groups_left) {
    for (const Copy& c : groups.front()) {
      if (const auto wrong = shared_.end_copy(c.to, c.bytes, current_->index, now(), here))
        fail(wrong->first, here, wrong->second);
      std::memcpy(c.to, c.from, c.copied);
      std::memset(c.to + c.copied, 0, c.bytes - c.copied);
    }
    groups.pop_front();
  }
}

}  // namespace tilewright::emulation
