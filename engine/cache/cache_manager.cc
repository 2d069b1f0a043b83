#include "engine/cache/cache_manager.h"

namespace t6 {

CacheManager::CacheManager(int n_pages, std::string_view model)
    : model_(model), pool_(n_pages), tree_(&pool_) {}

PrefixTree::Cursor CacheManager::NewCursor(std::string_view tenant, std::string_view adapter,
                                           std::string_view salt) const {
  return PrefixTree::Cursor(PageKey::Root(model_, tenant, adapter, salt));
}

void CacheManager::Release(PrefixTree::Cursor* cursor, std::vector<PageRef>* pages) {
  tree_.Touch(*cursor);
  cursor->Reset();
  pages->clear();
}

PageRef CacheManager::TakePage() {
  PageRef page = pool_.Take();
  if (!page && tree_.EvictOne()) {
    ++n_evicted_;
    page = pool_.Take();
  }
  return page;
}

}  // namespace t6
