#include "engine/cache/factor_cache.h"

#include <algorithm>
#include <vector>

namespace t6 {

StatusOr<std::unique_ptr<FactorCache>> FactorCache::Create(Backend* backend, const PageLayout& layout,
                                                           int n_layers, int n_pages) {
  std::unique_ptr<FactorCache> cache(new FactorCache(backend, layout, n_layers, n_pages));
  const size_t bytes = static_cast<size_t>(n_layers) * static_cast<size_t>(n_pages) * layout.page_bytes();
  T6_ASSIGN_OR_RETURN(cache->memory_, backend->Allocate(bytes));
#ifndef NDEBUG
  T6_RETURN_IF_ERROR(cache->Poison());
#endif
  return cache;
}

LayerPages FactorCache::layer(int index) const {
  const size_t layer_bytes = static_cast<size_t>(n_pages_) * layout_.page_bytes();
  return {memory_->as<uint8_t>() + static_cast<size_t>(index) * layer_bytes, &layout_, n_pages_};
}

Status FactorCache::CopyAndClear() {
  return backend_->CopyAndClearPages({memory_->as<uint8_t>(), &layout_, n_layers_, n_pages_});
}

Status FactorCache::Poison() {
  // All bits set is a NaN in every float format that a page can hold.
  const std::vector<uint8_t> ones(size_t{1} << 20, 0xff);
  for (size_t at = 0; at < memory_->size(); at += ones.size()) {
    const size_t n = std::min(ones.size(), memory_->size() - at);
    T6_RETURN_IF_ERROR(backend_->Upload(memory_->as<uint8_t>() + at, ones.data(), n));
  }
  return {};
}

}  // namespace t6
