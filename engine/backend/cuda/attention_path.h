// The seam for attention that the decode kernels do not do: sequences of several rows, float32 pages, shapes
// without a kernel. An implementation belongs to one TpaAttention, which allocates through it and calls it.
#pragma once

#include <cuda_runtime_api.h>

#include "engine/backend/backend.h"

namespace t6::cuda {

// The step's arrays in device memory, and the plan they are copies of. Rows in [n_rows, row_capacity) have
// slot -1 and position 0: a captured graph launches over them too. n_sequences likewise.
struct AttentionStep {
  const StepPlan* plan = nullptr;  // the host's; may be gone when a captured graph is replayed
  int row_capacity = 0;
  int sequence_capacity = 0;
  const int32_t* n_sequences = nullptr;  // [1]
  const int32_t* n_rows = nullptr;       // [1]
  const int32_t* row_begin = nullptr;    // [n_sequences + 1]
  const int32_t* context_len = nullptr;  // [n_sequences]
  const int32_t* page_begin = nullptr;   // [n_sequences + 1]
  const int32_t* positions = nullptr;    // [row_capacity]
  const int32_t* slots = nullptr;        // [row_capacity] page id * 64 + offset
  const int32_t* page_ids = nullptr;
};

// Allocates nothing and does not synchronise outside of Reserve; launches on the stream it is given.
class AttentionPath {
 public:
  virtual ~AttentionPath() = default;
  // OK, or UNIMPLEMENTED with the value that it has no kernel for.
  virtual Status Supports(const AttentionSpec& spec, DType pages) const = 0;
  virtual size_t WorkspaceBytes(const StepLimits& limits, const AttentionSpec& spec) const = 0;
  virtual Status Reserve(const StepLimits& limits, const AttentionSpec& spec) = 0;
  // Once a step, before its Runs: the step's arrays are being copied on the stream. What depends on the plan
  // alone.
  virtual Status Plan(const AttentionStep& /*step*/, const AttentionSpec& /*spec*/, int /*min_rows*/,
                      cudaStream_t /*stream*/) {
    return absl::OkStatus();
  }
  // After Plan: whether the path attends for this sequence though it has fewer rows than min_rows, because it
  // shares pages with others.
  virtual bool Takes(int /*sequence*/) const { return false; }
  // After Plan: false where the step is more than the path can do, and another one has to.
  virtual bool TakesStep() const { return true; }
  // After Plan: whether Run stores the factors of all of the step's rows, those of other sequences too.
  virtual bool Stores() const { return false; }
  // Writes the output rows of every sequence that has at least min_rows (1 or 2) rows or that it Takes, and
  // of no other. Unless it Stores them, the rows' own factors are in the pages already.
  virtual Status Run(const TpaAttentionParams& params, const AttentionStep& step, int min_rows,
                     cudaStream_t stream) = 0;
};

}  // namespace t6::cuda
