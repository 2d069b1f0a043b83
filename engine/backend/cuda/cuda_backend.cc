#include "engine/backend/cuda/cuda_backend.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <deque>
#include <utility>

#include "engine/backend/cuda/cuda_memory.h"
#include "engine/backend/cuda/device.h"
#include "engine/backend/cuda/gemm.h"
#include "engine/backend/cuda/multi_row_attention.h"
#include "engine/backend/cuda/operation_timer.h"
#include "engine/backend/cuda/row_kernels.h"
#include "engine/backend/cuda/sampling_kernels.h"
#include "engine/backend/cuda/simple_attention.h"
#include "engine/backend/cuda/step_arrays.h"
#include "engine/backend/cuda/step_graphs.h"
#include "engine/backend/cuda/step_program.h"
#include "engine/backend/cuda/tpa_attention.h"
#include "engine/base/check.h"

namespace t6 {
namespace {

using cuda::DeviceMemory;
using cuda::PinnedMemory;
using cuda::SampleResult;
using cuda::SampleRow;
using cuda::StepArrays;
using cuda::Stream;

constexpr int kStepsInFlight = 2;
constexpr int kStepRows = 8192;

class CudaBuffer final : public DeviceBuffer {
 public:
  explicit CudaBuffer(DeviceMemory memory, size_t size) : memory_(std::move(memory)) {
    data_ = memory_.as<void>();
    size_ = size;
  }

 private:
  DeviceMemory memory_;
};

std::string NameOf(const ProjectParams& params) {
  return fmt::format("{} x {}{}", params.weight->n(), params.weight->k(),
                     params.epilogue == Epilogue::kSwiGlu ? " SwiGLU"
                     : params.epilogue == Epilogue::kAdd  ? " added"
                                                          : "");
}

class CudaBackend final : public Backend {
 public:
  static StatusOr<std::unique_ptr<Backend>> Make(const CudaOptions& options);
  ~CudaBackend() override;

  const DeviceInfo& info() const override { return info_; }
  DType activation_dtype(DType compute) const override { return compute; }
  int activation_stride(int width) const override { return cuda::RoundUp64(width); }

  StatusOr<std::unique_ptr<DeviceBuffer>> Allocate(size_t bytes) override;
  Status Upload(void* device, const void* host, size_t bytes) override;
  Status Download(void* host, const void* device, size_t bytes) override;
  StatusOr<std::unique_ptr<PackedMatrix>> Pack(const std::vector<TensorView>& parts, DType compute,
                                               bool swiglu) override {
    return gemm_->Pack(parts, compute, swiglu);
  }
  size_t WorkspaceBytes(const StepLimits& limits, const AttentionSpec& spec,
                        const ModelSizes& sizes) const override;
  Status Reserve(const StepLimits& limits, const AttentionSpec& spec, const ModelSizes& sizes) override;

  std::string SlowAttention(const AttentionSpec& spec, DType pages) const override {
    return attention_->Slow(spec, pages);
  }

  Status BeginStep(const StepPlan& plan, const AttentionSpec& spec) override;
  const int32_t* output_rows() const override { return At<int32_t>(offsets_.output_rows); }
  Status CopyAndClearPages(const CopyPagesParams& params) override;
  Status Embed(const EmbedParams& params) override;
  Status Project(const ProjectParams& params) override;
  Status StoreFactors(const StoreFactorsParams& params) override;
  Status TpaAttention(const TpaAttentionParams& params) override;
  Status KeepOutputRows(const KeepOutputRowsParams& params) override;
  Status Sample(const SampleParams& params) override;
  StatusOr<StepResult> WaitSample() override;
  StatusOr<std::vector<OperationTime>> OperationTimes() override;

 private:
  // What the host writes for a step and reads after it.
  struct Slot {
    PinnedMemory arrays;
    cudaEvent_t done = nullptr;
    int n_outputs = 0;
  };

  CudaBackend() = default;
  template <typename T>
  T* At(size_t offset) const {
    return reinterpret_cast<T*>(arrays_.as<uint8_t>() + offset);
  }
  static size_t ArrayBytes(const StepLimits& limits);
  Status CopyArrays(const StepPlan& plan);
  // Runs or captures an operation, or leaves it to the step's graph.
  template <typename Launch, typename... Identity>
  Status Issue(const char* name, Launch launch, Identity... identity) {
    if (timer_ != nullptr && graph_key_ == 0) T6_RETURN_IF_ERROR(timer_->Mark(name));
    return graphs_->Issue(launch, identity...);
  }
  static uintptr_t Id(const void* p) { return reinterpret_cast<uintptr_t>(p); }

  Stream stream_;  // destroyed last
  DeviceInfo info_;
  bool is_shared_ = false;                      // Device::is_shared
  std::unique_ptr<cuda::StepProgram> program_;  // of gemm_ and attention_, for steps of few rows
  std::unique_ptr<cuda::Gemm> gemm_;
  std::unique_ptr<cuda::TpaAttention> attention_;
  const cuda::AttentionPath* general_attention_ = nullptr;  // attention's own: takes what the device takes
  std::unique_ptr<cuda::StepGraphs> graphs_;
  std::unique_ptr<cuda::OperationTimer> timer_;  // null unless asked for
  StepLimits limits_;
  DeviceMemory arrays_, sampled_, instructions_;
  PinnedMemory results_;  // [kStepsInFlight][max_outputs] SampleResult, written by the device
  std::array<Slot, kStepsInFlight> slots_;
  int turn_ = 0;                 // the slot of the step that is being launched
  std::deque<Slot*> in_flight_;  // oldest first

  // The step that is being launched.
  const StepPlan* plan_ = nullptr;
  StepArrays offsets_{0, 0};
  int n_rows_ = 0, n_outputs_ = 0;  // that kernels run over: with a graph, its capacities
  uint64_t graph_key_ = 0;
};

StatusOr<std::unique_ptr<Backend>> CudaBackend::Make(const CudaOptions& cuda_options) {
  const bool portable = cuda_options.portable;
  T6_ASSIGN_OR_RETURN(cuda::Device device, cuda::OpenDevice());
  if (portable) device.code = cuda::ChipCode::kPortable;
  std::unique_ptr<CudaBackend> backend(new CudaBackend);
  T6_RETURN_IF_ERROR(backend->stream_.Create());
  cudaStream_t stream = backend->stream_.get();
  backend->program_ = std::make_unique<cuda::StepProgram>(stream, device.n_sms);
  T6_ASSIGN_OR_RETURN(backend->gemm_, cuda::Gemm::Make(stream, device, backend->program_.get()));
  cuda::TpaAttentionOptions options;
  options.stream = stream;
  options.force_portable = portable;
  if (!portable) {
    T6_ASSIGN_OR_RETURN(options.multi_row, cuda::MakeMultiRowAttention({}));
  }
  options.general = cuda::MakeSimpleAttention();
  options.stores_in_decode = true;
  options.program = backend->program_.get();
  backend->general_attention_ = options.general.get();
  T6_ASSIGN_OR_RETURN(backend->attention_, cuda::TpaAttention::Make(std::move(options)));
  backend->graphs_ = std::make_unique<cuda::StepGraphs>(stream);
  if (cuda_options.times_operations) backend->timer_ = std::make_unique<cuda::OperationTimer>(stream);
  for (Slot& slot : backend->slots_) {
    T6_RETURN_IF_CUDA_ERROR(cudaEventCreateWithFlags(&slot.done, cudaEventDisableTiming));
  }
  backend->is_shared_ = device.is_shared;
  DeviceInfo& info = backend->info_;
  info.kind = "cuda";
  info.description = fmt::format("{}, cuBLASLt {}", device.description, backend->gemm_->version());
  info.memory_available = device.memory_available;
  info.default_step_rows = kStepRows;
  info.pipeline_depth = kStepsInFlight;
  info.cache_share = 0.95;  // a GPU that serves does little else
  info.cache_most = SIZE_MAX;
  return std::unique_ptr<Backend>(std::move(backend));
}

CudaBackend::~CudaBackend() {
  if (graphs_ != nullptr) graphs_->Abandon();
  if (stream_.get() != nullptr) cudaStreamSynchronize(stream_.get());
  for (Slot& slot : slots_) {
    if (slot.done != nullptr) cudaEventDestroy(slot.done);
  }
}

StatusOr<std::unique_ptr<DeviceBuffer>> CudaBackend::Allocate(size_t bytes) {
  DeviceMemory memory;
  T6_RETURN_IF_ERROR(memory.Allocate(bytes));
  T6_RETURN_IF_CUDA_ERROR(cudaMemsetAsync(memory.as<void>(), 0, memory.size(), stream_.get()));
  T6_RETURN_IF_CUDA_ERROR(cudaStreamSynchronize(stream_.get()));
  return std::unique_ptr<DeviceBuffer>(std::make_unique<CudaBuffer>(std::move(memory), bytes));
}

Status CudaBackend::Upload(void* device, const void* host, size_t bytes) {
  if (bytes == 0) return absl::OkStatus();
  T6_RETURN_IF_CUDA_ERROR(cudaMemcpyAsync(device, host, bytes, cudaMemcpyHostToDevice, stream_.get()));
  T6_RETURN_IF_CUDA_ERROR(cudaStreamSynchronize(stream_.get()));
  return absl::OkStatus();
}

Status CudaBackend::Download(void* host, const void* device, size_t bytes) {
  if (bytes > 0) {
    T6_RETURN_IF_CUDA_ERROR(cudaMemcpyAsync(host, device, bytes, cudaMemcpyDeviceToHost, stream_.get()));
  }
  T6_RETURN_IF_CUDA_ERROR(cudaStreamSynchronize(stream_.get()));
  return absl::OkStatus();
}

// Every row may begin a page, copied or cleared.
size_t CudaBackend::ArrayBytes(const StepLimits& limits) {
  const size_t pages = static_cast<size_t>(limits.max_rows) + 2 * limits.max_sequences;
  return StepArrays(limits.max_rows, limits.max_outputs).pages +
         pages * (sizeof(PageCopy) + sizeof(int32_t)) + 32;
}

size_t CudaBackend::WorkspaceBytes(const StepLimits& limits, const AttentionSpec& spec,
                                   const ModelSizes& sizes) const {
  return cuda::Gemm::WorkspaceBytes(limits, spec, sizes) + attention_->WorkspaceBytes(limits, spec) +
         ArrayBytes(limits) + limits.max_outputs * sizeof(int32_t) +
         cuda::StepGraphs::kMostGraphs * cuda::StepGraphs::kBytesEach + cuda::StepProgram::kBytes;
}

Status CudaBackend::Reserve(const StepLimits& limits, const AttentionSpec& spec, const ModelSizes& sizes) {
  // At load, not at the first step.
  T6_RETURN_IF_ERROR(general_attention_->Supports(spec, limits.page_dtype));
  limits_ = limits;
  graphs_ = std::make_unique<cuda::StepGraphs>(stream_.get());
  T6_RETURN_IF_ERROR(gemm_->Reserve(limits, spec, sizes));
  T6_RETURN_IF_ERROR(attention_->Reserve(limits, spec));
  T6_RETURN_IF_ERROR(instructions_.Allocate(cuda::StepProgram::kBytes));
  if (timer_ != nullptr) T6_RETURN_IF_ERROR(timer_->Reserve());
  // Blocks of the one kernel wait for each other: not where another process may hold a multiprocessor and
  // wait for one that we hold.
  T6_RETURN_IF_CUDA_ERROR(program_->Reserve(is_shared_ ? nullptr : attention_->decode_config(),
                                            instructions_.as<void>(),
                                            timer_ != nullptr ? timer_->clocks() : nullptr));
  T6_RETURN_IF_ERROR(arrays_.Allocate(ArrayBytes(limits)));
  T6_RETURN_IF_ERROR(results_.Allocate(kStepsInFlight * limits.max_outputs * sizeof(SampleResult)));
  T6_RETURN_IF_ERROR(sampled_.Allocate(limits.max_outputs * sizeof(int32_t)));
  T6_RETURN_IF_CUDA_ERROR(
      cudaMemsetAsync(sampled_.as<void>(), 0, limits.max_outputs * sizeof(int32_t), stream_.get()));
  for (Slot& slot : slots_) {
    T6_RETURN_IF_ERROR(slot.arrays.Allocate(ArrayBytes(limits)));
  }
  return absl::OkStatus();
}

Status CudaBackend::BeginStep(const StepPlan& plan, const AttentionSpec& spec) {
  if (in_flight_.size() >= slots_.size()) return Internal("{} steps are in flight", in_flight_.size());
  if (plan.n_rows() > limits_.max_rows || plan.n_outputs() > limits_.max_outputs) {
    return Internal("a step of {} rows and {} outputs; {} and {} are reserved", plan.n_rows(),
                    plan.n_outputs(), limits_.max_rows, limits_.max_outputs);
  }
  plan_ = &plan;
  T6_RETURN_IF_ERROR(attention_->Plan(plan, spec));
  const auto attention_key = static_cast<uint64_t>(attention_->graph_key());
  // Events say nothing about operations within a graph; a program keeps its own clocks.
  const bool is_timed = timer_ != nullptr && plan.n_rows() >= cuda::kMinSplitRows;
  const bool has_graph = attention_key != 0 && plan.n_outputs() > 0 && !is_timed;
  n_rows_ = has_graph ? attention_->step().row_capacity : plan.n_rows();
  n_outputs_ = has_graph ? cuda::PowerOfTwoFrom(plan.n_outputs(), limits_.max_outputs) : plan.n_outputs();
  graph_key_ = has_graph ? attention_key * 0x1000193 + static_cast<uint64_t>(n_outputs_) : 0;
  offsets_ = StepArrays(n_rows_, n_outputs_);
  return CopyArrays(plan);
}

// Rows and outputs that only a graph has are token 0 and not sampled.
Status CudaBackend::CopyArrays(const StepPlan& plan) {
  Slot& slot = slots_[turn_];
  auto* to = slot.arrays.as<uint8_t>();
  auto* sampling = reinterpret_cast<SampleRow*>(to + offsets_.sampling);
  auto* output_rows = reinterpret_cast<int32_t*>(to + offsets_.output_rows);
  auto* token_ids = reinterpret_cast<int32_t*>(to + offsets_.token_ids);
  for (int i = 0; i < n_outputs_; ++i) {
    const bool is_used = i < plan.n_outputs();
    sampling[i] = is_used ? cuda::ToDevice(plan.sampling[i]) : SampleRow();
    sampling[i].result = turn_ * limits_.max_outputs + i;
    output_rows[i] = is_used ? plan.output_rows[i] : 0;
  }
  std::copy(plan.token_ids.begin(), plan.token_ids.end(), token_ids);
  std::fill(token_ids + plan.n_rows(), token_ids + n_rows_, 0);
  const size_t copies = plan.copy_pages.size() * sizeof(PageCopy);
  const size_t clears = plan.clear_pages.size() * sizeof(int32_t);
  const size_t bytes = offsets_.pages + copies + clears;
  if (bytes > slot.arrays.size())
    return Internal("a step of {} pages to copy and {} to clear", plan.copy_pages.size(),
                    plan.clear_pages.size());
  if (copies > 0) std::memcpy(to + offsets_.pages, plan.copy_pages.data(), copies);
  if (clears > 0) std::memcpy(to + offsets_.pages + copies, plan.clear_pages.data(), clears);
  T6_RETURN_IF_CUDA_ERROR(
      cudaMemcpyAsync(arrays_.as<void>(), to, bytes, cudaMemcpyHostToDevice, stream_.get()));
  return absl::OkStatus();
}

Status CudaBackend::CopyAndClearPages(const CopyPagesParams& params) {
  if (plan_->copy_pages.empty() && plan_->clear_pages.empty()) return absl::OkStatus();
  cuda::CopyPagesCall call;
  call.base = params.base, call.layout = cuda::PartsOf(*params.layout);
  call.n_layers = params.n_layers, call.n_pages = params.n_pages;
  call.copies = At<PageCopy>(offsets_.pages), call.n_copies = static_cast<int>(plan_->copy_pages.size());
  call.clears = At<int32_t>(offsets_.pages + plan_->copy_pages.size() * sizeof(PageCopy));
  call.n_clears = static_cast<int>(plan_->clear_pages.size());
  T6_RETURN_IF_CUDA_ERROR(LaunchCopyPages(call, stream_.get()));
  return absl::OkStatus();
}

Status CudaBackend::Embed(const EmbedParams& params) {
  graphs_->Abandon();  // of a step that failed half way
  T6_RETURN_IF_ERROR(graphs_->Begin(graph_key_));
  program_->Abandon();
  if (timer_ != nullptr) timer_->Begin();
  cuda::EmbedCall call;
  call.table = params.table, call.dtype = params.dtype, call.width = params.width;
  call.ids = At<int32_t>(offsets_.token_ids), call.sampled = sampled_.as<int32_t>();
  call.n_rows = n_rows_, call.out = params.out, call.stats = gemm_->StatsFor(params.out, n_rows_);
  return Issue(
      "embedding",
      [&]() -> Status {
        T6_RETURN_IF_ERROR(attention_->LaunchPlanned());
        T6_RETURN_IF_CUDA_ERROR(LaunchEmbed(call, stream_.get()));
        const int n_rows = std::max(n_rows_, n_outputs_);
        if (graphs_->captures() && n_rows < cuda::kMinSplitRows) {
          program_->Begin(n_rows, attention_->step().n_rows);
        }
        return absl::OkStatus();
      },
      Id(call.table), Id(call.out), Id(call.ids));
}

Status CudaBackend::Project(const ProjectParams& params) {
  const int capacity = params.row_index != nullptr ? n_outputs_ : n_rows_;
  const int n_rows = graph_key_ != 0 ? capacity : params.n_rows;
  const std::string name = timer_ == nullptr ? "" : NameOf(params);
  return Issue(
      name.c_str(), [&] { return gemm_->Project(params, n_rows); }, Id(params.in), Id(params.weight),
      Id(params.out), params.epilogue, n_rows);
}

Status CudaBackend::StoreFactors(const StoreFactorsParams& params) {
  return Issue(
      "store", [&] { return attention_->Store(params); }, Id(params.qkv), Id(params.pages.base));
}

Status CudaBackend::TpaAttention(const TpaAttentionParams& params) {
  return Issue(
      "attention", [&] { return attention_->Run(params); }, Id(params.qkv), Id(params.pages.base),
      Id(params.out));
}

// As an embedding does it: row i is row output_rows[i] of a table.
Status CudaBackend::KeepOutputRows(const KeepOutputRowsParams& params) {
  if (graph_key_ != 0) return Internal("rows are kept in a step that is one graph");
  cuda::EmbedCall call;
  call.ids = output_rows(), call.n_rows = params.plan->n_rows();
  call.table = params.x, call.width = params.width, call.out = params.kept_x;
  T6_RETURN_IF_CUDA_ERROR(LaunchEmbed(call, stream_.get()));
  call.table = params.qkv, call.width = params.qkv_stride, call.out = params.kept_qkv;
  T6_RETURN_IF_CUDA_ERROR(LaunchEmbed(call, stream_.get()));
  return attention_->Plan(*params.plan, *params.spec);
}

Status CudaBackend::Sample(const SampleParams& params) {
  cuda::SampleCall call;
  call.logits = params.logits, call.vocab = params.vocab, call.n_text = params.n_text_tokens;
  call.rows = At<SampleRow>(offsets_.sampling), call.n_rows = n_outputs_;
  call.results = results_.as<SampleResult>(), call.sampled = sampled_.as<int32_t>();
  T6_RETURN_IF_ERROR(Issue(
      "sampling",
      [&]() -> Status {
        call.best = program_->KeepBest(std::clamp(call.n_text, 1, call.vocab));
        T6_RETURN_IF_CUDA_ERROR(program_->Launch());
        T6_RETURN_IF_CUDA_ERROR(LaunchSample(call, stream_.get()));
        return absl::OkStatus();
      },
      Id(call.logits), params.vocab, params.n_text_tokens, Id(call.rows)));
  T6_RETURN_IF_ERROR(graphs_->End([&]() -> Status {
    T6_RETURN_IF_CUDA_ERROR(program_->Upload());
    return absl::OkStatus();
  }));
  if (timer_ != nullptr && graph_key_ == 0) T6_RETURN_IF_ERROR(timer_->Mark(""));
  Slot& slot = slots_[turn_];
  slot.n_outputs = plan_->n_outputs();
  T6_RETURN_IF_CUDA_ERROR(cudaEventRecord(slot.done, stream_.get()));
  in_flight_.push_back(&slot);
  turn_ = (turn_ + 1) % kStepsInFlight;
  return absl::OkStatus();
}

StatusOr<StepResult> CudaBackend::WaitSample() {
  if (in_flight_.empty()) return Internal("no step is in flight");
  const Slot& slot = *in_flight_.front();
  in_flight_.pop_front();
  T6_RETURN_IF_CUDA_ERROR(cudaEventSynchronize(slot.done));
  const auto* results =
      results_.as<SampleResult>() + (&slot - slots_.data()) * static_cast<ptrdiff_t>(limits_.max_outputs);
  StepResult result;
  result.outputs.reserve(slot.n_outputs);
  for (int i = 0; i < slot.n_outputs; ++i) {
    const SampleResult& from = results[i];
    if (from.is_finite == 0) return Internal("the logits of output row {} are not all finite", i);
    result.outputs.push_back(cuda::FromDevice(from));
  }
  return result;
}

StatusOr<std::vector<OperationTime>> CudaBackend::OperationTimes() {
  if (timer_ == nullptr) return std::vector<OperationTime>();
  return timer_->Times(graph_key_ != 0 ? program_->names() : std::vector<std::string>());
}

}  // namespace

StatusOr<std::unique_ptr<Backend>> MakeCudaBackend(const CudaOptions& options) {
  return CudaBackend::Make(options);
}

}  // namespace t6
