#include "engine/backend/cuda/rows_shares.h"

#include <algorithm>
#include <functional>
#include <numeric>
#include <queue>
#include <utility>

namespace t6::cuda {
namespace {

// A piece of fewer pages is not worth a task, unless no more are left.
constexpr int kLeastPages = 6;

class Lines {
 public:
  explicit Lines(const RowsWork& work) : work_(work), n_(work.n_multiprocessors) {}

  // Less than any deal takes.
  int64_t LowerBound() const {
    const auto& pages = work_.block_pages;
    return std::accumulate(pages.begin(), pages.end(), int64_t{0}) * work_.n_groups / n_;
  }

  // Whether all can be done in `time`; `to`, which is empty: so dealt, or null.
  bool Deal(int64_t time, RowsShares* to) const {
    const int splits = n_ / work_.n_groups;
    Place side_by_side;
    for (int split = 0; split < splits; ++split) {
      Place next;
      for (int group = 0; group < work_.n_groups; ++group) {
        next = side_by_side;
        int64_t left = TasksTime(time);
        Take(group, &next, &left, to);
        EndShare(to);
      }
      side_by_side = next;
    }
    int group = IsEnd(side_by_side) ? work_.n_groups : 0;
    Place at = side_by_side;
    for (int i = splits * work_.n_groups; i < n_; ++i) {
      int64_t left = TasksTime(time);
      while (group < work_.n_groups) {
        Take(group, &at, &left, to);
        if (!IsEnd(at)) break;
        ++group, at = side_by_side;
      }
      EndShare(to);
    }
    return group == work_.n_groups;
  }

 private:
  // In the blocks' pages, which follow each other.
  struct Place {
    int block = 0, page = 0;
  };

  bool IsEnd(const Place& at) const { return at.block == static_cast<int>(work_.block_pages.size()); }
  static void EndShare(RowsShares* to) {
    if (to != nullptr) to->begin.push_back(static_cast<int32_t>(to->pieces.size()));
  }

  // What tasks share that take next_task_time each, the first too.
  int64_t TasksTime(int64_t time) const { return time - kRowsTaskTime + work_.next_task_time; }

  // Pages from *at on, as long as *left lasts.
  void Take(int group, Place* at, int64_t* left, RowsShares* to) const {
    while (!IsEnd(*at)) {
      const int rest = work_.block_pages[at->block] - at->page;
      const int64_t most = *left - work_.next_task_time;
      if (most < std::min(rest, kLeastPages)) return;
      const int n = static_cast<int>(std::min<int64_t>(rest, most));
      if (to != nullptr) to->pieces.push_back({at->block, group, at->page, at->page + n});
      *left -= work_.next_task_time + n;
      at->page += n;
      if (n == rest) ++at->block, at->page = 0;
    }
  }

  const RowsWork& work_;
  const int n_;
};

}  // namespace

void DealEvenSplits(const RowsWork& work, const std::vector<int>& splits, RowsShares* shares) {
  std::vector<RowsPiece> pieces;
  for (int block = 0; block < static_cast<int>(work.block_pages.size()); ++block) {
    const int64_t pages = work.block_pages[block];
    for (int i = 0; i < splits[block]; ++i) {
      const int begin = static_cast<int>(pages * i / splits[block]);
      const int end = static_cast<int>(pages * (i + 1) / splits[block]);
      for (int group = 0; group < work.n_groups; ++group) pieces.push_back({block, group, begin, end});
    }
  }
  std::stable_sort(pieces.begin(), pieces.end(),
                   [](const RowsPiece& a, const RowsPiece& b) { return a.end - a.begin > b.end - b.begin; });
  using Load = std::pair<int64_t, int>;  // time, multiprocessor
  std::priority_queue<Load, std::vector<Load>, std::greater<>> loads;
  for (int i = 0; i < work.n_multiprocessors; ++i) loads.push({0, i});
  std::vector<std::vector<RowsPiece>> of(work.n_multiprocessors);
  *shares = {};
  for (const RowsPiece& piece : pieces) {
    const auto [load, i] = loads.top();
    const int64_t time = load + piece.end - piece.begin + kRowsTaskTime;
    loads.pop(), loads.push({time, i});
    of[i].push_back(piece);
    shares->time = std::max(shares->time, time);
  }
  shares->begin.push_back(0);
  for (const std::vector<RowsPiece>& own : of) {
    shares->pieces.insert(shares->pieces.end(), own.begin(), own.end());
    shares->begin.push_back(static_cast<int32_t>(shares->pieces.size()));
  }
}

bool DealLines(const RowsWork& work, int64_t most, RowsShares* shares) {
  const Lines lines(work);
  int64_t too_short = lines.LowerBound();
  if (--most <= too_short || !lines.Deal(most, nullptr)) return false;
  while (most - too_short > 1) {
    const int64_t time = (too_short + most) / 2;
    (lines.Deal(time, nullptr) ? most : too_short) = time;
  }
  *shares = {};
  shares->begin.push_back(0), shares->time = most;
  return lines.Deal(most, shares);
}

}  // namespace t6::cuda
