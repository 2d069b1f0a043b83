// How one step's attention is divided into tasks. Pure host arithmetic, made once per step.
//
// A sequence with few rows is computed from factors, its context cut into splits at absolute positions (the
// first pages alone, so that a short context has work for several threads; then kSplitPages each); each split
// leaves a partial (sum, maximum, output) in a slot and the row's partials are merged in order. So neither
// the number of threads nor the rest of the batch can change a result. Where sequences share leading pages,
// one task computes that part for all their rows; the split in which the shared part ends is then resumed by
// each sequence's own task, with the state that the shared task left, which gives the same sums as doing it
// alone. Where kernels take several rows head by head, which rounds elsewhere anyway, the shared part is cut
// into a few long pieces instead, equal for all threads, and nothing waits for it but the merging. A sequence
// with many rows is computed head by head from expanded keys and values, one task per head and block of rows.
#pragma once

#include <cstdint>
#include <vector>

#include "engine/schedule/step_plan.h"

namespace t6::cpu {

inline constexpr int kSplitPages = 4;
inline int SplitOf(int page) { return page < kSplitPages ? page : kSplitPages - 1 + page / kSplitPages; }
inline int FirstPageOf(int split) {
  return split < kSplitPages ? split : (split - kSplitPages + 1) * kSplitPages;
}
inline int SplitsOf(int n_pages) { return SplitOf(n_pages - 1) + 1; }  // n_pages >= 1
// From this many rows expanding K and V costs less than the factors' products (see tpa_attention_tasks.cc).
inline constexpr int kExpandRows = 16;
// Rows of one expanded task: keys and values are expanded once for all of them.
inline constexpr int kMaxBlockRows = 256;

struct FactorTask {
  int32_t first_row, n_rows;
  int32_t page_begin, page_end;  // of the sequence's pages
  int32_t part;                  // which of its rows' partials it computes
  int32_t next_page;             // id of the page that this worker probably needs next, or -1
  const int32_t* pages;          // the sequence's page ids
  bool resume;                   // continue from the state in the slots
  bool by_heads;
  bool stores;  // its row's page is nobody else's, and may be written to first
  int n_pages() const { return page_end - page_begin; }
};

struct ExpandTask {
  int32_t head;
  int32_t first_row, n_rows;
  const int32_t* pages;
  int64_t cost;
};

// Tasks of a wave share the slots; the next wave uses them again.
struct AttentionWave {
  int32_t shared_begin = 0, shared_end = 0;  // of shared_tasks
  int32_t last_begin = 0, last_end = 0;      // of last_tasks
  // Where each thread's share of them begins, and the end: [n_threads + 1], equal in cost.
  std::vector<int> shared_shares, last_shares;
  int64_t last_cost = 0;  // see CostOf
};

struct AttentionLimits {
  int n_heads = 0;
  int n_threads = 1;
  int n_slots = 0;        // at least the splits of one row
  int max_task_rows = 1;  // of a FactorTask
  // From so many rows on, a task goes head by head, over so many pages at most. 0: none does.
  int head_rows = 0;
  int max_head_pages = 1;
};

// In tenths of a page of one row.
int64_t CostOf(const FactorTask& task);

class AttentionPlan {
 public:
  void Build(const StepPlan& plan, const AttentionLimits& limits);

  // Of shared pages, where some of last_tasks resume what they leave; then those after which a row may be
  // complete.
  const std::vector<FactorTask>& shared_tasks() const { return shared_tasks_; }
  const std::vector<FactorTask>& last_tasks() const { return last_tasks_; }
  const std::vector<ExpandTask>& expand_tasks() const { return expand_tasks_; }
  const std::vector<AttentionWave>& waves() const { return waves_; }
  // Of a row computed from factors: its first slot, its number of partials, and how many of last_tasks it
  // waits for.
  int slot(int row) const { return slot_[row]; }
  int n_parts(int row) const { return n_parts_[row]; }
  int n_last_tasks(int row) const { return n_last_tasks_[row]; }
  // Rows that no task stores.
  const std::vector<int32_t>& other_rows() const { return other_rows_; }

 private:
  // Sequences [first, end) with the same `shared_pages` leading pages; rows [row, row_end).
  struct Unit {
    int first, end, row, row_end, shared_pages;
  };
  void AddFactorSequences(const StepPlan& plan, int first, int end, int shared_pages);
  void AddUnit(const StepPlan& plan, const Unit& unit);
  int AddSharedTasks(const StepPlan& plan, const Unit& unit);
  void AddExpandTasks(const StepPlan& plan, int sequence);

  AttentionLimits limits_;
  int used_slots_ = 0;
  std::vector<FactorTask> shared_tasks_, last_tasks_;
  std::vector<ExpandTask> expand_tasks_;
  std::vector<AttentionWave> waves_;
  std::vector<int32_t> slot_, n_parts_, n_last_tasks_, other_rows_;
};

}  // namespace t6::cpu
