#include "cpu/parallel.h"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <list>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

#if defined(__linux__)
#include <sched.h>
#endif
#if defined(__unix__)
#include <unistd.h>
#endif

namespace chipmunk::cpu {
namespace {

struct Job {
  TaskFunction function;
  const void* closure;
  int64_t tasks;
  int max_workers;
  std::atomic<int64_t> next{0};
  int workers = 0;  // that ever joined, under the pool's mutex
  int active = 0;   // that have not left yet, under the pool's mutex

  void run(int worker) {
    for (;;) {
      const int64_t task = next.fetch_add(1, std::memory_order_relaxed);
      if (task >= tasks) return;
      function(closure, task, worker);
    }
  }
  bool wants_worker() const {
    return workers < max_workers && next.load(std::memory_order_relaxed) < tasks;
  }
};

// Threads start when a job first wants them and stay. The pool is never destroyed: its threads may
// outlive static destructors.
class Pool {
 public:
  void run(Job& job) {
    std::unique_lock lock(mutex_);
    while (threads_ < job.max_workers - 1 && start_thread()) ++threads_;
    const int worker = job.workers++;
    ++job.active;
    jobs_.push_back(&job);
    lock.unlock();
    wake_.notify_all();

    job.run(worker);

    lock.lock();
    jobs_.remove(&job);
    --job.active;
    done_.wait(lock, [&] { return job.active == 0; });
  }

 private:
  // False where the system has no more threads to give: the job does with those there are.
  bool start_thread() {
    try {
      std::thread([this] { serve(); }).detach();
      return true;
    } catch (const std::system_error&) {
      return false;
    }
  }

  void serve() {
    std::unique_lock lock(mutex_);
    for (;;) {
      Job* job = nullptr;
      wake_.wait(lock, [&] {
        const auto it = std::find_if(jobs_.begin(), jobs_.end(),
                                     [](const Job* j) { return j->wants_worker(); });
        if (it != jobs_.end()) job = *it;
        return job != nullptr;
      });
      const int worker = job->workers++;
      ++job->active;
      lock.unlock();
      job->run(worker);
      lock.lock();
      if (--job->active == 0) done_.notify_all();
    }
  }

  std::mutex mutex_;
  std::condition_variable wake_, done_;
  std::list<Job*> jobs_;
  int threads_ = 0;
};

// A forked child has the parent's pool but none of its threads, so it starts a pool of its own.
Pool& pool() {
#if defined(__unix__)
  struct Owned {
    Pool* pool;
    pid_t pid;
  };
  static std::atomic<Owned*> current{nullptr};
  Owned* owned = current.load(std::memory_order_acquire);
  while (owned == nullptr || owned->pid != getpid()) {
    auto* fresh = new Owned{new Pool, getpid()};
    if (current.compare_exchange_strong(owned, fresh, std::memory_order_acq_rel))
      return *fresh->pool;
    delete fresh->pool;
    delete fresh;
  }
  return *owned->pool;
#else
  static Pool* const pool = new Pool;
  return *pool;
#endif
}

}  // namespace

int available_threads() {
#if defined(__linux__)
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof(set), &set) == 0) return std::max(1, CPU_COUNT(&set));
#endif
  return std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
}

int thread_count(int requested) { return requested > 0 ? requested : available_threads(); }

void parallel_for(int64_t tasks, int threads, TaskFunction function, const void* closure) {
  const int workers = static_cast<int>(std::min<int64_t>(thread_count(threads), tasks));
  if (workers <= 1) {
    for (int64_t task = 0; task < tasks; ++task) function(closure, task, 0);
    return;
  }
  Job job{function, closure, tasks, workers};
  pool().run(job);
}

}  // namespace chipmunk::cpu
