// Products with packed weights on the GPU. Few rows in bfloat16: our own kernels (skinny.h, split_product.h),
// norm, SwiGLU and residual within; else cuBLASLt between row kernels. Weights are row-major, their sizes
// rounded up to 64 with zeros, so that all read the same bytes.
#pragma once

#include <cuda_runtime_api.h>

#include <memory>
#include <vector>

#include "engine/backend/backend.h"
#include "engine/backend/cuda/cuda_memory.h"
#include "engine/backend/cuda/device.h"
#include "engine/backend/cuda/matmul.h"
#include "engine/backend/cuda/row_kernels.h"
#include "engine/backend/cuda/skinny.h"
#include "engine/backend/cuda/split_product.h"
#include "engine/backend/cuda/step_program.h"

namespace t6::cuda {

inline int RoundUp64(int n) { return (n + 63) / 64 * 64; }

class PackedWeights final : public PackedMatrix {
 public:
  PackedWeights(int n, int k, DType dtype, bool swiglu, DeviceMemory data)
      : PackedMatrix(n, k), dtype_(dtype), swiglu_(swiglu), data_(std::move(data)) {}
  DType dtype() const { return dtype_; }
  bool swiglu() const { return swiglu_; }
  int n_outputs() const { return swiglu_ ? n() / 2 : n(); }
  // Rows of gate (and again of up), or all of them.
  int padded_outputs() const { return RoundUp64(n_outputs()); }
  int padded_n() const { return padded_outputs() * (swiglu_ ? 2 : 1); }
  int stride() const { return RoundUp64(k()); }
  const void* data() const { return data_.as<void>(); }
  size_t bytes() const { return static_cast<size_t>(padded_n()) * stride() * SizeOf(dtype_); }

 private:
  DType dtype_;
  bool swiglu_;
  DeviceMemory data_;
};

// Owns the workspaces of products. One thread calls it; operations are ordered on one stream.
class Gemm {
 public:
  // UNAVAILABLE without cuBLASLt.
  // `program`: may be null; where it collects, products of few rows are added to it.
  static StatusOr<std::unique_ptr<Gemm>> Make(cudaStream_t stream, const Device& device,
                                              StepProgram* program);

  StatusOr<std::unique_ptr<PackedMatrix>> Pack(const std::vector<TensorView>& parts, DType compute,
                                               bool swiglu);
  static size_t WorkspaceBytes(const StepLimits& limits, const AttentionSpec& spec, const ModelSizes& sizes);
  // Also times the algorithms for the weights packed so far.
  Status Reserve(const StepLimits& limits, const AttentionSpec& spec, const ModelSizes& sizes);

  // `n_rows`: the rows computed, at least params.n_rows; the buffers have room for them.
  Status Project(const ProjectParams& params, int n_rows);

  // Where Embed leaves what the first product's norm needs; nothing when rows are many.
  RowStats StatsFor(const float* x, int n_rows);
  std::string version() const { return matmul_->version(); }

 private:
  Gemm(std::unique_ptr<Matmul> matmul, cudaStream_t stream, const Device& device, StepProgram* program)
      : matmul_(std::move(matmul)),
        stream_(stream),
        n_sms_(device.n_sms),
        max_few_rows_(device.code == ChipCode::kHopper ? kMaxSplitRows : 0),
        program_(program) {}

  struct Rows {  // of a product's input
    const void* data;
    int stride;
    int k;  // numbers of a row to read; zeros from weight.k() on
  };
  bool Collects() const { return program_ != nullptr && program_->collects(); }
  // Rows of this number, but for products that split_product.h does not suit.
  static bool Splits(int n_rows) { return n_rows >= kMinSplitRows; }
  // By our own kernels.
  bool IsFew(const PackedWeights& weights, int n_rows, Epilogue epilogue) const;
  // What has been collected comes before what is launched now.
  Status LaunchCollected();
  bool HasStats(const ProjectParams& params) const;
  StatusOr<Rows> Prepare(const ProjectParams& params, const PackedWeights& weights, int n_rows);
  // Those of the rows that are written now.
  RowStats NewStats(const float* x, bool splits);
  Status ProjectFew(const ProjectParams& params, const PackedWeights& weights, int n_rows);
  Status ProjectMany(const ProjectParams& params, const PackedWeights& weights, int n_rows);
  Status Tune(const StepLimits& limits);
  Status TuneShape(const std::vector<const PackedWeights*>& alike, int n_rows, bool adds, void* out);

  std::unique_ptr<Matmul> matmul_;
  cudaStream_t stream_;
  int n_sms_;
  int max_few_rows_;
  StepProgram* program_;
  DType compute_ = DType::kBF16;
  size_t prepared_bytes_ = 0;
  DeviceMemory staging_;   // of Pack
  DeviceMemory prepared_;  // [max_rows, k] of compute_: normed or aligned inputs
  DeviceMemory gate_up_;   // [max_rows, 2 * mlp_width] of compute_
  DeviceMemory stat_rows_, stat_squares_;
  RowStats stats_;
  const float* stats_of_ = nullptr;  // the residual stream whose stats these are
  int width_ = 0, vocab_ = 0, qkv_ = 0;
  std::vector<const PackedWeights*> packed_;
};

}  // namespace t6::cuda
