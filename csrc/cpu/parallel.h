// Threads for the CPU kernels.
//
// torch brings an OpenMP runtime whose worker threads spin for a while after each of its own operators. A second pool
// would fight them for the same cores, so when the process already holds an OpenMP runtime we run on its team, looked
// up by name at run time; otherwise (no OpenMP: macOS, sanitizer builds) plain threads do. Nothing is linked.
#pragma once

#include <cstdint>

namespace tilewright {

using TaskFn = void (*)(void* context, int64_t task, int thread);

// Runs fn(context, task, thread) for every task in [0, tasks), each exactly once, handed out in order to up to
// num_threads threads; `thread` is in [0, num_threads) and no two running calls share it. Returns when all are done.
// Tasks must not throw. With num_threads <= 1 or a single task everything runs on the caller.
void run_tasks(int64_t tasks, int num_threads, TaskFn fn, void* context);

// The lambda form: parallel_for(tasks, num_threads, [&](int64_t task, int thread) { ... }).
template <class F>
inline void parallel_for(int64_t tasks, int num_threads, const F& body) {
  run_tasks(
      tasks, num_threads,
      [](void* context, int64_t task, int thread) { (*static_cast<const F*>(context))(task, thread); },
      const_cast<F*>(&body));
}

}  // namespace tilewright
