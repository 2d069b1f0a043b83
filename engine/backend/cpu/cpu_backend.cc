#include "engine/backend/cpu/cpu_backend.h"

#include <algorithm>
#include <cstring>
#include <fstream>
#include <string>
#include <utility>
#include <vector>

#include "engine/backend/cpu/cgroup.h"
#include "engine/backend/cpu/gemm.h"
#include "engine/backend/cpu/gemm_tile.h"
#include "engine/backend/cpu/row_ops.h"
#include "engine/backend/cpu/sample.h"
#include "engine/backend/cpu/thread_pool.h"
#include "engine/backend/cpu/tpa_attention.h"
#include "engine/base/check.h"
#include "engine/tensor/buffer.h"

namespace t6 {
namespace {

// What the system can still give without swapping, cut to the cgroups' limits.
size_t MemoryAvailable() {
  size_t available = SIZE_MAX;
  std::ifstream file("/proc/meminfo");
  for (std::string line; std::getline(file, line);) {
    unsigned long long kilobytes = 0;
    if (std::sscanf(line.c_str(), "MemAvailable: %llu kB", &kilobytes) == 1) available = kilobytes * 1024;
  }
  if (const auto limit = ReadCgroupLimits().memory_available) available = std::min(available, *limit);
  return available;
}

class CpuBuffer final : public DeviceBuffer {
 public:
  explicit CpuBuffer(HostBuffer buffer) : buffer_(std::move(buffer)) {
    data_ = buffer_.data();
    size_ = buffer_.size();
  }

 private:
  HostBuffer buffer_;
};

// Copies the first `valid` tokens of every part and zeroes the others, as PageCopy promises.
void CopyPage(const PageLayout& layout, const uint8_t* source, uint8_t* destination, int valid) {
  if (valid >= kPageTokens) {
    std::memcpy(destination, source, layout.page_bytes());
    return;
  }
  std::memset(destination, 0, layout.page_bytes());
  for (const PagePart& part : layout.parts()) {
    const size_t row_bytes = static_cast<size_t>(part.width) * SizeOf(part.dtype);
    // A: every row holds all tokens, the first `valid` of which are its head. B: a row is a token.
    const int n_runs = part.token_minor ? part.ranks * part.rows : part.ranks;
    const size_t stride = part.token_minor ? row_bytes : row_bytes * part.rows;
    const size_t bytes = part.token_minor ? valid * SizeOf(part.dtype) : valid * row_bytes;
    for (int run = 0; run < n_runs; ++run) {
      const size_t offset = part.offset + run * stride;
      std::memcpy(destination + offset, source + offset, bytes);
    }
  }
}

class CpuBackend final : public Backend {
 public:
  explicit CpuBackend(int threads)
      : pool_(threads),
        gemm_(cpu::Gemm::Make(&pool_)),
        attention_(cpu::TpaAttention::Make(&pool_)),
        sampler_(&pool_) {
    info_.kind = "cpu";
    info_.description =
        fmt::format("{}, {} thread{}", cpu::ChooseBlockKernels().isa, threads, threads == 1 ? "" : "s");
    info_.memory_available = MemoryAvailable();
  }

  const DeviceInfo& info() const override { return info_; }
  DType activation_dtype(DType compute) const override {
    return compute == DType::kBF16 ? DType::kBF16 : DType::kF32;
  }
  int activation_stride(int width) const override { return width; }

  StatusOr<std::unique_ptr<DeviceBuffer>> Allocate(size_t bytes) override {
    T6_ASSIGN_OR_RETURN(HostBuffer buffer, HostBuffer::Allocate(bytes));
    return std::unique_ptr<DeviceBuffer>(std::make_unique<CpuBuffer>(std::move(buffer)));
  }

  Status Upload(void* device, const void* host, size_t bytes) override {
    if (bytes > 0) std::memcpy(device, host, bytes);
    return absl::OkStatus();
  }

  Status Download(void* host, const void* device, size_t bytes) override {
    return Upload(host, device, bytes);
  }

  StatusOr<std::unique_ptr<PackedMatrix>> Pack(const std::vector<TensorView>& parts, DType compute,
                                               bool swiglu) override {
    T6_ASSIGN_OR_RETURN(std::unique_ptr<PackedMatrix> packed, gemm_->Pack(parts, compute, swiglu));
    max_k_ = std::max(max_k_, packed->k());
    max_n_ = std::max(max_n_, packed->n());
    return packed;
  }

  size_t WorkspaceBytes(const StepLimits& limits, const AttentionSpec& spec,
                        const ModelSizes& sizes) const override {
    return gemm_->WorkspaceBytes(limits.max_rows, MaxK(spec, sizes), max_n_) +
           attention_->WorkspaceBytes(limits, spec);
  }

  Status Reserve(const StepLimits& limits, const AttentionSpec& spec, const ModelSizes& sizes) override {
    T6_RETURN_IF_ERROR(gemm_->Reserve(limits.max_rows, MaxK(spec, sizes), max_n_));
    return attention_->Reserve(limits, spec);
  }

  Status BeginStep(const StepPlan& plan, const AttentionSpec& spec) override {
    plan_ = &plan;
    attention_->Plan(plan, spec);
    return absl::OkStatus();
  }

  const int32_t* output_rows() const override { return plan_->output_rows.data(); }

  Status CopyAndClearPages(const CopyPagesParams& params) override;
  Status Embed(const EmbedParams& params) override;

  Status Project(const ProjectParams& params) override {
    T6_CHECK(params.in_stride == 0 || params.in_stride == params.weight->k());
    gemm_->Project(params);
    return absl::OkStatus();
  }
  Status StoreFactors(const StoreFactorsParams& params) override {
    T6_CHECK(params.qkv_stride == 0 || params.qkv_stride == params.spec->qkv_elements());
    params.attends ? attention_->StoreInRun(params) : attention_->Store(params);
    return absl::OkStatus();
  }
  Status TpaAttention(const TpaAttentionParams& params) override {
    T6_CHECK(params.qkv_stride == 0 || params.qkv_stride == params.spec->qkv_elements());
    attention_->Run(params);
    return absl::OkStatus();
  }

  Status KeepOutputRows(const KeepOutputRowsParams& params) override {
    const auto keep = [&](const float* from, float* to, size_t width) {
      for (const int32_t row : plan_->output_rows) to = std::copy_n(from + row * width, width, to);
    };
    keep(params.x, params.kept_x, params.width), keep(params.qkv, params.kept_qkv, params.qkv_stride);
    attention_->Plan(*params.plan, *params.spec);
    return absl::OkStatus();
  }

  Status Sample(const SampleParams& params) override {
    result_.outputs.clear();
    T6_RETURN_IF_ERROR(sampler_.Run(params, plan_->sampling, &result_.outputs));
    sampled_.clear();
    for (const TokenOutput& output : result_.outputs) sampled_.push_back(output.token);
    return absl::OkStatus();
  }

  StatusOr<StepResult> WaitSample() override { return std::exchange(result_, StepResult()); }

 private:
  // Weights may be packed after the plan of memory is made.
  int MaxK(const AttentionSpec& spec, const ModelSizes& sizes) const {
    return std::max({max_k_, spec.n_heads * spec.head_dim, sizes.width, sizes.mlp_width});
  }

  DeviceInfo info_;
  ThreadPool pool_;
  std::unique_ptr<cpu::Gemm> gemm_;
  std::unique_ptr<cpu::TpaAttention> attention_;
  cpu::Sampler sampler_;
  int max_k_ = 0;
  int max_n_ = 0;
  const StepPlan* plan_ = nullptr;
  StepResult result_;
  std::vector<int32_t> sampled_;  // tokens of the last step's outputs, which this step's plan may name
};

Status CpuBackend::CopyAndClearPages(const CopyPagesParams& params) {
  if (plan_->copy_pages.empty() && plan_->clear_pages.empty()) return absl::OkStatus();
  const size_t page_bytes = params.layout->page_bytes();
  pool_.Run(params.n_layers, [&](int layer, int) {
    uint8_t* base = params.base + static_cast<size_t>(layer) * params.n_pages * page_bytes;
    for (const PageCopy& copy : plan_->copy_pages) {
      CopyPage(*params.layout, base + copy.source * page_bytes, base + copy.destination * page_bytes,
               copy.valid_tokens);
    }
    for (const int32_t page : plan_->clear_pages) std::memset(base + page * page_bytes, 0, page_bytes);
  });
  return absl::OkStatus();
}

Status CpuBackend::Embed(const EmbedParams& params) {
  const auto* table = static_cast<const uint8_t*>(params.table);
  const size_t row_bytes = params.width * SizeOf(params.dtype);
  const auto embed = [&](int first, int end) {
    for (int row = first; row < end; ++row) {
      int32_t id = plan_->token_ids[row];
      if (id < 0) id = sampled_[-1 - id];
      const uint8_t* source = table + id * row_bytes;
      float* out = params.out + static_cast<size_t>(row) * params.width;
      if (params.dtype == DType::kBF16) {
        cpu::WidenRow(reinterpret_cast<const bf16*>(source), params.width, out);
      } else {
        ConvertToFloat(source, params.dtype, params.width, out);
      }
    }
  };
  constexpr int kRowsPerTask = 32;
  const int n_rows = plan_->n_rows();
  pool_.Run((n_rows + kRowsPerTask - 1) / kRowsPerTask,
            [&](int i, int) { embed(i * kRowsPerTask, std::min(n_rows, (i + 1) * kRowsPerTask)); });
  return absl::OkStatus();
}

}  // namespace

StatusOr<std::unique_ptr<Backend>> MakeCpuBackend(int threads) {
  constexpr int kMostThreads = 1024;
  if (threads < 0 || threads > kMostThreads) {
    return InvalidArgument("threads must be 0 (all that are allowed) to {}, not {}", kMostThreads, threads);
  }
  return std::unique_ptr<Backend>(std::make_unique<CpuBackend>(threads > 0 ? threads : AvailableThreads()));
}

}  // namespace t6
