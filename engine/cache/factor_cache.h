// The bytes of the factor pages, of every layer: [n_layers][n_pages][page_bytes] on the device. One page id
// names the same slot in every layer. Owns the memory; which page holds what is the cache manager's affair.
#pragma once

#include <memory>

#include "engine/backend/backend.h"

namespace t6 {

class FactorCache {
 public:
  // RESOURCE_EXHAUSTED when the device cannot give n_layers * n_pages * page_bytes.
  static StatusOr<std::unique_ptr<FactorCache>> Create(Backend* backend, const PageLayout& layout,
                                                       int n_layers, int n_pages);

  const PageLayout& layout() const { return layout_; }
  int n_pages() const { return n_pages_; }
  size_t bytes() const { return memory_->size(); }
  LayerPages layer(int index) const;
  // The step's copies and clears (StepPlan), in every layer.
  Status CopyAndClear();
  // Fills every page with NaN: tests and debug builds poison what must not be read.
  Status Poison();

 private:
  FactorCache(Backend* backend, const PageLayout& layout, int n_layers, int n_pages)
      : backend_(backend), layout_(layout), n_layers_(n_layers), n_pages_(n_pages) {}

  Backend* backend_;
  PageLayout layout_;
  int n_layers_;
  int n_pages_;
  std::unique_ptr<DeviceBuffer> memory_;
};

}  // namespace t6
