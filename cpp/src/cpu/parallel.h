// Splits work over the threads of one pool that lives as long as the process.
#pragma once

#include <cstdint>
#include <type_traits>

namespace chipmunk::cpu {

// Cores that this process may run on, at least 1.
int available_threads();

// The number of threads that `parallel_for` uses when asked for `requested` (0: all available).
int thread_count(int requested);

using TaskFunction = void (*)(const void* closure, int64_t task, int worker);

void parallel_for(int64_t tasks, int threads, TaskFunction function, const void* closure);

// Calls body(task, worker) for task in [0, tasks), in ascending order as threads come free;
// `worker` in [0, threads) names the thread, for scratch memory. Returns when all are done. The
// caller's thread works too. `body` must not throw. Safe to call from several threads at once and
// after fork().
template <class Body>
void parallel_for(int64_t tasks, int threads, const Body& body) {
  static_assert(std::is_invocable_v<const Body&, int64_t, int>);
  parallel_for(
      tasks, threads,
      [](const void* closure, int64_t task, int worker) {
        (*static_cast<const Body*>(closure))(task, worker);
      },
      &body);
}

}  // namespace chipmunk::cpu
