// Who attends to what in one step's attention of several rows: made on the host from the step's plan, read by
// the kernels from device memory, so that nothing but grids depends on it. Pure host code, no device needed.
//
// Rows that attend to the same pages form a block: consecutive rows of a sequence, or one row of each
// sequence on a shared prefix. Its heads are in groups, and for each group its pages are cut into pieces,
// tasks of the rows kernel (rows_shares.h). Long chunks of one sequence become tiles of the prefill kernel
// instead.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "engine/schedule/step_plan.h"

namespace t6::cuda {

// 48 bytes. Some pages of a block, for a group of heads.
struct alignas(16) RowsTask {
  int32_t row, n_rows;                    // of the queries
  int32_t page_offset, n_pages;           // of its pages in page_ids
  int32_t first_token;                    // position of the first page's first token
  int32_t n_tokens;                       // the sequence's: from this position on nothing exists
  int32_t first_position, position_step;  // row i sees positions up to first_position + i * position_step
  int32_t head;                           // first of the group
  int32_t partial_row;  // row i's partial result is row partial_row + i; -1: none, it writes the output
  int32_t first_new;    // position from which on the step itself writes the pages
  int32_t reserved;
};
static_assert(sizeof(RowsTask) == 48);

// An output row made of partial results: rows begin[k] + i * stride[k], i < n[k], of both runs.
struct RowsMerge {
  int32_t row;
  int32_t begin[2], n[2], stride[2];
};

// Partial rows [begin, end) that some heads do not have: merges read them, so they must weigh nothing.
struct EmptyPartials {
  int32_t begin, end;
};

// Up to so many rows of one sequence, from first_position on, whose expanded keys and values lie from
// `scratch_token` on; sorted by descending context.
struct alignas(16) PrefillTile {
  int32_t row, n_rows, first_position, scratch_token;
};

// One page of factors to be expanded; id < 0: zeros.
struct ExpandPage {
  int32_t id, n_tokens, scratch_token;
};

// The widths of query blocks that the rows kernel is compiled for.
inline constexpr int kRowsWidths[] = {16, 32, 56, 64};
inline constexpr int kNumRowsWidths = 4;
inline constexpr int kMaxBlockRows = 64;

struct RowsPlanOptions {
  int n_blocks = 0;  // multiprocessors
  int n_heads = 0;
  int group_heads[kNumRowsWidths] = {};        // heads of a task, for each width
  int cluster[kNumRowsWidths] = {1, 1, 1, 1};  // multiprocessors that do a task together, likewise
  // What a task takes besides its pages, in pages, behind another one on the same multiprocessor; measured.
  int next_task_pages[kNumRowsWidths] = {4, 4, 8, 8};
  int max_partial_rows = 0;
  // Chunks of at least so many rows go to the prefill kernel, where their tokens fit, and those of more than
  // a block on a short context; 0: none do.
  int min_prefill_rows = 0;
  int prefill_tile_rows = 0, prefill_block_tokens = 0;
  int max_scratch_tokens = 0;
  bool stores_rows = false;  // the step's own tokens come to the scratch from their rows, not from pages
  bool prefill_only =
      false;  // nothing for the rows kernel: no sharing, and a plan without room for all is none
  bool always_merges = false;  // every row of the rows kernel goes through the combine (head norm)
  // Rows share a prefix only where that is faster, in nanoseconds: a page for one row alone, a page for a
  // block of each width, and what sharing costs besides, at all and for each row. All 0: always.
  float single_page_ns = 0.0f, block_page_ns[kNumRowsWidths] = {}, sharing_ns = 0.0f, sharing_row_ns = 0.0f;
};

// Sets those, as measured, for n_heads of the options.
void SetSharingCosts(size_t page_bytes, int n_sms, RowsPlanOptions* options);

// Tasks of one width, dealt to multiprocessors or clusters of them (empty where there is none): b has tasks
// block_begin[b] .. block_begin[b + 1] - 1.
struct RowsTasks {
  std::vector<RowsTask> tasks;
  std::vector<int32_t> block_begin;
};

struct RowsPlan {
  RowsTasks by_width[kNumRowsWidths];
  std::vector<RowsMerge> merges;
  std::vector<EmptyPartials> empties;
  std::vector<PrefillTile> tiles;
  std::vector<ExpandPage> expands;
  // With stores_rows: pages' tokens from before the step, each row's token in scratch (-1: none), and behind
  // these what is no sequence's.
  std::vector<ExpandPage> old_expands;
  std::vector<int32_t> scratch_tokens;
  int n_zeros = 0;  // of the latter
  int n_scratch_tokens = 0;
  std::vector<uint8_t> takes;  // [n_sequences] 1: every row of the sequence is in this plan
  bool fits = true;            // false: with prefill_only, and then nothing is planned

  bool empty() const { return merges.empty() && tiles.empty() && !has_tasks(); }
  bool has_tasks() const {
    for (const RowsTasks& t : by_width) {
      if (!t.tasks.empty()) return true;
    }
    return false;
  }
  void Clear();
};

// Plans every sequence of at least min_rows rows, and with them whole groups of a shared prefix. Reuses the
// plan's memory.
void MakeRowsPlan(const StepPlan& step, int min_rows, const RowsPlanOptions& options, RowsPlan* plan);

}  // namespace t6::cuda
