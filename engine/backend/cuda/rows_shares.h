// How one width's work is dealt to multiprocessors so that all end at the same time. The work is the pages of
// some blocks of rows, once for every group of heads. Pure host code. Times are in pages: what a page of one
// group takes a multiprocessor.
#pragma once

#include <cstdint>
#include <vector>

namespace t6::cuda {

inline constexpr int kRowsTaskTime = 4;  // what a task takes besides its pages

struct RowsWork {
  std::vector<int> block_pages;
  int n_groups = 0;  // of heads
  int n_multiprocessors = 0;
  int next_task_time = kRowsTaskTime;  // for DealLines: of one behind another on the same multiprocessor
};

// Pages [begin, end) of a block for one group of heads: a task.
struct RowsPiece {
  int block, group, begin, end;
};

struct RowsShares {
  std::vector<RowsPiece> pieces;
  std::vector<int32_t> begin;  // multiprocessor i has pieces begin[i] .. begin[i + 1] - 1
  int64_t time = 0;            // until the last multiprocessor ends
};

// Every block in so many equal splits, the longest dealt first.
void DealEvenSplits(const RowsWork& work, const std::vector<int>& splits, RowsShares* shares);

// The blocks' pages as one line for every group, cut where a multiprocessor's time is up: first all groups
// side by side, so that they find their pages in L2, as often as there are multiprocessors for all of them;
// the others do the rest, group by group. False, and nothing is dealt, where that takes `most` or longer.
bool DealLines(const RowsWork& work, int64_t most, RowsShares* shares);

}  // namespace t6::cuda
