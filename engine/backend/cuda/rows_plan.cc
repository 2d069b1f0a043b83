#include "engine/backend/cuda/rows_plan.h"

#include <algorithm>
#include <limits>

#include "engine/backend/cuda/rows_shares.h"
#include "engine/base/page_tokens.h"

namespace t6::cuda {
namespace {

// Measured: 128 rows on 1k are faster as a chunk, 200 on 2k as blocks.
constexpr int kShortContext = 9;
// Pages from which on a block may be cut anywhere.
constexpr int kLongBlock = 64;
constexpr int kSeesAll = std::numeric_limits<int32_t>::max() / 2;

int CeilDiv(int64_t x, int64_t y) { return static_cast<int>((x + y - 1) / y); }
int WidthOf(int n_rows) {
  int i = 0;
  while (kRowsWidths[i] < n_rows) ++i;
  return i;
}

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
    for (int width = 0; width < kNumRowsWidths; ++width) DealTasks(width);
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
    // The short tile is the first, which sees least; the others begin where a warpgroup's would.
    const int all = options_.prefill_tile_rows, part = all / 3, end = step_.row_begin[s + 1];
    int n = CeilDiv((end - step_.row_begin[s]) % all, part) * part;
    if (n == 0) n = all;
    for (int row = step_.row_begin[s]; row < end; row += n, n = all) {
      n = std::min(n, end - row);
      plan_.tiles.push_back({row, n, first_position(s) + row - step_.row_begin[s], base});
    }
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

  // The width's blocks and what they take, for `work_` and `shares_`.
  void CollectWork(int width) {
    own_.clear(), work_.block_pages.clear();
    for (const Block& b : blocks_) {
      if (b.width == width) own_.push_back(&b), work_.block_pages.push_back(b.task.n_pages);
    }
    work_.n_groups = CeilDiv(options_.n_heads, options_.group_heads[width]);
    work_.n_multiprocessors = std::max(1, options_.n_blocks / options_.cluster[width]);
    work_.next_task_time = options_.next_task_pages[width];
  }

  // Partial rows for as many pieces of a block as one group has, and whether there is room for them and for
  // those that the widths to come cannot do without.
  bool HasRoom(int width, const std::vector<int>& pieces) const {
    int64_t rows = partial_rows_;
    for (const Block& b : blocks_) rows += b.width > width && b.is_merged ? b.task.n_rows : 0;
    for (size_t i = 0; i < own_.size(); ++i) {
      if (pieces[i] > 1 || own_[i]->is_merged) rows += int64_t{pieces[i]} * own_[i]->task.n_rows;
    }
    return rows <= options_.max_partial_rows;
  }

  // Blocks of at most `pages` a split.
  void ConsiderSplits(int width, int64_t pages, RowsShares* best) {
    splits_.clear();
    for (const int n : work_.block_pages) splits_.push_back(CeilDiv(n, std::max<int64_t>(pages, 1)));
    if (!HasRoom(width, splits_)) return;
    DealEvenSplits(work_, splits_, &shares_);
    if (best->pieces.empty() || shares_.time < best->time) std::swap(*best, shares_);
  }

  // The most pieces that a group of heads has of each block.
  void CountPieces(const RowsShares& shares) {
    counts_.assign(own_.size() * work_.n_groups, 0), splits_.assign(own_.size(), 0);
    for (const RowsPiece& piece : shares.pieces) {
      const int n = ++counts_[piece.block * work_.n_groups + piece.group];
      splits_[piece.block] = std::max(splits_[piece.block], n);
    }
  }

  // Lines that end sooner than `most`, to shares_.
  bool ConsiderLines(int width, int64_t most) {
    const int least_pages = *std::min_element(work_.block_pages.begin(), work_.block_pages.end());
    if (least_pages < kLongBlock || !DealLines(work_, most, &shares_)) return false;
    CountPieces(shares_);
    return HasRoom(width, splits_);
  }

  RowsShares ChooseShares(int width) {
    int64_t total = 0;
    for (const int n : work_.block_pages) total += int64_t{n} * work_.n_groups;
    // What follows takes the host as long as a layer: not where there is next to nothing to be won.
    if (ConsiderLines(width, total / work_.n_multiprocessors + 2 * work_.next_task_time)) return shares_;
    const int most_pages = *std::max_element(work_.block_pages.begin(), work_.block_pages.end());
    RowsShares best;
    splits_.assign(own_.size(), 1);
    DealEvenSplits(work_, splits_, &best);
    for (int waves = 1; waves <= 3; ++waves) {
      const int64_t share = CeilDiv(total, static_cast<int64_t>(work_.n_multiprocessors) * waves);
      ConsiderSplits(width, share, &best);
      ConsiderSplits(width, share + share / 16 + 1, &best);
      const int splits = work_.n_multiprocessors * waves / work_.n_groups;
      if (splits > 0) ConsiderSplits(width, CeilDiv(most_pages, splits), &best);
    }
    return ConsiderLines(width, best.time) ? shares_ : best;
  }

  void DealTasks(int width) {
    CollectWork(width);
    if (own_.empty()) return;
    const RowsShares shares = ChooseShares(width);
    CountPieces(shares);
    std::vector<int> first_partial(own_.size(), -1);
    for (size_t i = 0; i < own_.size(); ++i) {
      if (splits_[i] == 1 && !own_[i]->is_merged) continue;
      AddMerges(*own_[i], splits_[i], counts_.data() + i * work_.n_groups);
      first_partial[i] = partial_rows_;
      partial_rows_ += splits_[i] * own_[i]->task.n_rows;
    }
    RowsTasks& dealt = plan_.by_width[width];
    dealt.block_begin = shares.begin;
    std::vector<int> done(counts_.size(), 0);
    for (const RowsPiece& piece : shares.pieces) {
      const Block& block = *own_[piece.block];
      RowsTask task = block.task;
      const int at = piece.block * work_.n_groups + piece.group;
      task.page_offset += piece.begin, task.first_token += piece.begin * kPageTokens;
      task.n_pages = piece.end - piece.begin, task.head = piece.group * options_.group_heads[width];
      const int first = first_partial[piece.block];
      task.partial_row = first < 0 ? -1 : first + done[at]++ * task.n_rows;
      dealt.tasks.push_back(task);
    }
  }

  // n_partials: of each group of heads, at most `most`.
  void AddMerges(const Block& block, int most, const int* n_partials) {
    const int n_rows = block.task.n_rows, least = *std::min_element(n_partials, n_partials + work_.n_groups);
    if (least < most) {
      plan_.empties.push_back({partial_rows_ + least * n_rows, partial_rows_ + most * n_rows});
    }
    for (int i = 0; i < n_rows; ++i) {
      if (merge_of_.empty()) merge_of_.assign(step_.n_rows(), -1);
      int& merge = merge_of_[block.task.row + i];
      if (merge < 0) {
        merge = static_cast<int>(plan_.merges.size());
        plan_.merges.push_back({block.task.row + i, {0, 0}, {0, 0}, {0, 0}});
      }
      RowsMerge& m = plan_.merges[merge];
      m.begin[block.run] = partial_rows_ + i, m.n[block.run] = most;
      m.stride[block.run] = n_rows;
    }
  }

  const StepPlan& step_;
  const RowsPlanOptions& options_;
  RowsPlan& plan_;
  std::vector<Block> blocks_;
  std::vector<int> merge_of_;  // a row's index in plan.merges
  std::vector<int32_t> zeros_;
  // Of the width that is being dealt.
  std::vector<const Block*> own_;
  RowsWork work_;
  RowsShares shares_;
  std::vector<int> splits_, counts_;  // pieces of each block: of the group with most, of each group
  int merged_rows_ = 0, partial_rows_ = 0;
};

}  // namespace

void RowsPlan::Clear() {
  for (RowsTasks& t : by_width) t.tasks.clear(), t.block_begin.clear();
  merges.clear(), empties.clear(), tiles.clear(), expands.clear(), takes.clear();
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
