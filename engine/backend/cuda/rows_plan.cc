#include "engine/backend/cuda/rows_plan.h"

#include <algorithm>
#include <functional>
#include <limits>
#include <queue>

#include "engine/base/page_tokens.h"

namespace t6::cuda {
namespace {

// What a task costs besides its pages, in pages.
constexpr int kTaskPages = 4;
// Measured: 128 rows on 1k are faster as a chunk, 200 on 2k as blocks.
constexpr int kShortContext = 9;
constexpr int kSeesAll = std::numeric_limits<int32_t>::max() / 2;

int CeilDiv(int64_t x, int64_t y) { return static_cast<int>((x + y - 1) / y); }
int WidthOf(int n_rows) {
  int i = 0;
  while (kRowsWidths[i] < n_rows) ++i;
  return i;
}

// How a width's blocks are cut: into equal splits of at most so many pages, or into splits of just so many
// and what is left.
struct Cut {
  int pages = 0;
  bool is_even = true;
};

// Rows that attend to the same pages.
struct Block {
  RowsTask task;   // its pages and rows; head and partial_row come later
  int width;       // index into kRowsWidths
  int run;         // of RowsMerge: 1 for what follows a shared prefix
  bool is_merged;  // whatever its splits
};

class Planner {
 public:
  Planner(const StepPlan& step, const RowsPlanOptions& options, RowsPlan* plan)
      : step_(step), options_(options), plan_(*plan) {}

  void Run(int min_rows) {
    plan_.takes.assign(step_.n_sequences(), 0);
    for (const SharedPrefix& prefix : step_.shared_prefixes) {
      if (IsShared(prefix)) TakeGroup(prefix);
    }
    for (int s = 0; s < step_.n_sequences(); ++s) {
      if (plan_.takes[s] == 0 && n_rows(s) >= min_rows) TakeSequence(s);
    }
    for (int width = 0; width < kNumRowsWidths; ++width) {
      if (std::any_of(blocks_.begin(), blocks_.end(), [&](const Block& b) { return b.width == width; })) {
        DealTasks(width);
      }
    }
    plan_.n_zeros = static_cast<int>(zeros_.size());
    plan_.scratch_tokens.insert(plan_.scratch_tokens.end(), zeros_.begin(), zeros_.end());
    std::sort(plan_.tiles.begin(), plan_.tiles.end(), [](const PrefillTile& a, const PrefillTile& b) {
      return a.first_position + a.n_rows > b.first_position + b.n_rows;
    });
  }

 private:
  int n_rows(int s) const { return step_.row_begin[s + 1] - step_.row_begin[s]; }
  int first_position(int s) const { return step_.context_len[s] - n_rows(s); }

  // Every row must see all of the shared pages, there must be room for its two partial results, and reading
  // the pages once must be worth it.
  bool IsShared(const SharedPrefix& prefix) {
    const int end = prefix.first_sequence + prefix.n_sequences;
    if (options_.prefill_only || prefix.n_sequences < 2 || prefix.n_pages < 1 || end > step_.n_sequences())
      return false;
    for (int s = prefix.first_sequence; s < end; ++s) {
      if (n_rows(s) < 1 || first_position(s) < prefix.n_pages * kPageTokens) return false;
    }
    const int rows = step_.row_begin[end] - step_.row_begin[prefix.first_sequence];
    const int most = options_.max_partial_rows - (options_.always_merges ? step_.n_rows() : 0);
    if (merged_rows_ + 2 * rows > most || !SavesTime(rows, prefix.n_pages)) return false;
    merged_rows_ += 2 * rows;
    return true;
  }
  bool SavesTime(int rows, int n_pages) const {
    const int n_blocks = CeilDiv(rows, kMaxBlockRows), width = WidthOf(CeilDiv(rows, n_blocks));
    const float alone = options_.single_page_ns * static_cast<float>(rows) * static_cast<float>(n_pages);
    const float shared =
        options_.block_page_ns[width] * static_cast<float>(n_blocks) * static_cast<float>(n_pages);
    return shared + options_.sharing_ns + options_.sharing_row_ns * static_cast<float>(rows) <= alone;
  }

  void TakeGroup(const SharedPrefix& prefix) {
    const int first = prefix.first_sequence, end = first + prefix.n_sequences;
    RowsTask task{};
    task.page_offset = step_.page_begin[first], task.n_pages = prefix.n_pages;
    task.n_tokens = prefix.n_pages * kPageTokens, task.first_position = task.first_new = kSeesAll;
    AddBlocks(task, step_.row_begin[first], step_.row_begin[end], 0, true);
    for (int s = first; s < end; ++s) {
      plan_.takes[s] = 1;
      AddSequenceBlocks(s, prefix.n_pages, 1, true);
    }
  }

  // Whose keys and values are worth expanding: many rows, or several blocks' on a short context.
  bool IsChunk(int s) const {
    const int n = n_rows(s);
    const bool is_short = n > kMaxBlockRows && step_.context_len[s] / n < kShortContext;
    return options_.min_prefill_rows > 0 && (n >= options_.min_prefill_rows || is_short);
  }

  void TakeSequence(int s) {
    plan_.takes[s] = 1;
    const int tokens = CeilDiv(step_.context_len[s], std::max(1, options_.prefill_block_tokens)) *
                       options_.prefill_block_tokens;
    if (IsChunk(s) && plan_.n_scratch_tokens + tokens <= options_.max_scratch_tokens) {
      AddTiles(s, tokens);
    } else if (options_.prefill_only) {
      plan_.fits = false;
    } else {
      AddSequenceBlocks(s, 0, 0, options_.always_merges);
    }
  }

  void AddTiles(int s, int tokens) {
    const int base = plan_.n_scratch_tokens, length = step_.context_len[s];
    for (int token = 0; token < tokens; token += kPageTokens) {
      const int n = std::clamp(length - token, 0, kPageTokens);
      const int32_t id = n > 0 ? step_.page_ids[step_.page_begin[s] + token / kPageTokens] : -1;
      plan_.expands.push_back({id, n, base + token});
      const int n_old = std::clamp(first_position(s) - token, 0, n);
      if (options_.stores_rows && n_old > 0) plan_.old_expands.push_back({id, n_old, base + token});
    }
    if (options_.stores_rows) {
      plan_.scratch_tokens.resize(step_.n_rows(), -1);
      for (int row = step_.row_begin[s]; row < step_.row_begin[s + 1]; ++row) {
        plan_.scratch_tokens[row] = base + first_position(s) + row - step_.row_begin[s];
      }
      for (int token = length; token < tokens; ++token) zeros_.push_back(base + token);
    }
    plan_.n_scratch_tokens += tokens;
    for (int row = step_.row_begin[s], n = 0; row < step_.row_begin[s + 1]; row += n) {
      n = TileRows(step_.row_begin[s + 1] - row);
      plan_.tiles.push_back({row, n, first_position(s) + row - step_.row_begin[s], base});
    }
  }

  // Of `left` rows: a last tile of few rows would take as long as one of two thirds.
  int TileRows(int left) const {
    const int all = options_.prefill_tile_rows, part = all / 3;
    return left > all && left <= all + part ? all - part : std::min(all, left);
  }

  void AddSequenceBlocks(int s, int first_page, int run, bool is_merged) {
    RowsTask task{};
    task.first_token = first_page * kPageTokens, task.n_tokens = step_.context_len[s];
    task.page_offset = step_.page_begin[s] + first_page;
    task.n_pages = CeilDiv(step_.context_len[s], kPageTokens) - first_page;
    task.first_position = task.first_new = first_position(s), task.position_step = 1;
    AddBlocks(task, step_.row_begin[s], step_.row_begin[s + 1], run, is_merged);
  }

  // Rows [begin, end) in blocks of equal sizes; what a block's last row does not see is left out.
  void AddBlocks(const RowsTask& common, int begin, int end, int run, bool is_merged) {
    const int n_blocks = CeilDiv(end - begin, kMaxBlockRows);
    for (int i = 0; i < n_blocks; ++i) {
      RowsTask task = common;
      task.row = begin + static_cast<int>(static_cast<int64_t>(end - begin) * i / n_blocks);
      task.n_rows =
          begin + static_cast<int>(static_cast<int64_t>(end - begin) * (i + 1) / n_blocks) - task.row;
      if (task.position_step != 0) {
        task.first_position += task.row - begin;
        const int seen = task.first_position + task.n_rows - task.first_token;
        task.n_pages = std::min(task.n_pages, CeilDiv(seen, kPageTokens));
      }
      blocks_.push_back({task, WidthOf(task.n_rows), run, is_merged});
    }
  }

  int Groups(int width) const { return CeilDiv(options_.n_heads, options_.group_heads[width]); }
  int Splits(const Block& block, int split_pages) const { return CeilDiv(block.task.n_pages, split_pages); }

  int64_t PartialRows(int width, int split_pages) const {
    int64_t rows = 0;
    for (const Block& b : blocks_) {
      if (b.width != width) continue;
      const int splits = Splits(b, split_pages);
      if (splits > 1 || b.is_merged) rows += static_cast<int64_t>(splits) * b.task.n_rows;
    }
    return rows;
  }

  // The time of a width's tasks, in pages, when the longest are dealt first.
  int64_t Makespan(int width, Cut cut) {
    sizes_.clear();
    for (const Block& b : blocks_) {
      if (b.width != width) continue;
      const int splits = Splits(b, cut.pages), groups = Groups(width);
      for (int i = 0; i < splits; ++i) {
        sizes_.insert(sizes_.end(), groups, SplitBegin(b, i + 1, cut) - SplitBegin(b, i, cut));
      }
    }
    std::sort(sizes_.begin(), sizes_.end(), std::greater<>());
    std::priority_queue<int64_t, std::vector<int64_t>, std::greater<>> loads;
    for (int i = 0; i < options_.n_blocks; ++i) loads.push(0);
    int64_t most = 0;
    for (const int size : sizes_) {
      const int64_t load = loads.top() + size + kTaskPages;
      loads.pop(), loads.push(load);
      most = std::max(most, load);
    }
    return most;
  }
  int SplitBegin(const Block& b, int split, Cut cut) {
    if (!cut.is_even) return std::min(split * cut.pages, b.task.n_pages);
    return static_cast<int>(static_cast<int64_t>(b.task.n_pages) * split / Splits(b, cut.pages));
  }

  Cut ChooseCut(int width) {
    int64_t total = 0;
    int most_pages = 1;
    for (const Block& b : blocks_) {
      if (b.width != width) continue;
      total += static_cast<int64_t>(b.task.n_pages) * Groups(width);
      most_pages = std::max(most_pages, b.task.n_pages);
    }
    // Partial rows that are taken, and those that the widths to come cannot do without.
    int64_t others = partial_rows_;
    for (const Block& b : blocks_) others += b.width > width && b.is_merged ? b.task.n_rows : 0;
    Cut best{most_pages};
    int64_t best_time = Makespan(width, best);
    const auto consider = [&](int64_t pages, bool is_even = true) {
      const Cut cut{static_cast<int>(std::clamp<int64_t>(pages, 1, most_pages)), is_even};
      if (PartialRows(width, cut.pages) + others > options_.max_partial_rows) return;
      const int64_t time = Makespan(width, cut);
      if (time < best_time) best = cut, best_time = time;
    };
    for (int waves = 1; waves <= 3; ++waves) {
      const int64_t share = CeilDiv(total, static_cast<int64_t>(options_.n_blocks) * waves);
      consider(share);
      consider(share + share / 16 + 1);
      const int splits = options_.n_blocks * waves / Groups(width);
      if (splits > 0) consider(CeilDiv(most_pages, splits));
    }
    // One split for each multiprocessor as far as the groups go, all groups of a split at once, so that they
    // find its pages in L2; the multiprocessors that are left do a shorter split's groups in as many rounds
    // as that takes: splits * pages + left = most_pages, rounds * (left + kTaskPages) = pages + kTaskPages.
    const int groups = Groups(width), splits = options_.n_blocks / groups;
    const int left_blocks = options_.n_blocks - splits * groups;
    if (splits > 0 && left_blocks > 0) {
      const int rounds = CeilDiv(groups, left_blocks);
      consider(CeilDiv(int64_t{rounds} * most_pages + (rounds - 1) * kTaskPages, rounds * splits + 1), false);
    }
    return best;
  }

  void DealTasks(int width) {
    const Cut cut = ChooseCut(width);
    tasks_.clear();
    for (const Block& b : blocks_) {
      if (b.width == width) SplitBlock(b, cut);
    }
    std::stable_sort(tasks_.begin(), tasks_.end(),
                     [](const RowsTask& a, const RowsTask& b) { return a.n_pages > b.n_pages; });
    using Load = std::pair<int64_t, int>;  // pages, block
    std::priority_queue<Load, std::vector<Load>, std::greater<>> loads;
    for (int i = 0; i < options_.n_blocks; ++i) loads.push({0, i});
    std::vector<std::vector<int>> of_block(options_.n_blocks);
    for (int i = 0; i < static_cast<int>(tasks_.size()); ++i) {
      const auto [load, block] = loads.top();
      loads.pop(), loads.push({load + tasks_[i].n_pages + kTaskPages, block});
      of_block[block].push_back(i);
    }
    RowsTasks& dealt = plan_.by_width[width];
    dealt.block_begin.push_back(0);
    for (const std::vector<int>& indices : of_block) {
      for (const int i : indices) dealt.tasks.push_back(tasks_[i]);
      dealt.block_begin.push_back(static_cast<int32_t>(dealt.tasks.size()));
    }
  }

  void SplitBlock(const Block& block, Cut cut) {
    const int splits = Splits(block, cut.pages);
    const bool merges = splits > 1 || block.is_merged;
    if (merges) AddMerges(block, splits);
    for (int split = 0; split < splits; ++split) {
      RowsTask task = block.task;
      const int begin = SplitBegin(block, split, cut), end = SplitBegin(block, split + 1, cut);
      task.page_offset += begin, task.first_token += begin * kPageTokens, task.n_pages = end - begin;
      task.partial_row = merges ? partial_rows_ + split * task.n_rows : -1;
      for (int head = 0; head < options_.n_heads; head += options_.group_heads[block.width]) {
        task.head = head;
        tasks_.push_back(task);
      }
    }
    if (merges) partial_rows_ += splits * block.task.n_rows;
  }

  void AddMerges(const Block& block, int splits) {
    for (int i = 0; i < block.task.n_rows; ++i) {
      if (merge_of_.empty()) merge_of_.assign(step_.n_rows(), -1);
      int& merge = merge_of_[block.task.row + i];
      if (merge < 0) {
        merge = static_cast<int>(plan_.merges.size());
        plan_.merges.push_back({block.task.row + i, {0, 0}, {0, 0}, {0, 0}});
      }
      RowsMerge& m = plan_.merges[merge];
      m.begin[block.run] = partial_rows_ + i, m.n[block.run] = splits;
      m.stride[block.run] = block.task.n_rows;
    }
  }

  const StepPlan& step_;
  const RowsPlanOptions& options_;
  RowsPlan& plan_;
  std::vector<Block> blocks_;
  std::vector<int> merge_of_;  // a row's index in plan.merges
  std::vector<int> sizes_;
  std::vector<RowsTask> tasks_;
  std::vector<int32_t> zeros_;
  int merged_rows_ = 0, partial_rows_ = 0;
};

}  // namespace

void RowsPlan::Clear() {
  for (RowsTasks& t : by_width) t.tasks.clear(), t.block_begin.clear();
  merges.clear(), tiles.clear(), expands.clear(), takes.clear();
  old_expands.clear(), scratch_tokens.clear();
  n_zeros = n_scratch_tokens = 0, fits = true;
}

// Of a layer, on an H200, in whole steps with and without sharing (bench_xl_cuda shared): the rows kernels'
// time for a page and a head, of 132 multiprocessors, for each width; what decode reads in a nanosecond of
// pages that others read too; queries, partial results and their combine; and what the step loses, for with
// several rows it is no graph, and decode's kernel does not store.
void SetSharingCosts(size_t page_bytes, int n_sms, RowsPlanOptions* options) {
  constexpr float kHeadPageNs[kNumRowsWidths] = {1.1f, 1.9f, 2.3f, 2.6f};
  constexpr float kMeasuredSms = 132.0f, kDecodeBytesPerNs = 6500.0f;
  constexpr float kSharingNs = 12000.0f, kSharingRowNs = 1100.0f;
  options->single_page_ns = static_cast<float>(page_bytes) / kDecodeBytesPerNs;
  for (int i = 0; i < kNumRowsWidths; ++i) {
    options->block_page_ns[i] =
        kHeadPageNs[i] * static_cast<float>(options->n_heads) * kMeasuredSms / static_cast<float>(n_sms);
  }
  options->sharing_ns = kSharingNs, options->sharing_row_ns = kSharingRowNs;
}

void MakeRowsPlan(const StepPlan& step, int min_rows, const RowsPlanOptions& options, RowsPlan* plan) {
  plan->Clear();
  Planner(step, options, plan).Run(min_rows);
  if (plan->fits) return;
  plan->Clear();
  plan->takes.assign(step.n_sequences(), 0);
  plan->fits = false;
}

}  // namespace t6::cuda
