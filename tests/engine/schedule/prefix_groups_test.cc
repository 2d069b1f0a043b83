#include "engine/schedule/prefix_groups.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>

namespace t6 {
namespace {

using Lists = std::vector<std::vector<int32_t>>;

struct Grouped {
  std::vector<int> order;
  std::vector<SharedPrefix> groups;
  int64_t saved() const {
    int64_t pages = 0;
    for (const SharedPrefix& group : groups) pages += int64_t{group.n_sequences - 1} * group.n_pages;
    return pages;
  }
};

Grouped Group(const Lists& lists) {
  Grouped grouped;
  const std::vector<PageList> views(lists.begin(), lists.end());
  GroupByPrefix(views, &grouped.order, &grouped.groups);
  return grouped;
}

void ExpectValid(const Lists& lists, const Grouped& grouped) {
  std::vector<int> sorted = grouped.order;
  std::sort(sorted.begin(), sorted.end());
  for (size_t i = 0; i < lists.size(); ++i) ASSERT_EQ(sorted[i], static_cast<int>(i));
  int end = 0;
  for (const SharedPrefix& group : grouped.groups) {
    ASSERT_GE(group.first_sequence, end);
    ASSERT_GE(group.n_sequences, 2);
    ASSERT_GE(group.n_pages, 1);
    end = group.first_sequence + group.n_sequences;
    ASSERT_LE(end, static_cast<int>(lists.size()));
    const auto& first = lists[grouped.order[group.first_sequence]];
    for (int i = group.first_sequence; i < end; ++i) {
      const auto& list = lists[grouped.order[i]];
      ASSERT_GE(static_cast<int>(list.size()), group.n_pages);
      ASSERT_TRUE(std::equal(list.begin(), list.begin() + group.n_pages, first.begin()));
    }
  }
}

TEST(PrefixGroups, NothingSharedIsNoGroup) {
  EXPECT_TRUE(Group({}).groups.empty());
  EXPECT_TRUE(Group({{1, 2}}).groups.empty());
  const Grouped grouped = Group({{3}, {1, 2}, {2}});
  EXPECT_TRUE(grouped.groups.empty());
  ExpectValid({{3}, {1, 2}, {2}}, grouped);
}

TEST(PrefixGroups, BringsTogetherWhatSharesADocument) {
  const Lists lists = {{1, 2, 3, 10}, {5, 6, 11}, {1, 2, 3, 12}, {7}, {5, 6, 13}, {1, 2, 3, 14}};
  const Grouped grouped = Group(lists);
  ExpectValid(lists, grouped);
  ASSERT_EQ(grouped.groups.size(), 2u);
  EXPECT_EQ(grouped.groups[0].n_sequences, 3);
  EXPECT_EQ(grouped.groups[0].n_pages, 3);
  EXPECT_EQ(grouped.groups[1].n_sequences, 2);
  EXPECT_EQ(grouped.groups[1].n_pages, 2);
}

TEST(PrefixGroups, TwoLongDocumentsUnderOneSystemPromptStayApart) {
  // One group of four would save 3 pages, two groups of two save 8.
  const Lists lists = {{1, 2, 3, 4, 10}, {1, 5, 6, 7, 11}, {1, 2, 3, 4, 12}, {1, 5, 6, 7, 13}};
  const Grouped grouped = Group(lists);
  ExpectValid(lists, grouped);
  EXPECT_EQ(grouped.groups.size(), 2u);
  EXPECT_EQ(grouped.saved(), 8);
}

TEST(PrefixGroups, ManyQuestionsUnderOneSystemPromptAreOneGroup) {
  Lists lists;
  for (int i = 0; i < 10; ++i) lists.push_back({1, 2, 100 + i});
  lists.push_back({1, 2, 100, 200});  // shares a page more with one of them: not worth a group of its own
  const Grouped grouped = Group(lists);
  ExpectValid(lists, grouped);
  ASSERT_EQ(grouped.groups.size(), 1u);
  EXPECT_EQ(grouped.saved(), 20);
}

TEST(PrefixGroups, RandomTreesGiveValidGroups) {
  std::mt19937 random(9);
  for (int round = 0; round < 300; ++round) {
    Lists lists;
    int next_page = 0;
    for (int n = 1 + random() % 40; n > 0; --n) {
      std::vector<int32_t> list;
      if (!lists.empty() && random() % 3 != 0) {
        list = lists[random() % lists.size()];
        list.resize(random() % (list.size() + 1));
      }
      for (int more = 1 + random() % 5; more > 0; --more) list.push_back(next_page++);
      lists.push_back(std::move(list));
    }
    const Grouped grouped = Group(lists);
    ExpectValid(lists, grouped);
    ASSERT_FALSE(HasFailure());
    // At least as good as one group for each first page.
    int64_t simple = 0;
    for (size_t i = 0; i < lists.size(); ++i) {
      for (size_t j = 0; j < i; ++j) {
        if (lists[j][0] == lists[i][0]) {
          ++simple;
          break;
        }
      }
    }
    EXPECT_GE(grouped.saved(), simple);
  }
}

}  // namespace
}  // namespace t6
