// A fixed set of workers for parallel regions of a few microseconds. The caller works too, as worker 0.
// Between regions workers spin for 50 us, then sleep. Regions are begun by one thread at a time.
//
// A region's items are cut into a run of neighbours for each worker, who takes from the others' runs only
// when through with its own: so a worker meets the same items in every step, and finds what they read in its
// cache, while one that comes late, or not at all, holds nobody up.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <type_traits>

namespace t6 {

class ThreadPool {
 public:
  explicit ThreadPool(int n_threads);  // >= 1, the caller included
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int n_threads() const { return n_threads_; }

  // What a worker will read in regions to come, in this order.
  struct Bytes {
    const uint8_t* at = nullptr;
    const uint8_t* end = nullptr;
  };
  using ReadAhead = std::array<Bytes, 3>;
  // From the end of the next region on, until another call replaces it, a worker that waits reads these bytes
  // into its cache, so that memory does not wait with it. `bytes` has an entry for each worker, or is null;
  // it stays as it is until replaced. StopReadingAhead returns when none reads any more, nor will before the
  // next call: the bytes may go.
  void SetReadAhead(const ReadAhead* bytes);
  void StopReadingAhead();

  // Calls task(i, worker) once for every i in [0, n_tasks), worker in [0, n_threads), the first ones first.
  // Returns when all are done. A task must not begin a region.
  template <typename Task>
  void Run(int n_tasks, const Task& task) {
    // A worker's run is every n_threads-th task: all of them are in the same part of the order at a time.
    const int each = n_tasks / n_threads_, longer = n_tasks % n_threads_, in_longer = longer * (each + 1);
    const auto item = [&](int place, int /*end*/, int worker) {
      const int rest = place - in_longer;
      const int run = rest < 0 ? place / (each + 1) : longer + rest / each;
      const int within = rest < 0 ? place % (each + 1) : rest % each;
      task(within * n_threads_ + run, worker);
    };
    ShareEvenly(n_tasks);
    Begin(1, Taking::kOne, &item, Erase<decltype(item)>());
  }

  // Where a worker's run of n_items begins; where it ends, the next one's does.
  int FirstOf(int n_items, int worker) const {
    const int each = n_items / n_threads_, longer = n_items % n_threads_;
    return each * worker + (worker < longer ? worker : longer);
  }

  // Calls items(first, end, worker) until [0, n_items) is done, at most `at_once` of them in a call. Of its
  // own run a worker takes half of what is left at a time: for short items that cost much the same.
  template <typename Items>
  void RunSticky(int n_items, int at_once, const Items& items) {
    ShareEvenly(n_items);
    Begin(at_once, Taking::kHalf, &items, Erase<Items>());
  }

  // The same, where worker w's run is [shares[w], shares[w + 1]); shares has n_threads + 1 entries, from 0 to
  // the number of items.
  template <typename Items>
  void RunShares(const int* shares, int at_once, const Items& items) {
    for (int w = 0; w < n_threads_; ++w) SetShare(w, shares[w], shares[w + 1]);
    Begin(at_once, Taking::kOne, &items, Erase<Items>());
  }

 private:
  enum class Taking : uint8_t { kOne, kHalf };  // calls of its own run that a worker takes at a time
  using Call = void (*)(const void* items, int first, int end, int worker);
  template <typename Items>
  static Call Erase() {
    return [](const void* items, int first, int end, int worker) {
      (*static_cast<const Items*>(items))(first, end, worker);
    };
  }
  void ShareEvenly(int n_items) {
    for (int w = 0; w < n_threads_; ++w) SetShare(w, FirstOf(n_items, w), FirstOf(n_items, w + 1));
  }
  void SetShare(int worker, int first, int end);
  void Begin(int at_once, Taking taking, const void* items, Call call);

  struct Impl;
  int n_threads_;
  std::unique_ptr<Impl> impl_;
};

// Threads this process may use: the affinity mask, cut to the cgroup's CPU quota (rounded up), at least 1.
int AvailableThreads();

}  // namespace t6
