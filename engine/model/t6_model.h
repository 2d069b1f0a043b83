// A T6 model on a backend: weights packed once, and the forward pass as the backend's fused operations. One
// definition for every variant (docs/factors.md); nothing here depends on the device. Used by the engine
// thread alone.
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "engine/backend/backend.h"
#include "engine/cache/factor_cache.h"
#include "engine/checkpoint/tensor_source.h"
#include "engine/model/model_spec.h"

namespace t6 {

class T6Model {
 public:
  // Packs the weights for products in `compute` (kF32 or kBF16) and allocates what the largest step needs.
  // `progress` is told the share done, 0 to 1.
  static StatusOr<std::unique_ptr<T6Model>> Load(Backend* backend, const ModelSpec& spec,
                                                 const TensorSource& tensors, DType compute,
                                                 const StepLimits& limits,
                                                 const std::function<void(double)>& progress);
  ~T6Model();

  // Bytes that Load will allocate, for the memory plan.
  static size_t WeightBytes(const ModelSpec& spec, DType compute, int max_context);
  static size_t WorkspaceBytes(const ModelSpec& spec, const StepLimits& limits, DType compute,
                               const Backend& backend);

  // Computes the plan's rows, stores their factors in `cache`, and leaves the logits of the plan's output
  // rows. BeginStep was called with this plan.
  Status Forward(const StepPlan& plan, FactorCache& cache);
  const float* logits() const { return logits_->as<float>(); }  // [n_outputs, vocab] of the last Forward

  const ModelSpec& spec() const { return spec_; }

 private:
  struct Layer {
    std::unique_ptr<PackedMatrix> qkv;        // [qkv_elements, D]
    std::unique_ptr<PackedMatrix> attn_out;   // [D, h * d]
    std::unique_ptr<PackedMatrix> gate_up;    // [2 * mlp_width, D]
    std::unique_ptr<PackedMatrix> mlp_out;    // [D, mlp_width]
    std::unique_ptr<DeviceBuffer> head_norm;  // [d] or null
  };

  T6Model(Backend* backend, const ModelSpec& spec) : backend_(backend), spec_(spec) {}
  Status LoadWeights(const TensorSource& tensors, DType compute, const std::function<void(double)>& progress);
  Status LoadLayer(const TensorSource& tensors, DType compute, int index);
  Status LoadRope(int max_context);
  Status AllocateActivations(const StepLimits& limits, DType compute);
  // What a layer computes: the step's rows, or its output rows alone.
  struct Rows {
    float* x;    // [n, D]
    float* qkv;  // [n, qkv_elements], padded
    int n;
    bool are_outputs;
  };
  // Factors from the residual stream, into the pages. attends: AttendLayer of the same rows comes next.
  Status StoreLayer(const Layer& layer, const Rows& rows, const LayerPages& pages, bool attends);
  Status AttendLayer(const Layer& layer, const Rows& rows, const LayerPages& pages);
  StatusOr<Rows> KeepOutputs(const Rows& rows);
  Status Logits(const Rows& rows, int n_outputs);

  Backend* backend_;
  ModelSpec spec_;
  std::vector<Layer> layers_;
  DType embedding_dtype_ = DType::kF32;
  DType activation_dtype_ = DType::kF32;
  std::unique_ptr<DeviceBuffer> embedding_;  // [vocab, D] in the checkpoint's type
  std::unique_ptr<PackedMatrix> head_;       // [vocab, D]
  std::unique_ptr<DeviceBuffer> cos_, sin_;  // [max_context, rotary_dim / 2]
  std::unique_ptr<DeviceBuffer> x_;          // [rows, D] residual stream
  std::unique_ptr<DeviceBuffer> qkv_;        // [rows, qkv_elements], padded
  std::unique_ptr<DeviceBuffer> hidden_;     // [rows, max(h * d, mlp_width)] of activation_dtype_
  std::unique_ptr<DeviceBuffer> kept_;       // output rows of qkv_, then of x_
  std::unique_ptr<DeviceBuffer> logits_;     // [outputs, vocab]
  StepPlan outputs_;                         // of the last Forward, if it kept output rows
};

}  // namespace t6
