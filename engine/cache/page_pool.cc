#include "engine/cache/page_pool.h"

#include "engine/base/check.h"

namespace t6 {

PageRef PageRef::Share() const {
  if (pool_ != nullptr) pool_->Ref(id_);
  return PageRef(pool_, id_);
}

void PageRef::Reset() {
  if (pool_ == nullptr) return;
  std::exchange(pool_, nullptr)->Unref(std::exchange(id_, -1));
}

PagePool::PagePool(int n_pages) : refs_(n_pages, 0), cached_(n_pages, false) {
  free_.reserve(n_pages);
  for (int id = n_pages - 1; id >= 0; --id) free_.push_back(id);
}

PagePool::~PagePool() {
  T6_CHECK(n_free() == n_pages(), "{} of {} pages are still held", n_pages() - n_free(), n_pages());
}

PageRef PagePool::Take() {
  if (free_.empty()) return {};
  const int32_t id = free_.back();
  free_.pop_back();
  refs_[id] = 1;
  return PageRef(this, id);
}

void PagePool::SetCached(int32_t id, bool cached) {
  T6_CHECK(refs_[id] > 0 && cached_[id] != cached, "page {}", id);
  cached_[id] = cached;
  if (refs_[id] == 1) n_cached_only_ += cached ? 1 : -1;
}

void PagePool::Ref(int32_t id) {
  if (refs_[id]++ == 1 && cached_[id]) --n_cached_only_;
}

void PagePool::Unref(int32_t id) {
  T6_CHECK(refs_[id] > 0, "page {} is free", id);
  if (--refs_[id] == 0) {
    T6_CHECK(!cached_[id], "page {} leaves the pool while the tree names it", id);
    free_.push_back(id);
  } else if (refs_[id] == 1 && cached_[id]) {
    ++n_cached_only_;
  }
}

}  // namespace t6
