// Attention on this machine's GPU, over float32 pages and over bfloat16 with the kernels of its own chip or,
// by force, the portable ones; what a kernel does not cover goes the way that it goes in the backend. Copies
// everything there and back around every call, so that the tests see host memory and every call has run. What
// Run may store is not there before: then it is the backend's attention, whose kernels put the new tokens'
// factors into the pages as they attend; Store alone is another one's.
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "engine/backend/cuda/cuda_memory.h"
#include "engine/backend/cuda/multi_row_attention.h"
#include "engine/backend/cuda/simple_attention.h"
#include "engine/backend/cuda/tpa_attention.h"
#include "tests/support/attention_target.h"

namespace t6::testing {
namespace {

class CudaAttention final : public AttentionUnderTest {
 public:
  CudaAttention(bool portable, bool fixed_splits) : portable_(portable), fixed_splits_(fixed_splits) {}
  ~CudaAttention() override {
    storing_.reset(), running_.reset();
    if (stream_ != nullptr) cudaStreamDestroy(stream_);
  }

  Status Reserve(const StepLimits& limits, const AttentionSpec& spec) override {
    T6_RETURN_IF_CUDA_ERROR(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking));
    T6_ASSIGN_OR_RETURN(storing_, Make(/*stores_in_run=*/false));
    T6_ASSIGN_OR_RETURN(running_, Make(/*stores_in_run=*/true));
    T6_RETURN_IF_ERROR(storing_->Reserve(limits, spec));
    return running_->Reserve(limits, spec);
  }

  Status Plan(const StepPlan& plan, const AttentionSpec& /*spec*/) override {
    plan_ = &plan;
    return absl::OkStatus();
  }

  Status Store(const StoreFactorsParams& params) override {
    T6_RETURN_IF_ERROR(StoreBy(*storing_, params));
    return Download(pages_, params.pages.base, PoolBytes(params.pages));
  }

  // Leaves the pages on the device to Run.
  Status StoreBeforeRun(const StoreFactorsParams& params) override { return StoreBy(*running_, params); }

  Status Run(const TpaAttentionParams& params) override {
    TpaAttentionParams on_device = params;
    on_device.qkv = qkv_.as<float>(), on_device.cos = cos_.as<float>(), on_device.sin = sin_.as<float>();
    on_device.pages.base = pages_.as<uint8_t>();
    const size_t d = params.spec->head_dim, out_bytes = plan_->n_rows() * params.spec->n_heads * d * 4;
    T6_RETURN_IF_ERROR(Copy(params.head_norm_weight, d * 4, &head_norm_));
    on_device.head_norm_weight = head_norm_.as<float>();
    T6_RETURN_IF_ERROR(Copy(params.out, out_bytes, &out_));  // the caller's poison
    on_device.out = out_.as<float>();
    T6_RETURN_IF_ERROR(running_->Run(on_device));
    T6_RETURN_IF_ERROR(Download(pages_, params.pages.base, PoolBytes(params.pages)));
    return Download(out_, params.out, out_bytes);
  }

 private:
  static size_t PoolBytes(const LayerPages& pages) { return pages.n_pages * pages.layout->page_bytes(); }

  StatusOr<std::unique_ptr<cuda::TpaAttention>> Make(bool stores_in_run) const {
    cuda::TpaAttentionOptions options;
    options.stream = stream_, options.force_portable = portable_;
    options.fixed_split_pages = fixed_splits_ ? 4 : 0;
    options.stores_in_decode = stores_in_run;
    options.general = cuda::MakeSimpleAttention();
    if (!portable_) {
      cuda::MultiRowOptions rows;
      rows.min_prefill_rows = 64, rows.always_shares = true, rows.stores = stores_in_run;
      T6_ASSIGN_OR_RETURN(options.multi_row, cuda::MakeMultiRowAttention(rows));
    }
    return cuda::TpaAttention::Make(std::move(options));
  }

  Status StoreBy(cuda::TpaAttention& attention, const StoreFactorsParams& params) {
    StoreFactorsParams on_device = params;
    T6_RETURN_IF_ERROR(Upload(*params.spec, params.pages, params.qkv, params.cos, params.sin));
    on_device.qkv = qkv_.as<float>(), on_device.cos = cos_.as<float>(), on_device.sin = sin_.as<float>();
    on_device.pages.base = pages_.as<uint8_t>();
    T6_RETURN_IF_ERROR(attention.Plan(*plan_, *params.spec));
    return attention.Store(on_device);
  }

  Status Upload(const AttentionSpec& spec, const LayerPages& pages, const float* qkv, const float* cos,
                const float* sin) {
    const size_t positions = *std::max_element(plan_->positions.begin(), plan_->positions.end()) + 1;
    const size_t angles = positions * (spec.rotary_dim / 2) * sizeof(float);
    T6_RETURN_IF_ERROR(Copy(qkv, plan_->n_rows() * spec.qkv_elements() * sizeof(float), &qkv_));
    T6_RETURN_IF_ERROR(Copy(cos, angles, &cos_));
    T6_RETURN_IF_ERROR(Copy(sin, angles, &sin_));
    return Copy(pages.base, PoolBytes(pages), &pages_);
  }
  Status Copy(const void* from, size_t bytes, cuda::DeviceMemory* to) {
    if (to->size() < bytes) T6_RETURN_IF_ERROR(to->Allocate(bytes));
    if (bytes > 0) {
      T6_RETURN_IF_CUDA_ERROR(cudaMemcpyAsync(to->as<void>(), from, bytes, cudaMemcpyHostToDevice, stream_));
    }
    return absl::OkStatus();
  }
  Status Download(const cuda::DeviceMemory& from, void* to, size_t bytes) {
    T6_RETURN_IF_CUDA_ERROR(cudaMemcpyAsync(to, from.as<void>(), bytes, cudaMemcpyDeviceToHost, stream_));
    T6_RETURN_IF_CUDA_ERROR(cudaStreamSynchronize(stream_));
    return absl::OkStatus();
  }

  const bool portable_, fixed_splits_;
  cudaStream_t stream_ = nullptr;
  std::unique_ptr<cuda::TpaAttention> storing_, running_;
  const StepPlan* plan_ = nullptr;
  cuda::DeviceMemory pages_, qkv_, cos_, sin_, head_norm_, out_;
};

}  // namespace

std::vector<AttentionTarget> AttentionTargets() {
  int n = 0, major = 0;
  const bool has_gpu = cudaGetDeviceCount(&n) == cudaSuccess && n > 0;
  if (has_gpu) cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0);
  struct Kind {
    const char* name;
    DType type;
    bool portable;
  };
  std::vector<AttentionTarget> targets;
  for (const Kind kind :
       {Kind{"f32_cuda", DType::kF32, false}, Kind{"bf16_cudasm90a", DType::kBF16, false},
        Kind{"bf16_cudaportable", DType::kBF16, true}, Kind{"fp8_cudasm90a", DType::kFp8, false},
        Kind{"fp8_cudaportable", DType::kFp8, true}}) {
    AttentionTarget target;
    target.name = kind.name;
    target.page = kind.type, target.compute = kind.type == DType::kF32 ? DType::kF32 : DType::kBF16;
    target.is_best = true;
    target.threads = {1};
    const bool runs_here = kind.portable || kind.type == DType::kF32 ? major >= 8 : major == 9;
    if (!has_gpu) target.missing = "no GPU";
    if (has_gpu && !runs_here) target.missing = "a GPU of another kind";
    target.make = [kind](int /*n_threads*/, bool fixed_splits) -> std::unique_ptr<AttentionUnderTest> {
      return std::make_unique<CudaAttention>(kind.portable, fixed_splits);
    };
    targets.push_back(std::move(target));
  }
  return targets;
}

}  // namespace t6::testing
