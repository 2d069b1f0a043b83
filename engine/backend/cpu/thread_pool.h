// A fixed set of workers for parallel regions of a few microseconds. The caller works too, as worker 0.
// Between regions workers spin for 50 us, then sleep. Run is called by one thread at a time.
#pragma once

#include <cstddef>
#include <functional>
#include <memory>

namespace t6 {

class ThreadPool {
 public:
  explicit ThreadPool(int n_threads);  // >= 1, the caller included
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int n_threads() const { return n_threads_; }

  // Calls task(i, worker) once for every i in [0, n_tasks), worker in [0, n_threads); tasks are handed out in
  // order, one by one. Returns when all are done. A task must not call Run.
  template <typename Task>
  void Run(int n_tasks, const Task& task) {
    RunErased(n_tasks, &task,
              [](const void* t, int i, int worker) { (*static_cast<const Task*>(t))(i, worker); });
  }

 private:
  using Call = void (*)(const void* task, int index, int worker);
  void RunErased(int n_tasks, const void* task, Call call);

  struct Impl;
  int n_threads_;
  std::unique_ptr<Impl> impl_;
};

// Threads this process may use: the affinity mask, cut to the cgroup's CPU quota (rounded up), at least 1.
int AvailableThreads();

}  // namespace t6
