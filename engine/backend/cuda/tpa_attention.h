// FlashTPA on a GPU: the twin of cpu::TpaAttention. Decode rows (one of a sequence) over bfloat16 pages go
// through the decode kernels (docs/kernels.md), everything else through the paths given to Make.
//
// Plan copies a step's arrays from pinned memory; the first call behind it launches the kernel that makes the
// device's plan. Store and Run launch kernels and return. No call but Make and Reserve allocates or waits for
// the device (Plan waits for its copy of two steps before, done long ago). Store and Run may be captured into
// a CUDA graph after a Plan, outside of it; the graph may be replayed after every Plan with the same
// graph_key(). One thread calls it; errors are the device's, or UNIMPLEMENTED with the shape that no kernel
// covers.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "engine/backend/backend.h"
#include "engine/backend/cuda/attention_path.h"

namespace t6::cuda {

struct DecodeAttentionConfig;
class StepProgram;

struct TpaAttentionOptions {
  cudaStream_t stream = nullptr;  // of every copy and launch
  // 0: the fastest division of a step. Else a sequence's bits depend on nothing but its own tokens: its
  // context is cut at multiples of so many pages (--reproducible).
  int fixed_split_pages = 0;
  // Where decode's kernels attend for all rows of a step, they also store, and Store does nothing: one kernel
  // less, but nobody may read the new tokens' factors between Store and Run. Where multi_row Stores,
  // likewise.
  bool stores_in_decode = false;
  // May be null: where it collects, what Run would launch for decode is added to it, if decode stores.
  StepProgram* program = nullptr;
  // The decode kernels that other chips than Hopper get, for tests.
  bool force_portable = false;
  // Either may be null. Sequences of several rows over bfloat16 pages: the first that supports them,
  // multi_row (not with fixed splits) or general. Every row of float32 pages and of shapes without a decode
  // kernel: general.
  std::unique_ptr<AttentionPath> multi_row;
  std::unique_ptr<AttentionPath> general;
};

// Owns attention's workspaces, the step's arrays on the device and the device's plan of the current step.
class TpaAttention {
 public:
  virtual ~TpaAttention() = default;
  // For the current device.
  static StatusOr<std::unique_ptr<TpaAttention>> Make(TpaAttentionOptions options);

  // What of this shape the general path does, and why; empty: nothing.
  virtual std::string Slow(const AttentionSpec& spec, DType pages) const = 0;
  virtual size_t WorkspaceBytes(const StepLimits& limits, const AttentionSpec& spec) const = 0;
  virtual Status Reserve(const StepLimits& limits, const AttentionSpec& spec) = 0;
  // Once per step, outside of any capture. `plan` must outlive the step's Store and Run calls.
  virtual Status Plan(const StepPlan& plan, const AttentionSpec& spec) = 0;
  // Launches what Plan has left: before all others of a step, so that it runs beside them. May be captured.
  virtual Status LaunchPlanned() = 0;
  // Once per layer, Store before Run. All pointers are the device's.
  virtual Status Store(const StoreFactorsParams& params) = 0;
  virtual Status Run(const TpaAttentionParams& params) = 0;

  // After Reserve; null where no decode kernel covers the spec.
  virtual const DecodeAttentionConfig* decode_config() const = 0;
  // The planned step's arrays, for other kernels of the step.
  virtual const AttentionStep& step() const = 0;
  // Steps with equal keys launch the same Store and Run; 0: do not capture (several rows of a sequence).
  virtual int64_t graph_key() const = 0;
};

}  // namespace t6::cuda
