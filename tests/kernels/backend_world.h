// A device for tests that run one body on every device: made by name, skipped where this build or machine
// does not have it, and memory that is the device's.
#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "engine/backend/factory.h"
#include "tests/support/has_gpu.h"

namespace t6::testing {

// The parameter of the instantiations, or the first of it. ctest knows those on a GPU by the label "gpu".
inline std::vector<std::string> Devices() { return {"cpu", "cuda"}; }

class OnDevice {
 public:
  // False: skip, for the reason that is printed.
  bool Make(const std::string& device) {
    auto made = MakeBackend({.device = device, .threads = 2});
    if (!made.ok()) {
      EXPECT_TRUE(device == "cuda" && MayPassOverGpu(made.status())) << made.status();
      reason_ = made.status().ToString();
      return false;
    }
    backend_ = std::move(made->backend);
    return true;
  }
  const std::string& reason() const { return reason_; }
  Backend& operator*() const { return *backend_; }
  Backend* operator->() const { return backend_.get(); }

  // Device memory that holds `values`; the device's memory lives as long as this.
  template <typename T>
  T* Put(const std::vector<T>& values) {
    auto buffer = backend_->Allocate(values.size() * sizeof(T));
    EXPECT_TRUE(buffer.ok()) << buffer.status();
    EXPECT_TRUE(backend_->Upload((*buffer)->data(), values.data(), values.size() * sizeof(T)).ok());
    buffers_.push_back(std::move(*buffer));
    return buffers_.back()->as<T>();
  }
  template <typename T>
  std::vector<T> Get(const T* device, size_t n) {
    std::vector<T> values(n);
    EXPECT_TRUE(backend_->Download(values.data(), device, n * sizeof(T)).ok());
    return values;
  }

 private:
  std::string reason_;
  std::unique_ptr<Backend> backend_;
  std::vector<std::unique_ptr<DeviceBuffer>> buffers_;
};

// A plan of `ids`, one sequence in page 0 and on, all of whose rows give a greedy output.
inline StepPlan PlanOf(const std::vector<int32_t>& ids) {
  StepPlan plan;
  plan.Clear();
  const auto n = static_cast<int32_t>(ids.size());
  for (int32_t i = 0; i < n; ++i) {
    plan.token_ids.push_back(ids[i]);
    plan.positions.push_back(i);
    plan.slots.push_back(i);
    plan.output_rows.push_back(i);
    SamplingRow row;
    row.temperature = 0;
    plan.sampling.push_back(row);
  }
  plan.row_begin.push_back(n);
  plan.context_len.push_back(n);
  for (int32_t page = 0; page * kPageTokens < n; ++page) plan.page_ids.push_back(page);
  plan.page_begin.push_back(static_cast<int32_t>(plan.page_ids.size()));
  return plan;
}

inline AttentionSpec SmallSpec() {
  AttentionSpec spec;
  spec.n_heads = 3, spec.head_dim = 8, spec.rotary_dim = 8;
  spec.q.rank = 2, spec.k.rank = 2, spec.v.rank = 1;
  return spec;
}

}  // namespace t6::testing
