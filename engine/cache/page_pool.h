// Page ids with reference counts and a free list. A page id names the same slot of the factor cache in every
// layer; this room never sees the bytes. Engine thread only. The pool must outlive every PageRef.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

namespace t6 {

class PagePool;

// One holder's share of a page; gives it back when destroyed. Empty when default-made or moved from.
class PageRef {
 public:
  PageRef() = default;
  PageRef(PageRef&& other) noexcept
      : pool_(std::exchange(other.pool_, nullptr)), id_(std::exchange(other.id_, -1)) {}
  PageRef& operator=(PageRef&& other) noexcept {
    if (this != &other) {
      Reset();
      pool_ = std::exchange(other.pool_, nullptr), id_ = std::exchange(other.id_, -1);
    }
    return *this;
  }
  ~PageRef() { Reset(); }

  explicit operator bool() const { return pool_ != nullptr; }
  int32_t id() const { return id_; }  // -1 when empty
  PageRef Share() const;              // one more holder of the same page
  void Reset();

 private:
  friend class PagePool;
  PageRef(PagePool* pool, int32_t id) : pool_(pool), id_(id) {}

  PagePool* pool_ = nullptr;
  int32_t id_ = -1;
};

class PagePool {
 public:
  explicit PagePool(int n_pages);
  ~PagePool();  // every page must have been given back
  PagePool(const PagePool&) = delete;
  PagePool& operator=(const PagePool&) = delete;

  PageRef Take();  // empty when no page is free

  // The prefix tree marks the pages that it holds, so that those which nobody else holds can be counted.
  void SetCached(int32_t id, bool cached);

  int n_pages() const { return static_cast<int>(refs_.size()); }
  int n_free() const { return static_cast<int>(free_.size()); }
  int n_cached_only() const { return n_cached_only_; }  // held by the prefix tree alone
  int n_held() const { return n_pages() - n_free() - n_cached_only_; }
  int refs(int32_t id) const { return refs_[id]; }

 private:
  friend class PageRef;
  void Ref(int32_t id);
  void Unref(int32_t id);

  std::vector<int32_t> refs_;  // [n_pages]
  std::vector<bool> cached_;   // [n_pages]
  std::vector<int32_t> free_;  // last given back, first taken: its bytes may still be in the CPU's cache
  int n_cached_only_ = 0;
};

}  // namespace t6
