#include "engine/backend/cpu/tpa_attention_plan.h"

#include <algorithm>

#include "engine/backend/attention_spec.h"
#include "engine/base/check.h"

namespace t6::cpu {
namespace {

int RowsOf(const StepPlan& plan, int sequence) {
  return plan.row_begin[sequence + 1] - plan.row_begin[sequence];
}

// Pages that hold what the sequence's last row attends to.
int PagesOf(const StepPlan& plan, int sequence) {
  return plan.positions[plan.row_begin[sequence + 1] - 1] / kPageTokens + 1;
}

const int32_t* PageIds(const StepPlan& plan, int sequence) {
  return plan.page_ids.data() + plan.page_begin[sequence];
}

// Tasks [begin, end) in as many runs of nearly equal cost as there are threads: the longest first, each to
// the thread that has least so far. A thread takes its own in the order of pages. Returns where runs begin,
// and the end, from `begin` on.
std::vector<int> Deal(std::vector<FactorTask>* tasks, int begin, int end, int n_threads) {
  struct Dealt {
    int task, thread;
  };
  std::vector<Dealt> dealt;
  for (int i = begin; i < end; ++i) dealt.push_back({i, 0});
  std::stable_sort(dealt.begin(), dealt.end(), [&](const Dealt& a, const Dealt& b) {
    return CostOf((*tasks)[a.task]) > CostOf((*tasks)[b.task]);
  });
  std::vector<int64_t> load(n_threads, 0);
  for (Dealt& d : dealt) {
    d.thread = static_cast<int>(std::min_element(load.begin(), load.end()) - load.begin());
    load[d.thread] += CostOf((*tasks)[d.task]);
  }
  std::sort(dealt.begin(), dealt.end(), [](const Dealt& a, const Dealt& b) {
    return a.thread != b.thread ? a.thread < b.thread : a.task < b.task;
  });
  std::vector<FactorTask> sorted;
  std::vector<int> shares{0};
  for (const Dealt& d : dealt) {
    shares.resize(d.thread + 1, static_cast<int>(sorted.size()));
    sorted.push_back((*tasks)[d.task]);
  }
  shares.resize(n_threads + 1, end - begin);
  for (size_t i = 1; i < sorted.size(); ++i) sorted[i - 1].next_page = sorted[i].pages[sorted[i].page_begin];
  std::copy(sorted.begin(), sorted.end(), tasks->begin() + begin);
  return shares;
}

}  // namespace

// Measured: a page head by head takes what 1.7 rows alone take, and 0.6 of one for each row.
int64_t CostOf(const FactorTask& task) {
  return int64_t{task.n_pages()} * (task.by_heads ? 17 + 6 * task.n_rows : 10 * task.n_rows);
}

void AttentionPlan::Build(const StepPlan& plan, const AttentionLimits& limits) {
  limits_ = limits;
  used_slots_ = 0;
  shared_tasks_.clear(), last_tasks_.clear(), expand_tasks_.clear();
  waves_.assign(1, {});
  other_rows_.clear();
  slot_.assign(plan.n_rows(), 0), n_parts_.assign(plan.n_rows(), 0), n_last_tasks_.assign(plan.n_rows(), 0);

  for (int s = 0; s < plan.n_sequences(); ++s) {
    if (RowsOf(plan, s) == 1) continue;
    for (int row = plan.row_begin[s]; row < plan.row_begin[s + 1]; ++row) other_rows_.push_back(row);
  }
  size_t next_group = 0;
  for (int s = 0; s < plan.n_sequences();) {
    while (next_group < plan.shared_prefixes.size() && plan.shared_prefixes[next_group].first_sequence < s)
      ++next_group;
    int group_end = s + 1, shared_pages = 0;
    if (next_group < plan.shared_prefixes.size() && plan.shared_prefixes[next_group].first_sequence == s) {
      group_end = std::min(s + plan.shared_prefixes[next_group].n_sequences, plan.n_sequences());
      shared_pages = plan.shared_prefixes[next_group].n_pages;
    }
    while (s < group_end) {
      if (RowsOf(plan, s) >= kExpandRows) {
        AddExpandTasks(plan, s++);
        continue;
      }
      int end = s;
      while (end < group_end && RowsOf(plan, end) < kExpandRows) ++end;
      AddFactorSequences(plan, s, end, shared_pages);
      s = end;
    }
  }
  waves_.back().shared_end = static_cast<int32_t>(shared_tasks_.size());
  waves_.back().last_end = static_cast<int32_t>(last_tasks_.size());
  for (AttentionWave& wave : waves_) {
    wave.shared_shares = Deal(&shared_tasks_, wave.shared_begin, wave.shared_end, limits_.n_threads);
    wave.last_shares = Deal(&last_tasks_, wave.last_begin, wave.last_end, limits_.n_threads);
    for (int i = wave.last_begin; i < wave.last_end; ++i) wave.last_cost += CostOf(last_tasks_[i]);
  }
  std::stable_sort(expand_tasks_.begin(), expand_tasks_.end(),
                   [](const ExpandTask& a, const ExpandTask& b) { return a.cost > b.cost; });
}

void AttentionPlan::AddFactorSequences(const StepPlan& plan, int first, int end, int shared_pages) {
  // Only what every row of the group sees whole is shared.
  for (int s = first; s < end; ++s) {
    if (RowsOf(plan, s) > 0)
      shared_pages = std::min(shared_pages, plan.positions[plan.row_begin[s]] / kPageTokens);
  }
  if (end - first == 1) shared_pages = 0;
  Unit unit{first, first, plan.row_begin[first], plan.row_begin[first], shared_pages};
  int slots = 0;
  const auto close = [&] {
    if (unit.row_end > unit.row) AddUnit(plan, unit);
    unit.row = unit.row_end;
    slots = 0;
  };
  for (int s = first; s < end; ++s) {
    if (RowsOf(plan, s) == 0) continue;
    const int splits = SplitsOf(PagesOf(plan, s));
    T6_CHECK(splits <= limits_.n_slots, "{} splits, {} slots", splits, limits_.n_slots);
    if (shared_pages == 0) close();
    if (unit.row_end == unit.row) unit.first = s;
    for (int row = plan.row_begin[s]; row < plan.row_begin[s + 1]; ++row) {
      if (row - unit.row == limits_.max_task_rows || slots + splits > limits_.n_slots) {
        close();
        unit.first = s;
      }
      unit.row_end = row + 1, unit.end = s + 1;
      slots += splits;
    }
  }
  close();
}

void AttentionPlan::AddUnit(const StepPlan& plan, const Unit& unit) {
  int needed = 0;
  for (int s = unit.first; s < unit.end; ++s) {
    const int begin = std::max(unit.row, plan.row_begin[s]),
              end = std::min(unit.row_end, plan.row_begin[s + 1]);
    if (end > begin) needed += (end - begin) * SplitsOf(PagesOf(plan, s));
  }
  if (used_slots_ + needed > limits_.n_slots) {
    const auto shared = static_cast<int32_t>(shared_tasks_.size()),
               last = static_cast<int32_t>(last_tasks_.size());
    waves_.back().shared_end = shared, waves_.back().last_end = last;
    waves_.push_back({shared, shared, last, last, {}, {}});
    used_slots_ = 0;
  }
  const int shared_parts = AddSharedTasks(plan, unit), first_split = SplitOf(unit.shared_pages);
  const bool by_heads = limits_.head_rows > 0 && unit.row_end - unit.row >= limits_.head_rows;
  for (int s = unit.first; s < unit.end; ++s) {
    const int begin = std::max(unit.row, plan.row_begin[s]),
              end = std::min(unit.row_end, plan.row_begin[s + 1]);
    if (end <= begin) continue;
    const int n_pages = PagesOf(plan, s), n_own = SplitsOf(n_pages) - first_split;
    for (int i = 0; i < n_own; ++i) {
      const int split = first_split + i, page = std::max(FirstPageOf(split), unit.shared_pages);
      last_tasks_.push_back({begin, end - begin, page, std::min(FirstPageOf(split + 1), n_pages),
                             shared_parts + i, -1, PageIds(plan, s), !by_heads && page > FirstPageOf(split),
                             limits_.head_rows > 0 && end - begin >= limits_.head_rows,
                             RowsOf(plan, s) == 1 && i + 1 == n_own});
    }
    for (int row = begin; row < end; ++row) {
      slot_[row] = used_slots_, n_parts_[row] = shared_parts + n_own;
      n_last_tasks_[row] = n_own + (by_heads ? shared_parts : 0);
      used_slots_ += n_parts_[row];
    }
  }
}

// Of the unit's shared pages; returns how many partials they leave for a row's own tasks to add to.
int AttentionPlan::AddSharedTasks(const StepPlan& plan, const Unit& unit) {
  const int n_pages = unit.shared_pages, n_rows = unit.row_end - unit.row, n_splits = SplitOf(n_pages);
  if (n_pages == 0) return 0;
  if (limits_.head_rows > 0 && n_rows >= limits_.head_rows) {
    // As many for each thread, and never more partials than the splits would be.
    const int each = limits_.max_head_pages * limits_.n_threads;
    const int n = std::min((n_pages + each - 1) / each * limits_.n_threads, n_splits);
    for (int i = 0; i < n; ++i)
      last_tasks_.push_back({unit.row, n_rows, n_pages * i / n, n_pages * (i + 1) / n, i, -1,
                             PageIds(plan, unit.first), false, true, false});
    return n;
  }
  for (int page = 0; page < n_pages; page = FirstPageOf(SplitOf(page) + 1)) {
    const int split = SplitOf(page);
    shared_tasks_.push_back({unit.row, n_rows, page, std::min(FirstPageOf(split + 1), n_pages), split, -1,
                             PageIds(plan, unit.first), false, false, false});
  }
  return n_splits;
}

void AttentionPlan::AddExpandTasks(const StepPlan& plan, int sequence) {
  // Enough blocks that heads times blocks keep every thread busy; how rows fall into blocks changes no
  // result.
  const int begin = plan.row_begin[sequence], n_rows = RowsOf(plan, sequence);
  const int wanted = std::max(1, 4 * limits_.n_threads / limits_.n_heads);
  const int rows = std::clamp((n_rows / wanted + 31) / 32 * 32, 32, kMaxBlockRows);
  for (int row = 0; row < n_rows; row += rows) {
    const int block = std::min(rows, n_rows - row);
    const int64_t pages = plan.positions[begin + row + block - 1] / kPageTokens + 1;
    for (int head = 0; head < limits_.n_heads; ++head) {
      expand_tasks_.push_back({head, begin + row, block, PageIds(plan, sequence), pages * (block + 16)});
    }
  }
}

}  // namespace t6::cpu
