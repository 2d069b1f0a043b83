// The device, as narrow fused operations. The model is written once against this interface; nothing above it
// branches on the device. One thread (the engine's) calls it. Operations are ordered; on a GPU they return
// before they are done, and Sample's results are there after WaitSample. An error means the device failed: no
// operation checks user input.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <vector>

#include "engine/backend/params.h"
#include "engine/base/status.h"
#include "engine/tensor/tensor_view.h"

namespace t6 {

struct DeviceInfo {
  std::string kind;             // "cpu" or "cuda"
  std::string description;      // "AVX-512 bf16, 2 threads"
  size_t memory_available = 0;  // bytes that weights, cache and workspaces may use
  bool can_compute_bf16 = true;
  int default_step_rows = 512;  // query tokens of a step, where the configuration does not say
  int pipeline_depth = 1;       // steps planned and not yet waited for: 2 where a launch does not wait
  // Of what weights and workspaces leave, what the cache takes where the configuration does not say.
  double cache_share = 0.5;
  size_t cache_most = size_t{4} << 30;
};

// Device memory that frees itself. Zeroed when allocated.
class DeviceBuffer {
 public:
  virtual ~DeviceBuffer() = default;
  void* data() const { return data_; }
  size_t size() const { return size_; }
  template <typename T>
  T* as() const {
    return static_cast<T*>(data_);
  }

 protected:
  void* data_ = nullptr;
  size_t size_ = 0;
};

// The largest step that will ever be asked for, and the pages that it reads; workspaces are allocated from
// it, once.
struct StepLimits {
  int max_rows = 0;
  int max_sequences = 0;
  int max_outputs = 0;
  int max_context = 0;
  DType page_dtype = DType::kBF16;
};

// What workspaces depend on besides.
struct ModelSizes {
  int width = 0;      // D
  int mlp_width = 0;  // of the SwiGLU's output
  int vocab = 0;
  DType compute = DType::kBF16;
};

// What one operation of a step took.
struct OperationTime {
  std::string name;
  double seconds = 0.0;
};

class Backend {
 public:
  virtual ~Backend() = default;

  virtual const DeviceInfo& info() const = 0;
  // What attention and SwiGLU hand to the product that follows, where products are in `compute` type.
  virtual DType activation_dtype(DType compute) const = 0;
  // Elements between rows of an activation of `width` numbers: what SwiGLU writes, and attention's qkv.
  virtual int activation_stride(int width) const = 0;

  // --- load time
  // -----------------------------------------------------------------------------------------------
  virtual StatusOr<std::unique_ptr<DeviceBuffer>> Allocate(size_t bytes) = 0;
  virtual Status Upload(void* device, const void* host, size_t bytes) = 0;
  // Waits for all that was asked of the device before.
  virtual Status Download(void* host, const void* device, size_t bytes) = 0;
  // Packs the rows of `parts` (each [n_i, k], any float type), one below the other, for products in `compute`
  // type. With swiglu there are two parts of equal shape, gate and up.
  virtual StatusOr<std::unique_ptr<PackedMatrix>> Pack(const std::vector<TensorView>& parts, DType compute,
                                                       bool swiglu) = 0;
  // Bytes of workspaces that Reserve will allocate for these limits: part of the memory plan.
  virtual size_t WorkspaceBytes(const StepLimits& limits, const AttentionSpec& spec,
                                const ModelSizes& sizes) const = 0;
  virtual Status Reserve(const StepLimits& limits, const AttentionSpec& spec, const ModelSizes& sizes) = 0;
  // For the operator: which of the model's attention has no kernel of its own here and goes the general, slow
  // way. Empty: none.
  virtual std::string SlowAttention(const AttentionSpec& /*spec*/, DType /*pages*/) const { return ""; }

  // --- one step
  // ------------------------------------------------------------------------------------------------ Reads
  // the plan (it must stay unchanged until the step is done) and divides attention's work.
  virtual Status BeginStep(const StepPlan& plan, const AttentionSpec& spec) = 0;
  // The plan's output rows in the device's memory, for ProjectParams::row_index.  // [n_outputs]
  virtual const int32_t* output_rows() const = 0;
  // The plan's copies, then its clears, in every layer.
  virtual Status CopyAndClearPages(const CopyPagesParams& params) = 0;
  virtual Status Embed(const EmbedParams& params) = 0;
  virtual Status Project(const ProjectParams& params) = 0;
  // In the pages when the layer's TpaAttention, which comes next, is done; or by itself, where none does.
  virtual Status StoreFactors(const StoreFactorsParams& params) = 0;
  virtual Status TpaAttention(const TpaAttentionParams& params) = 0;
  // For what is left of a step's last layer: TpaAttention and Project behind it are of these rows. Not in a
  // step whose sequences have a row each. Reads the plan given until Sample is asked for.
  virtual Status KeepOutputRows(const KeepOutputRowsParams& params) = 0;
  virtual Status Sample(const SampleParams& params) = 0;
  // The step's only synchronisation.
  virtual StatusOr<StepResult> WaitSample() = 0;

  // Of the step that was waited for last, in order: only with BackendOptions::times_operations, on a device
  // that can, and with one step at a time.
  virtual StatusOr<std::vector<OperationTime>> OperationTimes() { return std::vector<OperationTime>(); }
};

}  // namespace t6
