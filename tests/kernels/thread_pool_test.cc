#include "engine/backend/cpu/thread_pool.h"

#include <gtest/gtest.h>
#include <sched.h>

#include <atomic>
#include <set>
#include <thread>
#include <vector>

namespace t6 {
namespace {

TEST(ThreadPoolTest, RunsEveryTaskOnce) {
  ThreadPool pool(4);
  for (int n_tasks : {0, 1, 2, 3, 4, 5, 17, 1000}) {
    std::vector<std::atomic<int>> runs(n_tasks);
    std::atomic<int> bad_workers{0};
    pool.Run(n_tasks, [&](int i, int worker) {
      runs[i].fetch_add(1);
      if (worker < 0 || worker >= 4) bad_workers.fetch_add(1);
    });
    for (int i = 0; i < n_tasks; ++i) EXPECT_EQ(runs[i].load(), 1) << i << " of " << n_tasks;
    EXPECT_EQ(bad_workers.load(), 0);
  }
}

TEST(ThreadPoolTest, StickyItemsAndSharesRunOnce) {
  ThreadPool pool(3);
  for (const int n_items : {0, 1, 2, 3, 7, 64, 1000}) {
    for (const int at_once : {1, 3, 64}) {
      std::vector<std::atomic<int>> runs(n_items);
      std::atomic<int> too_many{0};
      const auto items = [&](int first, int end, int) {
        if (end - first > at_once) too_many.fetch_add(1);
        for (int i = first; i < end; ++i) runs[i].fetch_add(1);
      };
      pool.RunSticky(n_items, at_once, items);
      const int shares[] = {0, n_items / 2, n_items / 2, n_items};
      pool.RunShares(shares, at_once, items);
      for (int i = 0; i < n_items; ++i) EXPECT_EQ(runs[i].load(), 2) << i << " of " << n_items;
      EXPECT_EQ(too_many.load(), 0);
    }
  }
}

// What is read ahead may go once reading is stopped: the sanitizers see who still reads it.
TEST(ThreadPoolTest, NobodyReadsAheadOnceStopped) {
  ThreadPool pool(2);
  for (int round = 0; round < 200; ++round) {
    std::vector<uint8_t> bytes(size_t{1} << 20);
    const ThreadPool::ReadAhead ahead = {{{bytes.data(), bytes.data() + bytes.size()}}};
    const ThreadPool::ReadAhead of_workers[] = {ahead, ahead};
    pool.SetReadAhead(of_workers);
    pool.RunSticky(2, 1, [](int, int, int) {});
    pool.StopReadingAhead();
  }
}

TEST(ThreadPoolTest, WritesOfTasksAreSeenAfterRun) {
  ThreadPool pool(3);
  std::vector<int64_t> sums(7);
  for (int round = 0; round < 5000; ++round) {
    pool.Run(7, [&](int i, int) { sums[i] += i + 1; });  // no atomics: Run itself must order rounds
  }
  for (int i = 0; i < 7; ++i) EXPECT_EQ(sums[i], 5000 * (i + 1));
}

TEST(ThreadPoolTest, MoreThreadsThanCpusFinish) {
  ThreadPool pool(4 * static_cast<int>(std::max(1u, std::thread::hardware_concurrency())));
  std::atomic<int64_t> n{0};
  for (int round = 0; round < 300; ++round) {
    pool.Run(pool.n_threads(), [&](int, int) { n.fetch_add(1); });
  }
  EXPECT_EQ(n.load(), 300 * pool.n_threads());
}

TEST(ThreadPoolTest, TasksRunOnSeveralThreadsAtOnce) {
  ThreadPool pool(2);
  std::atomic<int> arrived{0};
  // Each task waits for the other: one thread alone would never return.
  pool.Run(2, [&](int, int) {
    arrived.fetch_add(1);
    while (arrived.load() < 2) std::this_thread::yield();
  });
  EXPECT_EQ(arrived.load(), 2);
}

TEST(ThreadPoolTest, AWorkerIndexBelongsToOneThreadAtATime) {
  ThreadPool pool(4);
  std::vector<std::atomic<int>> busy(4);
  std::atomic<int> clashes{0};
  for (int round = 0; round < 200; ++round) {
    pool.Run(64, [&](int, int worker) {
      if (busy[worker].exchange(1) != 0) clashes.fetch_add(1);
      busy[worker].store(0);
    });
  }
  EXPECT_EQ(clashes.load(), 0);
}

TEST(AvailableThreadsTest, FollowsTheAffinityMask) {
  EXPECT_GE(AvailableThreads(), 1);
  int one = 0;
  std::thread([&] {  // the mask is a thread's own
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(sched_getcpu(), &set);
    ASSERT_EQ(sched_setaffinity(0, sizeof(set), &set), 0);
    one = AvailableThreads();
  })
      .join();
  EXPECT_EQ(one, 1);
}

}  // namespace
}  // namespace t6
