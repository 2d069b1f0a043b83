#include "engine/schedule/prefix_groups.h"

#include <algorithm>
#include <numeric>

namespace t6 {
namespace {

int CommonPages(PageList a, PageList b) {
  int same = 0, different = static_cast<int>(std::min(a.size(), b.size())) + 1;  // in pages, by bisection
  while (different - same > 1) {
    const int n = same + (different - same) / 2;
    (a[n - 1] == b[n - 1] ? same : different) = n;
  }
  return same;
}

bool Before(PageList a, PageList b) {
  const size_t n = CommonPages(a, b);
  if (n == a.size() || n == b.size()) return a.size() < b.size();
  return a[n] < b[n];
}

// Cuts lists first..last-1, neighbours of which share `common` pages (common[i]: i and i+1), into the groups
// that save the most: a group of m that shares p pages saves (m - 1) p reads.
void CutIntoGroups(int first, int last, const std::vector<int>& common, std::vector<SharedPrefix>* groups) {
  const int n = last - first;
  std::vector<int64_t> best(n + 1, 0);  // of the first i lists
  std::vector<int> begin(n + 1, 0), shared(n + 1, 0);
  for (int end = 1; end <= n; ++end) {
    best[end] = best[end - 1], begin[end] = end - 1;
    int pages = INT32_MAX;
    for (int b = end - 2; b >= 0; --b) {
      pages = std::min(pages, common[first + b]);
      const int64_t saved = best[b] + int64_t{end - b - 1} * pages;
      if (saved > best[end]) best[end] = saved, begin[end] = b, shared[end] = pages;
    }
  }
  const size_t size_before = groups->size();
  for (int end = n; end > 0; end = begin[end]) {
    if (end - begin[end] > 1) groups->push_back({first + begin[end], end - begin[end], shared[end]});
  }
  std::reverse(groups->begin() + size_before, groups->end());
}

}  // namespace

void GroupByPrefix(absl::Span<const PageList> lists, std::vector<int>* order,
                   std::vector<SharedPrefix>* groups) {
  const int n = static_cast<int>(lists.size());
  order->resize(n);
  std::iota(order->begin(), order->end(), 0);
  groups->clear();
  std::stable_sort(order->begin(), order->end(), [&](int a, int b) { return Before(lists[a], lists[b]); });
  std::vector<int> common(n, 0);
  for (int i = 0; i + 1 < n; ++i) common[i] = CommonPages(lists[(*order)[i]], lists[(*order)[i + 1]]);
  for (int first = 0; first < n;) {
    int last = first + 1;
    while (common[last - 1] > 0) ++last;  // common[n - 1] is 0
    if (last - first > 1) CutIntoGroups(first, last, common, groups);
    first = last;
  }
}

}  // namespace t6
