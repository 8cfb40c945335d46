#include "parallel.h"

#include <dlfcn.h>

#include <atomic>
#include <thread>
#include <vector>

namespace tilewright {
namespace {

struct Region {
  int64_t tasks;
  TaskFn fn;
  void* context;
  std::atomic<int64_t> next_task{0};
  std::atomic<int> next_thread{0};
};

void work(void* data) {
  Region& region = *static_cast<Region*>(data);
  const int thread = region.next_thread.fetch_add(1, std::memory_order_relaxed);
  for (;;) {
    const int64_t task = region.next_task.fetch_add(1, std::memory_order_relaxed);
    if (task >= region.tasks) return;
    region.fn(region.context, task, thread);
  }
}

// void GOMP_parallel(void (*fn)(void*), void* data, unsigned num_threads, unsigned flags): libgomp's entry point for a
// parallel region, which LLVM's libomp exports too.
using GompParallel = void (*)(void (*)(void*), void*, unsigned, unsigned);

GompParallel find_openmp() { return reinterpret_cast<GompParallel>(dlsym(RTLD_DEFAULT, "GOMP_parallel")); }

}  // namespace

void run_tasks(int64_t tasks, int num_threads, TaskFn fn, void* context) {
  if (tasks <= 0) return;
  if (num_threads > tasks) num_threads = static_cast<int>(tasks);
  if (num_threads <= 1) {
    for (int64_t task = 0; task < tasks; ++task) fn(context, task, 0);
    return;
  }
  Region region{tasks, fn, context, {}, {}};
#if !defined(TW_NO_OPENMP)
  static const GompParallel openmp = find_openmp();
  if (openmp != nullptr) {
    openmp(work, &region, static_cast<unsigned>(num_threads), 0);
    return;
  }
#endif
  std::vector<std::thread> threads;
  threads.reserve(static_cast<size_t>(num_threads - 1));
  for (int t = 1; t < num_threads; ++t) threads.emplace_back(work, &region);
  work(&region);
  for (std::thread& t : threads) t.join();
}

}  // namespace tilewright
