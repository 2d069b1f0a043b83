#include "engine/cache/prefix_tree.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <random>

namespace t6 {
namespace {

using Tokens = std::vector<int32_t>;

Tokens Range(int first, int n) {
  Tokens tokens(n);
  std::iota(tokens.begin(), tokens.end(), first);
  return tokens;
}

Tokens Join(Tokens a, const Tokens& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

// What a sequence does with the tree, without a scheduler.
class Writer {
 public:
  Writer(PagePool* pool, PrefixTree* tree, std::string_view tenant = "")
      : pool_(pool), tree_(tree), cursor_(PageKey::Root("m", tenant, "", "")) {}
  ~Writer() { End(); }

  // Takes what is cached of `tokens`; a match inside a page is copied, that is, has a page of its own.
  int Start(const Tokens& tokens) {
    PrefixMatch match = tree_->Match(&cursor_, tokens, static_cast<int>(tokens.size()) - 1);
    pages_ = std::move(match.pages);
    if (match.partial_tokens > 0) pages_.push_back(pool_->Take());
    return static_cast<int>(pages_.size()) * kPageTokens -
           (match.partial_tokens > 0 ? kPageTokens - match.partial_tokens : 0);
  }
  void Write(const Tokens& tokens) {
    while (pages_.size() * kPageTokens < tokens.size()) pages_.push_back(pool_->Take());
    tree_->Publish(&cursor_, tokens, static_cast<int>(tokens.size()), &pages_, &replaced_);
  }
  void End() {
    tree_->Touch(cursor_);
    cursor_.Reset();
    pages_.clear();
    replaced_.clear();
  }
  const PageKey& key() const { return cursor_.key(); }
  int32_t page(int i) const { return pages_[i].id(); }
  const std::vector<PageRef>& replaced() const { return replaced_; }

 private:
  PagePool* pool_;
  PrefixTree* tree_;
  PrefixTree::Cursor cursor_;
  std::vector<PageRef> pages_, replaced_;
};

class PrefixTreeTest : public ::testing::Test {
 protected:
  int Length(const Tokens& tokens, std::string_view tenant = "") const {
    return tree_.MatchLength(PageKey::Root("m", tenant, "", ""), tokens, static_cast<int>(tokens.size()));
  }
  void Cache(const Tokens& tokens, std::string_view tenant = "") {
    Writer(&pool_, &tree_, tenant).Write(tokens);
  }

  PagePool pool_{100};
  PrefixTree tree_{&pool_};
};

TEST_F(PrefixTreeTest, MatchesInsideAPageTokenByToken) {
  Cache(Range(0, 100));
  EXPECT_EQ(Length(Range(0, 100)), 100);
  EXPECT_EQ(Length(Range(0, 200)), 100);
  EXPECT_EQ(Length(Range(0, 70)), 70);
  EXPECT_EQ(Length(Join(Range(0, 64), {1})), 64);
  EXPECT_EQ(Length(Join(Range(0, 10), {999})), 10);
  EXPECT_EQ(Length({5}), 0);
}

TEST_F(PrefixTreeTest, FindsTheBestOfChildrenThatShareTheirBeginnings) {
  Cache(Join(Range(0, 64), Join(Range(100, 10), Range(200, 20))));
  Cache(Join(Range(0, 64), Join(Range(100, 10), Range(300, 20))));
  Cache(Join(Range(0, 64), Join(Range(100, 12), Range(150, 2))));
  EXPECT_EQ(Length(Join(Range(0, 64), Join(Range(100, 10), Range(300, 64)))), 94);
  EXPECT_EQ(Length(Join(Range(0, 64), Join(Range(100, 10), Range(200, 5)))), 79);
  EXPECT_EQ(Length(Join(Range(0, 64), Range(100, 64))), 76);
  EXPECT_EQ(Length(Join(Range(0, 64), Join(Range(100, 10), {0}))), 74);
}

TEST_F(PrefixTreeTest, NothingIsSharedAcrossRoots) {
  Cache(Range(0, 100), "alice");
  EXPECT_EQ(Length(Range(0, 100), "alice"), 100);
  EXPECT_EQ(Length(Range(0, 100), "bob"), 0);
  const PageKey key = PageKey::Root("m", "t", "a", "s");
  EXPECT_EQ(key, PageKey::Root("m", "t", "a", "s"));
  for (const PageKey& other : {PageKey::Root("n", "t", "a", "s"), PageKey::Root("m", "u", "a", "s"),
                               PageKey::Root("m", "t", "b", "s"), PageKey::Root("m", "t", "a", "r"),
                               PageKey::Root("m", "ta", "", "s")}) {
    EXPECT_FALSE(key == other);
  }
}

TEST_F(PrefixTreeTest, KeysAreChainedAndDependOnTokensAlone) {
  Writer whole(&pool_, &tree_), grown(&pool_, &tree_, "other");
  whole.Write(Range(7, 130));
  const PageKey root = PageKey::Root("m", "", "", "");
  EXPECT_EQ(whole.key(), root.Child(Range(7, 64)).Child(Range(71, 64)));
  for (int n = 1; n <= 130; ++n) grown.Write(Range(7, n));  // a token at a time
  EXPECT_EQ(grown.key(), PageKey::Root("m", "other", "", "").Child(Range(7, 64)).Child(Range(71, 64)));
  // SHA-256 of 32 bytes and 64 little-endian numbers, computed elsewhere: keys outlive the process.
  PageKey zero;
  const PageKey child = zero.Child(Range(0, 64));
  EXPECT_EQ(child.bytes[0], 0x9f);
  EXPECT_EQ(child.bytes[31], 0x54);
}

TEST_F(PrefixTreeTest, WholePagesAreSharedAndTheRestIsToBeCopied) {
  Writer writer(&pool_, &tree_);
  writer.Write(Range(0, 100));
  PrefixTree::Cursor cursor(PageKey::Root("m", "", "", ""));
  const PrefixMatch match = tree_.Match(&cursor, Range(0, 90), 89);
  ASSERT_EQ(match.pages.size(), 1u);
  EXPECT_EQ(match.pages[0].id(), writer.page(0));
  EXPECT_EQ(match.partial.id(), writer.page(1));
  EXPECT_EQ(match.partial_tokens, 25);
  EXPECT_EQ(match.tokens(), 89);
  EXPECT_EQ(pool_.refs(writer.page(1)), 3);  // writer, tree, match
  EXPECT_EQ(cursor.n_full(), 1);
}

TEST_F(PrefixTreeTest, AMatchMayEndBeforeAFullPageDoes) {
  Cache(Range(0, 64));
  PrefixTree::Cursor cursor(PageKey::Root("m", "", "", ""));
  const PrefixMatch match = tree_.Match(&cursor, Range(0, 64), 63);
  EXPECT_EQ(match.pages.size(), 0u);
  EXPECT_EQ(match.partial_tokens, 63);
}

TEST_F(PrefixTreeTest, APartialPageGrowsAsItsOwnerWritesOn) {
  Writer writer(&pool_, &tree_);
  for (int n : {5, 6, 30, 63, 64, 65, 128}) {
    writer.Write(Range(0, n));
    EXPECT_EQ(Length(Range(0, 200)), n);
  }
  EXPECT_EQ(tree_.n_nodes(), 2);
  EXPECT_EQ(pool_.n_held(), 2);
}

TEST_F(PrefixTreeTest, EqualFullPagesBecomeOne) {
  Writer first(&pool_, &tree_), second(&pool_, &tree_);
  first.Write(Range(0, 70));
  second.Write(Range(0, 70));
  EXPECT_EQ(second.page(0), first.page(0));
  EXPECT_NE(second.page(1), first.page(1));  // only full ones
  ASSERT_EQ(second.replaced().size(), 1u);   // it had a page of its own until now
  EXPECT_EQ(tree_.n_nodes(), 2);
  second.Write(Join(Range(0, 70), {900}));
  first.Write(Join(Range(0, 70), {800}));
  EXPECT_EQ(Length(Join(Range(0, 70), {900})), 71);
  EXPECT_EQ(Length(Join(Range(0, 70), {800})), 71);
  EXPECT_EQ(tree_.n_nodes(), 3);
}

TEST_F(PrefixTreeTest, ALongerPageReplacesAShorterOneThatNobodyHolds) {
  Cache(Range(0, 40));
  EXPECT_EQ(pool_.n_cached_only(), 1);
  Writer next(&pool_, &tree_);
  EXPECT_EQ(next.Start(Range(0, 60)), 40);
  next.Write(Range(0, 60));
  EXPECT_EQ(tree_.n_nodes(), 1);
  EXPECT_EQ(pool_.n_cached_only(), 0);
  EXPECT_EQ(pool_.n_held(), 1);
}

TEST_F(PrefixTreeTest, GrowthThatChangesTheOrderAmongSiblingsIsFound) {
  Writer a(&pool_, &tree_), b(&pool_, &tree_);
  a.Write({1, 2});
  b.Write({1, 2, 3});  // behind a; a grows past it
  a.Write({1, 2, 5});
  EXPECT_EQ(Length({1, 2, 5, 6}), 3);
  EXPECT_EQ(Length({1, 2, 3, 6}), 3);
  b.Write({1, 2, 3, 4});
  EXPECT_EQ(Length({1, 2, 3, 4}), 4);
}

TEST_F(PrefixTreeTest, EvictsTheLeastRecentlyUsedLeafFirst) {
  Cache(Range(0, 128));     // two pages
  Cache(Range(1000, 128));  // two more, used later
  Writer reader(&pool_, &tree_);
  EXPECT_EQ(reader.Start(Range(0, 60)), 59);  // the first document is used again
  reader.End();
  EXPECT_TRUE(tree_.EvictOne());  // its second page was not
  EXPECT_EQ(Length(Range(0, 128)), 64);
  EXPECT_EQ(Length(Range(1000, 128)), 128);
  EXPECT_TRUE(tree_.EvictOne());
  EXPECT_EQ(Length(Range(1000, 128)), 64);
  EXPECT_TRUE(tree_.EvictOne());
  EXPECT_EQ(Length(Range(1000, 128)), 0);
  EXPECT_EQ(Length(Range(0, 128)), 64);
}

TEST_F(PrefixTreeTest, WhatIsHeldIsNotEvicted) {
  Writer holder(&pool_, &tree_);
  holder.Write(Range(0, 100));
  Cache(Range(500, 10));
  EXPECT_TRUE(tree_.EvictOne());
  EXPECT_FALSE(tree_.EvictOne());
  tree_.Clear();
  EXPECT_EQ(Length(Range(0, 100)), 100);
  holder.Write(Range(0, 140));  // and its owner can go on
  EXPECT_EQ(Length(Range(0, 140)), 140);
  holder.End();
  tree_.Clear();
  EXPECT_EQ(pool_.n_free(), 100);
  EXPECT_EQ(tree_.n_nodes(), 0);
}

// Against the obvious: the longest common prefix with anything ever published.
TEST_F(PrefixTreeTest, RandomMatchesAreTheTokenExactMaximum) {
  std::mt19937 random(5);
  PagePool pool(20000);
  PrefixTree tree(&pool);
  std::vector<Tokens> published;
  for (int round = 0; round < 600; ++round) {
    // Few letters and cuts of earlier ones: much is shared, and it ends anywhere.
    Tokens tokens;
    if (!published.empty() && random() % 4 != 0) {
      tokens = published[random() % published.size()];
      tokens.resize(random() % (tokens.size() + 1));
    }
    for (int n = 1 + random() % 150; n > 0; --n) tokens.push_back(random() % 2);
    size_t best = 0;
    for (const Tokens& other : published) {
      const size_t n = std::min(other.size(), tokens.size() - 1);
      best = std::max<size_t>(
          best, std::mismatch(other.begin(), other.begin() + n, tokens.begin()).first - other.begin());
    }
    Writer writer(&pool, &tree);
    ASSERT_EQ(writer.Start(tokens), static_cast<int>(best));
    for (size_t n = best; n < tokens.size();) {
      n = std::min(tokens.size(), n + 1 + random() % 90);
      writer.Write(Tokens(tokens.begin(), tokens.begin() + n));
    }
    published.push_back(tokens);
  }
  EXPECT_EQ(pool.n_held(), 0);
  tree.Clear();
  EXPECT_EQ(pool.n_free(), 20000);
}

}  // namespace
}  // namespace t6
