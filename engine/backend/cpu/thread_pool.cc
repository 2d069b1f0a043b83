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

// Where a worker stands in what it reads ahead. Loads, not prefetches: Zen 4 drops these while a core's miss
// buffers are full.
class alignas(64) Reader {
 public:
  void Start(const ThreadPool::ReadAhead& bytes) {
    bytes_ = bytes, next_ = 0;
    stops_seen_ = n_stops_.load(std::memory_order_relaxed);
  }
  // Reads until done() or until through.
  template <typename Done>
  void Read(const Done& done) {
    if (next_ == bytes_.size()) return;
    reading_.store(true);
    while (next_ < bytes_.size() && n_stops_.load() == stops_seen_ && !done()) ReadSome();
    reading_.store(false, std::memory_order_release);
  }
  void Stop() {
    n_stops_.fetch_add(1);
    while (reading_.load(std::memory_order_acquire)) std::this_thread::yield();
  }

 private:
  // A few lines, so that the worker soon looks again whether its wait is over.
  void ReadSome() {
    constexpr int kLines = 8, kLine = 64;
    ThreadPool::Bytes& bytes = bytes_[next_];
    for (int i = 0; i < kLines && bytes.at < bytes.end; ++i, bytes.at += kLine) {
      static_cast<void>(*static_cast<const volatile uint8_t*>(bytes.at));
    }
    if (bytes.at >= bytes.end) ++next_;
  }

  ThreadPool::ReadAhead bytes_;
  size_t next_ = bytes_.size();
  uint32_t stops_seen_ = 0;
  std::atomic<bool> reading_{false};
  alignas(64) std::atomic<uint32_t> n_stops_{0};
};

// Spins until done() or until kSpinTime has passed; whether it was done.
template <typename Done>
bool SpinUntil(const Done& done, Reader* reader) {
  reader->Read(done);
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

// What one worker waits for, in one cache line, because a line that another core has written is what costs in
// regions this short. `word` holds whether halves are taken (top bit), how many calls the worker's run takes
// (rest of the high half) and the next to hand out (low half). Whoever moves that forward, the worker or
// another that takes from it, owns calls, and only owners read the rest: it stays until all of them are done.
// A sleeping worker leaves kAsleep instead.
struct alignas(64) Mailbox {
  static constexpr uint64_t kAsleep = uint64_t{1} << 31;  // no calls, and more handed out than there ever are
  static constexpr uint64_t kHalves = uint64_t{1} << 63;
  std::atomic<uint64_t> word{0};
  void (*call)(const void* items, int first, int end, int worker) = nullptr;
  const void* items = nullptr;
  int first = 0, end = 0;
  int at_once = 1;
  const ThreadPool::ReadAhead* read_ahead = nullptr;

  static uint32_t LeftOf(uint64_t word) {
    const auto n = static_cast<uint32_t>((word & ~kHalves) >> 32), next = static_cast<uint32_t>(word);
    return next < n ? n - next : 0;
  }
  bool HasCalls() const { return LeftOf(word.load(std::memory_order_relaxed)) > 0; }
  uint32_t n_calls() const { return static_cast<uint32_t>((end - first + at_once - 1) / at_once); }

  struct Calls {
    uint32_t first, n;
  };
  // Owns what it returns. Every locked instruction makes the core's loads wait, hence halves.
  Calls Take(bool own) {
    uint64_t before = word.load(std::memory_order_relaxed);
    for (;;) {
      const uint32_t left = LeftOf(before);
      if (left == 0) return {0, 0};
      const uint32_t n = own && (before & kHalves) != 0 ? (left + 1) / 2 : 1;
      if (word.compare_exchange_weak(before, before + n, std::memory_order_acquire))
        return {static_cast<uint32_t>(before), n};
    }
  }
};

struct ThreadPool::Impl {
  explicit Impl(int n) : mailboxes(n), readers(n), done(n) {}

  struct alignas(64) Count {
    std::atomic<uint32_t> n{0};
  };
  std::vector<Mailbox> mailboxes;  // one a worker, the caller's first
  std::vector<Reader> readers;     // each its worker's alone
  // Calls that each worker has done since the beginning. Call by call: a worker may go on into the next
  // region's calls without noticing that this one ended.
  std::vector<Count> done;
  uint32_t n_begun = 0;                        // the caller's alone
  const ReadAhead* read_ahead = nullptr;       // likewise
  alignas(64) std::atomic<uint32_t> epoch{0};  // what sleepers wait on
  std::atomic<bool> stopping{false};
  std::vector<std::thread> threads;

  // Takes what is left of one run.
  void Take(Mailbox& box, int worker) {
    const bool own = &box == &mailboxes[worker];
    while (box.HasCalls()) {
      const Mailbox::Calls calls = box.Take(own);
      for (uint32_t i = calls.first; i < calls.first + calls.n; ++i) {
        const int first = box.first + static_cast<int>(i) * box.at_once;
        box.call(box.items, first, std::min(box.end, first + box.at_once), worker);
      }
      if (calls.n == 0) break;
      // As long as the calls do not count as done.
      if (own && box.read_ahead != nullptr) readers[worker].Start(*box.read_ahead);
      std::atomic<uint32_t>& n = done[worker].n;
      n.store(n.load(std::memory_order_relaxed) + calls.n, std::memory_order_release);
    }
  }

  void Work(int worker) {
    const int n = static_cast<int>(mailboxes.size());
    for (int i = 0; i < n; ++i) Take(mailboxes[(worker + i) % n], worker);
  }

  bool AllDone() const {
    uint32_t sum = 0;
    for (const Count& count : done) sum += count.n.load(std::memory_order_acquire);
    return sum == n_begun;
  }

  void Loop(int worker) {
    const auto awake = [&] {
      return mailboxes[worker].HasCalls() || stopping.load(std::memory_order_relaxed);
    };
    while (!stopping.load(std::memory_order_relaxed)) {
      if (!SpinUntil(awake, &readers[worker])) Sleep(mailboxes[worker]);
      Work(worker);
    }
  }

  void Sleep(Mailbox& box) {
    const uint32_t seen = epoch.load();
    uint64_t word = box.word.load(std::memory_order_relaxed);
    if (!box.HasCalls() && box.word.compare_exchange_strong(word, Mailbox::kAsleep)) epoch.wait(seen);
  }

  // Whoever replaces kAsleep wakes who left it.
  void Put(Mailbox& box, uint64_t word) {
    const uint64_t before = box.word.exchange(word);
    if (before != Mailbox::kAsleep) return;
    epoch.fetch_add(1);
    epoch.notify_all();
  }
};

ThreadPool::ThreadPool(int n_threads) : n_threads_(n_threads), impl_(std::make_unique<Impl>(n_threads)) {
  T6_CHECK(n_threads >= 1, "n_threads = {}", n_threads);
  for (int worker = 1; worker < n_threads; ++worker) {
    impl_->threads.emplace_back([impl = impl_.get(), worker] { impl->Loop(worker); });
  }
}

ThreadPool::~ThreadPool() {
  impl_->stopping.store(true);
  for (Mailbox& box : impl_->mailboxes) impl_->Put(box, 0);
  for (std::thread& thread : impl_->threads) thread.join();
}

void ThreadPool::SetReadAhead(const ReadAhead* bytes) { impl_->read_ahead = bytes; }

void ThreadPool::StopReadingAhead() {
  impl_->read_ahead = nullptr;
  for (Reader& reader : impl_->readers) reader.Stop();
}

void ThreadPool::SetShare(int worker, int first, int end) {
  impl_->mailboxes[worker].first = first;
  impl_->mailboxes[worker].end = end;
}

void ThreadPool::Begin(int at_once, Taking taking, const void* items, Call call) {
  uint32_t n_calls = 0;
  for (Mailbox& box : impl_->mailboxes) {
    box.items = items, box.call = call, box.at_once = at_once;
    box.read_ahead =
        impl_->read_ahead == nullptr ? nullptr : impl_->read_ahead + (&box - impl_->mailboxes.data());
    n_calls += box.n_calls();
  }
  if (n_calls == 0) return;
  if (n_threads_ == 1 || n_calls == 1) {  // waking the workers for one call costs more than the call
    for (const Mailbox& box : impl_->mailboxes) {
      for (int i = box.first; i < box.end; i += at_once) call(items, i, std::min(box.end, i + at_once), 0);
    }
    return;
  }
  impl_->n_begun += n_calls;
  // Only now, since a worker may take from any of them; the caller's own last.
  for (int worker = n_threads_ - 1; worker >= 0; --worker) {
    Mailbox& box = impl_->mailboxes[worker];
    impl_->Put(box,
               static_cast<uint64_t>(box.n_calls()) << 32 | (taking == Taking::kHalf ? Mailbox::kHalves : 0));
  }
  impl_->Work(0);
  const auto done = [&] { return impl_->AllDone(); };
  // Past the spin a worker was most likely put to sleep by the system in the middle of a task: give it the
  // core.
  while (!SpinUntil(done, &impl_->readers[0])) std::this_thread::yield();
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
