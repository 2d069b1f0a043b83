// The one door to pages: finds cached prefixes, hands out pages (evicting prefixes that no sequence holds
// when the pool is empty), publishes what was written. Owns the pool and the prefix tree; must outlive every
// PageRef. Engine thread only.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "absl/types/span.h"
#include "engine/cache/page_pool.h"
#include "engine/cache/prefix_tree.h"

namespace t6 {

class CacheManager {
 public:
  // `model`: names the weights, their type and the cache's, so that a stored page can never meet another
  // model.
  CacheManager(int n_pages, std::string_view model);

  PrefixTree::Cursor NewCursor(std::string_view tenant, std::string_view adapter,
                               std::string_view salt) const;

  PrefixMatch Match(PrefixTree::Cursor* cursor, absl::Span<const int32_t> tokens, int max_tokens) {
    return tree_.Match(cursor, tokens, max_tokens);
  }
  int MatchLength(const PrefixTree::Cursor& cursor, absl::Span<const int32_t> tokens, int max_tokens) const {
    return tree_.MatchLength(cursor.root(), tokens, max_tokens);
  }
  void Publish(PrefixTree::Cursor* cursor, absl::Span<const int32_t> tokens, int n_written,
               std::vector<PageRef>* pages, std::vector<PageRef>* replaced) {
    tree_.Publish(cursor, tokens, n_written, pages, replaced);
  }
  // Gives a sequence's pages back; what it published stays, as the most recently used.
  void Release(PrefixTree::Cursor* cursor, std::vector<PageRef>* pages);

  // A page whose contents are undefined; empty when sequences hold them all.
  PageRef TakePage();
  // Drops every prefix that no sequence holds.
  void Clear() { tree_.Clear(); }

  int n_pages() const { return pool_.n_pages(); }
  int n_held() const { return pool_.n_held(); }           // by sequences, and by steps in flight
  int n_cached() const { return pool_.n_cached_only(); }  // by the tree alone
  int n_available() const { return pool_.n_free() + pool_.n_cached_only(); }
  int64_t n_evicted() const { return n_evicted_; }  // cached pages that TakePage has taken from the tree
  bool is_free(int32_t page) const { return pool_.refs(page) == 0; }  // its contents may be poisoned
  const PrefixTree& tree() const { return tree_; }

 private:
  const std::string model_;
  PagePool pool_;
  PrefixTree tree_;
  int64_t n_evicted_ = 0;
};

}  // namespace t6
