#include "engine/cache/page_pool.h"

#include <gtest/gtest.h>

#include <set>

namespace t6 {
namespace {

TEST(PagePool, HandsOutEachPageOnceAndThenNone) {
  PagePool pool(3);
  std::vector<PageRef> held;
  std::set<int32_t> ids;
  for (int i = 0; i < 3; ++i) {
    held.push_back(pool.Take());
    ASSERT_TRUE(held.back());
    ids.insert(held.back().id());
  }
  EXPECT_EQ(ids, (std::set<int32_t>{0, 1, 2}));
  EXPECT_FALSE(pool.Take());
  const int32_t back = held[1].id();
  held.erase(held.begin() + 1);
  EXPECT_EQ(pool.n_free(), 1);
  EXPECT_EQ(pool.Take().id(), back);
}

TEST(PagePool, APageIsFreeWhenItsLastHolderIsGone) {
  PagePool pool(1);
  PageRef a = pool.Take();
  PageRef b = a.Share();
  EXPECT_EQ(pool.refs(0), 2);
  PageRef moved = std::move(a);
  EXPECT_FALSE(a);
  EXPECT_EQ(pool.refs(0), 2);
  moved = std::move(b);  // assignment gives back what was there
  EXPECT_EQ(pool.refs(0), 1);
  EXPECT_EQ(pool.n_free(), 0);
  moved.Reset();
  EXPECT_EQ(pool.n_free(), 1);
}

TEST(PagePool, SharingNothingIsNothing) {
  PagePool pool(1);
  EXPECT_FALSE(PageRef().Share());
  EXPECT_EQ(PageRef().id(), -1);
}

TEST(PagePool, CountsPagesThatOnlyTheTreeHolds) {
  PagePool pool(2);
  PageRef tree = pool.Take();
  PageRef sequence = tree.Share();
  pool.SetCached(tree.id(), true);
  EXPECT_EQ(pool.n_cached_only(), 0);
  EXPECT_EQ(pool.n_held(), 1);
  sequence.Reset();
  EXPECT_EQ(pool.n_cached_only(), 1);
  EXPECT_EQ(pool.n_held(), 0);
  sequence = tree.Share();
  EXPECT_EQ(pool.n_cached_only(), 0);
  sequence.Reset();
  pool.SetCached(tree.id(), false);
  EXPECT_EQ(pool.n_cached_only(), 0);
  EXPECT_EQ(pool.n_held(), 1);
}

}  // namespace
}  // namespace t6
