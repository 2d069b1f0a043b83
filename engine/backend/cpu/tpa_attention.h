// FlashTPA on the CPU: decode and chunked prefill straight from factor pages (docs/factors.md).
// Long contexts are split over threads by fixed page ranges and merged by log-sum-exp.
#pragma once

#include <cstddef>
#include <memory>

#include "engine/backend/backend.h"
#include "engine/backend/cpu/thread_pool.h"

namespace t6::cpu {

// Owns attention's workspaces and the division of the current step's work. One thread calls it.
class TpaAttention {
 public:
  virtual ~TpaAttention() = default;
  static std::unique_ptr<TpaAttention> Make(ThreadPool* pool);

  virtual size_t WorkspaceBytes(const StepLimits& limits, const AttentionSpec& spec) const = 0;
  virtual Status Reserve(const StepLimits& limits, const AttentionSpec& spec) = 0;
  // Once per step; `plan` must outlive the step's Store and Run calls.
  virtual void Plan(const StepPlan& plan, const AttentionSpec& spec) = 0;
  // Once per layer, one of the stores and then Run. StoreInRun leaves it to Run to write the factors of rows
  // that stand alone in their sequence: the thread that reads such a row's page then writes to it.
  virtual void Store(const StoreFactorsParams& params) = 0;
  virtual void StoreInRun(const StoreFactorsParams& params) = 0;
  virtual void Run(const TpaAttentionParams& params) = 0;
};

}  // namespace t6::cpu
