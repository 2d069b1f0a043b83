#include "engine/cache/cache_manager.h"

#include <gtest/gtest.h>

#include <numeric>

namespace t6 {
namespace {

std::vector<int32_t> Range(int first, int n) {
  std::vector<int32_t> tokens(n);
  std::iota(tokens.begin(), tokens.end(), first);
  return tokens;
}

// Leaves `tokens` cached, as a sequence that ended does.
void Leave(CacheManager* cache, const std::vector<int32_t>& tokens) {
  PrefixTree::Cursor cursor = cache->NewCursor("", "", "");
  std::vector<PageRef> pages, replaced;
  while (pages.size() * kPageTokens < tokens.size()) pages.push_back(cache->TakePage());
  cache->Publish(&cursor, tokens, static_cast<int>(tokens.size()), &pages, &replaced);
  cache->Release(&cursor, &pages);
}

TEST(CacheManager, EvictsToHandOutAPage) {
  CacheManager cache(4, "m");
  Leave(&cache, Range(0, 4 * kPageTokens));
  EXPECT_EQ(cache.n_cached(), 4);
  EXPECT_EQ(cache.n_held(), 0);
  EXPECT_EQ(cache.n_available(), 4);
  std::vector<PageRef> pages;
  for (int i = 0; i < 3; ++i) {
    pages.push_back(cache.TakePage());
    ASSERT_TRUE(pages.back());
  }
  EXPECT_EQ(cache.n_held(), 3);
  EXPECT_EQ(cache.MatchLength(cache.NewCursor("", "", ""), Range(0, 200), 199), kPageTokens);  // leaves first
  pages.push_back(cache.TakePage());
  EXPECT_FALSE(cache.TakePage());
  EXPECT_EQ(cache.n_available(), 0);
}

TEST(CacheManager, AMatchKeepsItsPagesFromEviction) {
  CacheManager cache(2, "m");
  Leave(&cache, Range(0, 2 * kPageTokens));
  PrefixTree::Cursor cursor = cache.NewCursor("", "", "");
  PrefixMatch match = cache.Match(&cursor, Range(0, 100), 99);
  EXPECT_EQ(match.tokens(), 99);
  EXPECT_FALSE(cache.TakePage());
  EXPECT_EQ(cache.n_evicted(), 0);
  match.partial.Reset();
  EXPECT_TRUE(cache.TakePage());
  EXPECT_EQ(cache.n_evicted(), 1);
}

TEST(CacheManager, ClearDropsWhatNobodyHolds) {
  CacheManager cache(8, "m");
  Leave(&cache, Range(0, 300));
  Leave(&cache, Range(1000, 100));
  PrefixTree::Cursor cursor = cache.NewCursor("", "", "");
  {
    PrefixMatch match = cache.Match(&cursor, Range(1000, 70), 64);
    cache.Clear();
    EXPECT_EQ(cache.n_held(), 1);
    EXPECT_EQ(cache.n_cached(), 0);
  }
  EXPECT_EQ(cache.n_cached(), 1);
  cache.Clear();
  EXPECT_EQ(cache.n_available(), 8);
  EXPECT_EQ(cache.n_cached(), 0);
}

TEST(CacheManager, ModelsTenantsAdaptersAndSaltsAreApart) {
  CacheManager cache(4, "m");
  const PageKey key = cache.NewCursor("t", "a", "s").root();
  EXPECT_EQ(key, PageKey::Root("m", "t", "a", "s"));
  EXPECT_FALSE(CacheManager(4, "n").NewCursor("t", "a", "s").root() == key);
}

}  // namespace
}  // namespace t6
