// How attention is divided: every page of every row exactly once, shared pages once for all, slots never
// exceeded.
#include "engine/backend/cpu/tpa_attention_plan.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <set>
#include <utility>
#include <vector>

#include "engine/backend/attention_spec.h"

namespace t6::cpu {
namespace {

struct SequenceRows {
  int context, rows;  // tokens before the step, rows of the step
};

StepPlan MakeStep(const std::vector<SequenceRows>& sequences, int n_shared_pages) {
  StepPlan plan;
  plan.Clear();
  int32_t next_page = 1000;
  for (const SequenceRows& s : sequences) {
    for (int i = 0; i < s.rows; ++i) plan.positions.push_back(s.context + i);
    plan.token_ids.resize(plan.positions.size());
    plan.row_begin.push_back(plan.n_rows());
    plan.context_len.push_back(s.context + s.rows);
    for (int p = 0; p * kPageTokens < s.context + s.rows; ++p) {
      plan.page_ids.push_back(p < n_shared_pages ? p : next_page++);
    }
    plan.page_begin.push_back(static_cast<int32_t>(plan.page_ids.size()));
  }
  if (n_shared_pages > 0) plan.shared_prefixes = {{0, plan.n_sequences(), n_shared_pages}};
  return plan;
}

// (row, page id) -> times computed, over factor tasks.
std::map<std::pair<int, int>, int> Coverage(const AttentionPlan& tasks) {
  std::map<std::pair<int, int>, int> times;
  for (const auto* list : {&tasks.shared_tasks(), &tasks.last_tasks()}) {
    for (const FactorTask& task : *list) {
      if (!task.by_heads) {
        EXPECT_EQ(SplitOf(task.page_begin), SplitOf(task.page_end - 1));
      }
      EXPECT_GT(task.n_pages(), 0);
      for (int row = task.first_row; row < task.first_row + task.n_rows; ++row) {
        for (int page = task.page_begin; page < task.page_end; ++page) ++times[{row, task.pages[page]}];
      }
    }
  }
  return times;
}

void ExpectEveryPageOnce(const StepPlan& plan, const AttentionPlan& tasks) {
  const auto times = Coverage(tasks);
  size_t expected = 0;
  for (int s = 0; s < plan.n_sequences(); ++s) {
    if (plan.row_begin[s + 1] - plan.row_begin[s] >= kExpandRows) continue;
    for (int row = plan.row_begin[s]; row < plan.row_begin[s + 1]; ++row) {
      for (int p = plan.page_begin[s]; p < plan.page_begin[s + 1]; ++p) {
        const auto it = times.find({row, plan.page_ids[p]});
        ASSERT_TRUE(it != times.end()) << "row " << row << " page " << p - plan.page_begin[s];
        EXPECT_EQ(it->second, 1) << "row " << row << " page " << p - plan.page_begin[s];
        ++expected;
      }
    }
  }
  EXPECT_EQ(times.size(), expected);
}

constexpr AttentionLimits kLimits{.n_heads = 13, .n_threads = 2, .n_slots = 1000, .max_task_rows = 32};

TEST(AttentionPlan, SharedPagesAreReadOnceAndTheSplitThatTheyEndInIsResumed) {
  const StepPlan plan = MakeStep({{700, 1}, {650, 1}, {900, 3}}, 10);
  AttentionPlan tasks;
  tasks.Build(plan, kLimits);
  ExpectEveryPageOnce(plan, tasks);
  ASSERT_EQ(tasks.shared_tasks().size(), 6u);  // pages 0, 1, 2, 3, 4-7, 8-9
  for (const FactorTask& task : tasks.shared_tasks()) EXPECT_EQ(task.n_rows, 5);
  for (const FactorTask& task : tasks.last_tasks()) {
    EXPECT_GE(task.page_begin, 10);
    EXPECT_EQ(task.resume, task.page_begin == 10);
  }
}

TEST(AttentionPlan, SharesOnlyWhatEveryRowSeesWhole) {
  const StepPlan plan = MakeStep({{700, 1}, {3 * kPageTokens, 1}}, 3);
  StepPlan early = plan;
  early.shared_prefixes[0].n_pages = 100;
  AttentionPlan tasks;
  tasks.Build(early, kLimits);
  ExpectEveryPageOnce(early, tasks);
  int end = 0;
  for (const FactorTask& task : tasks.shared_tasks()) end = std::max(end, task.page_end);
  EXPECT_EQ(end, 3);
}

TEST(AttentionPlan, WavesNeverNeedMoreSlotsThanThereAre) {
  const StepPlan plan = MakeStep({{2000, 9}, {100, 2}, {1500, 14}, {10, 1}, {2000, 15}}, 0);
  AttentionLimits limits = kLimits;
  limits.n_slots = 12, limits.max_task_rows = 4;
  AttentionPlan tasks;
  tasks.Build(plan, limits);
  ExpectEveryPageOnce(plan, tasks);
  EXPECT_GT(tasks.waves().size(), 10u);
  int32_t next = 0;
  for (const AttentionWave& wave : tasks.waves()) {
    EXPECT_EQ(wave.last_begin, next);
    next = wave.last_end;
    std::set<int> used;
    std::map<int, int> own;
    for (int i = wave.last_begin; i < wave.last_end; ++i) {
      const FactorTask& task = tasks.last_tasks()[i];
      EXPECT_LE(task.n_rows, 4);
      for (int row = task.first_row; row < task.first_row + task.n_rows; ++row) {
        const int slot = tasks.slot(row) + task.part;
        EXPECT_LT(slot, limits.n_slots);
        EXPECT_TRUE(used.insert(slot).second) << "slot " << slot << " twice in a wave";
        ++own[row];
      }
    }
    for (const auto& [row, n] : own) EXPECT_EQ(n, tasks.n_last_tasks(row)) << "row " << row << " spans waves";
  }
  EXPECT_EQ(next, static_cast<int>(tasks.last_tasks().size()));
}

TEST(AttentionPlan, ThreadsShareTheWorkEvenlyEachInTheOrderOfPages) {
  const StepPlan plan = MakeStep({{16 * kPageTokens + 3, 1}, {17 * kPageTokens - 1, 1}}, 16);
  AttentionPlan tasks;
  tasks.Build(plan, kLimits);
  const AttentionWave& wave = tasks.waves().front();
  // Pages 4-7, 12-15 are as much as 0, 1, 2, 3, 8-11.
  EXPECT_EQ(wave.shared_shares, (std::vector<int>{0, 2, 7}));
  std::vector<int> begins;
  for (const FactorTask& task : tasks.shared_tasks()) begins.push_back(task.page_begin);
  EXPECT_EQ(begins, (std::vector<int>{4, 12, 0, 1, 2, 3, 8}));
  for (size_t i = 0; i + 1 < begins.size(); ++i)
    EXPECT_EQ(tasks.shared_tasks()[i].next_page, tasks.shared_tasks()[i + 1].pages[begins[i + 1]]);
  EXPECT_EQ(wave.last_shares, (std::vector<int>{0, 1, 2}));
  for (int n_threads : {1, 3, 8, 64}) {
    AttentionLimits limits = kLimits;
    limits.n_threads = n_threads;
    tasks.Build(plan, limits);
    const std::vector<int>& shares = tasks.waves().front().shared_shares;
    ASSERT_EQ(shares.size(), n_threads + 1u);
    EXPECT_EQ(shares.front(), 0);
    EXPECT_EQ(shares.back(), 7);
    EXPECT_TRUE(std::is_sorted(shares.begin(), shares.end()));
  }
}

TEST(AttentionPlan, SeveralRowsGoHeadByHeadThroughAsFewLongPiecesAsThreadsNeed) {
  AttentionLimits limits = kLimits;
  limits.head_rows = 5, limits.max_head_pages = 10;
  // Rows, shared pages, threads -> pieces.
  const std::vector<std::vector<int>> cases = {{5, 16, 2, 2}, {16, 20, 2, 2}, {16, 21, 2, 4}, {7, 3, 2, 2},
                                               {7, 1, 2, 1},  {32, 64, 1, 7}, {16, 16, 8, 7}, {4, 16, 2, 0}};
  for (const std::vector<int>& c : cases) {
    const int n_rows = c[0], shared = c[1];
    const StepPlan plan = MakeStep(std::vector<SequenceRows>(n_rows, {shared * kPageTokens + 70, 1}), shared);
    limits.n_threads = c[2];
    AttentionPlan tasks;
    tasks.Build(plan, limits);
    ExpectEveryPageOnce(plan, tasks);
    EXPECT_EQ(tasks.shared_tasks().empty(), c[3] > 0);
    std::set<int> parts;
    std::vector<int> n_tasks(n_rows, 0);
    for (const FactorTask& task : tasks.last_tasks()) {
      EXPECT_FALSE(task.resume && c[3] > 0);
      EXPECT_EQ(task.by_heads, task.n_rows > 1);
      for (int row = task.first_row; row < task.first_row + task.n_rows; ++row) {
        ++n_tasks[row];
        EXPECT_LT(task.part, tasks.n_parts(row));
      }
      if (!task.by_heads) continue;
      parts.insert(task.part);
      EXPECT_LE(task.n_pages(), limits.max_head_pages);
    }
    EXPECT_EQ(parts.size(), static_cast<size_t>(c[3])) << n_rows << " rows, " << shared << " pages";
    for (int row = 0; row < n_rows; ++row) {
      EXPECT_EQ(n_tasks[row], tasks.n_last_tasks(row));
      EXPECT_LE(tasks.n_parts(row), SplitsOf(shared + 2));
    }
  }
}

TEST(AttentionPlan, OwnPagesMakeUpForSharedPiecesOfUnequalLength) {
  AttentionLimits limits = kLimits;
  limits.head_rows = 5, limits.max_head_pages = 10;
  const StepPlan plan = MakeStep(std::vector<SequenceRows>(16, {17 * kPageTokens + 20, 1}), 17);
  AttentionPlan tasks;
  tasks.Build(plan, limits);
  const AttentionWave& wave = tasks.waves().front();
  std::vector<int64_t> cost(2, 0);
  for (int w = 0; w < 2; ++w) {
    for (int i = wave.last_shares[w]; i < wave.last_shares[w + 1]; ++i)
      cost[w] += CostOf(tasks.last_tasks()[i]);
  }
  EXPECT_LE(std::abs(cost[0] - cost[1]), 10);
}

TEST(AttentionPlan, ManyRowsAreExpandedOnceForEachHeadLongestFirst) {
  const StepPlan plan = MakeStep({{0, 1}, {128, 600}, {0, kExpandRows}}, 0);
  AttentionPlan tasks;
  tasks.Build(plan, kLimits);
  std::map<std::pair<int, int>, int> times;
  int64_t last = INT64_MAX;
  for (const ExpandTask& task : tasks.expand_tasks()) {
    EXPECT_LE(task.cost, last);
    EXPECT_LE(task.n_rows, kMaxBlockRows);
    last = task.cost;
    for (int i = 0; i < task.n_rows; ++i) ++times[{task.first_row + i, task.head}];
  }
  EXPECT_EQ(times.size(), (600u + kExpandRows) * 13);
  for (const auto& [key, n] : times) EXPECT_EQ(n, 1);
  EXPECT_EQ(tasks.last_tasks().size(), 1u);
}

}  // namespace
}  // namespace t6::cpu
