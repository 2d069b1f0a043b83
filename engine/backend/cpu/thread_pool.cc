#include "engine/backend/cpu/thread_pool.h"

#include <sched.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <thread>
#include <vector>

#include "engine/backend/cpu/cgroup.h"
#include "engine/base/check.h"

namespace t6 {
namespace {

constexpr auto kSpinTime = std::chrono::microseconds(50);

inline void CpuRelax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#else
  std::this_thread::yield();
#endif
}

// Spins until done() or until kSpinTime has passed; whether it was done.
template <typename Done>
bool SpinUntil(const Done& done) {
  for (int i = 0; i < 64; ++i) {
    if (done()) return true;
    CpuRelax();
  }
  const auto deadline = std::chrono::steady_clock::now() + kSpinTime;
  do {
    for (int i = 0; i < 32; ++i) {
      if (done()) return true;
      CpuRelax();
    }
  } while (std::chrono::steady_clock::now() < deadline);
  return false;
}

}  // namespace

// A region is one 64-bit word: how many tasks it has (high half) and the next to hand out (low half). Who
// takes a ticket below the count owns that task, and only owners read `task` and `call`: they stay until all
// owners are done, so a worker that comes late, or not at all, holds nobody up.
struct ThreadPool::Impl {
  alignas(64) std::atomic<uint64_t> tickets{0};
  alignas(64) std::atomic<int> n_done{0};
  alignas(64) std::atomic<uint32_t> epoch{0};  // what sleepers wait on; changes with every region
  std::atomic<bool> stopping{false};
  const void* task = nullptr;
  Call call = nullptr;
  std::vector<std::thread> threads;

  bool HasTickets() const {
    const uint64_t word = tickets.load(std::memory_order_relaxed);
    return static_cast<uint32_t>(word) < static_cast<uint32_t>(word >> 32);
  }

  void Work(int worker) {
    while (HasTickets()) {
      const uint64_t word = tickets.fetch_add(1, std::memory_order_acq_rel);
      const uint32_t index = static_cast<uint32_t>(word);
      if (index >= static_cast<uint32_t>(word >> 32)) break;
      call(task, static_cast<int>(index), worker);
      // One by one: a worker may go on into the next region's tickets without noticing that this one ended.
      n_done.fetch_add(1, std::memory_order_release);
    }
  }

  void Loop(int worker) {
    while (!stopping.load(std::memory_order_relaxed)) {
      const uint32_t seen = epoch.load();
      if (SpinUntil([&] { return HasTickets() || stopping.load(std::memory_order_relaxed); })) {
        Work(worker);
      } else {
        epoch.wait(seen);
      }
    }
  }
};

ThreadPool::ThreadPool(int n_threads) : n_threads_(n_threads), impl_(std::make_unique<Impl>()) {
  T6_CHECK(n_threads >= 1, "n_threads = {}", n_threads);
  for (int worker = 1; worker < n_threads; ++worker) {
    impl_->threads.emplace_back([impl = impl_.get(), worker] { impl->Loop(worker); });
  }
}

ThreadPool::~ThreadPool() {
  impl_->stopping.store(true);
  impl_->epoch.fetch_add(1);
  impl_->epoch.notify_all();
  for (std::thread& thread : impl_->threads) thread.join();
}

void ThreadPool::RunErased(int n_tasks, const void* task, Call call) {
  if (n_tasks <= 0) return;
  if (n_tasks == 1 || n_threads_ == 1) {
    for (int i = 0; i < n_tasks; ++i) call(task, i, 0);
    return;
  }
  impl_->task = task;
  impl_->call = call;
  impl_->n_done.store(0, std::memory_order_relaxed);
  impl_->tickets.store(static_cast<uint64_t>(n_tasks) << 32, std::memory_order_release);
  impl_->epoch.fetch_add(1);
  impl_->epoch.notify_all();
  impl_->Work(0);
  const auto done = [&] { return impl_->n_done.load(std::memory_order_acquire) == n_tasks; };
  // Past the spin a worker was most likely put to sleep by the system in the middle of a task: give it the
  // core.
  while (!SpinUntil(done)) std::this_thread::yield();
}

int AvailableThreads() {
  int n = 0;
  // The kernel refuses a set smaller than its own; 8192 CPUs is the most that Linux is built for today.
  for (int n_cpus = 1024; n == 0 && n_cpus <= 65536; n_cpus *= 2) {
    cpu_set_t* set = CPU_ALLOC(n_cpus);
    const size_t bytes = CPU_ALLOC_SIZE(n_cpus);
    if (set != nullptr && sched_getaffinity(0, bytes, set) == 0) n = CPU_COUNT_S(bytes, set);
    CPU_FREE(set);
  }
  if (n == 0) n = static_cast<int>(std::thread::hardware_concurrency());
  if (const auto cpus = ReadCgroupLimits().cpus) n = std::min<double>(n, std::ceil(*cpus));
  return std::max(n, 1);
}

}  // namespace t6
