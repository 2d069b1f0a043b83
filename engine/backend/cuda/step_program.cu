#include <algorithm>

#include "engine/backend/cuda/step_instances.h"
#include "engine/backend/cuda/step_program.h"

namespace t6::cuda {
namespace {

constexpr size_t kCountBytes = 256;  // in front of the instructions
constexpr int kBlockShared = 227 << 10;

const StepInstance* FindInstance(const DecodeAttentionConfig& config) {
  const std::span<const StepInstance> instances = config.shape.rank == 1   ? StepInstances<1>()
                                                  : config.shape.rank == 2 ? StepInstances<2>()
                                                                           : std::span<const StepInstance>();
  for (const StepInstance& instance : instances) {
    if (instance.head_dim == config.shape.head_dim && instance.warp_tokens == config.warp_tokens &&
        config.n_threads <= instance.n_threads) {
      return &instance;
    }
  }
  return nullptr;
}

std::string NameOf(const StepOperation& operation) {
  if (operation.kind == StepOperation::kAttend) return "attention";
  if (operation.kind == StepOperation::kCombine) return "attention's merge";
  const SkinnyCall& call = operation.product;
  return std::to_string(call.n) + " x " + std::to_string(call.k) +
         (call.epilogue == Epilogue::kSwiGlu ? " SwiGLU"
          : call.epilogue == Epilogue::kAdd  ? " added"
                                             : "");
}

}  // namespace

StepProgram::StepProgram(cudaStream_t stream, int n_sms) : stream_(stream), n_sms_(n_sms) {}
StepProgram::~StepProgram() = default;

cudaError_t StepProgram::Reserve(const DecodeAttentionConfig* config, void* memory, uint64_t* clocks) {
  Abandon();
  clocks_ = clocks;
  used_ = longest_ = 0, memory_ = static_cast<unsigned char*>(memory);
  instance_ = config != nullptr && !config->portable && !config->shape.fp8 && config->n_blocks == n_sms_
                  ? FindInstance(*config)
                  : nullptr;
  if (instance_ == nullptr) return cudaSuccess;
  cudaError_t error = cudaMemsetAsync(memory_, 0, kCountBytes, stream_);
  size_t own = 0;  // shared memory that the compiler placed
  for (const void* kernel : instance_->kernels) {
    cudaFuncAttributes attributes{};
    if (error == cudaSuccess) error = cudaFuncGetAttributes(&attributes, kernel);
    own = std::max(own, attributes.sharedSizeBytes);
  }
  const int exchange = ExchangeBytes(config->shape.head_dim, instance_->n_threads / 32 - 1);
  ring_bytes_ = (kBlockShared - exchange - static_cast<int>(own)) / kRingAlignment * kRingAlignment;
  shared_bytes_ = ring_bytes_ + exchange;
  const int largest = std::max(config->stage_bytes, LargestProductItem(instance_->n_threads / 32 - 1));
  if (3 * largest > ring_bytes_) instance_ = nullptr;
  if (instance_ == nullptr) return error;
  for (const void* kernel : instance_->kernels) {
    if (error == cudaSuccess) {
      error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes_);
    }
  }
  return error;
}

bool StepProgram::Begin(int n_rows) {
  Abandon();
  n_rows_ = n_rows;
  // A model's programs are all as long as the longest, or about.
  const bool has_room = kCountBytes + (used_ + longest_) * sizeof(StepInstruction) <= kBytes;
  return collects_ = instance_ != nullptr && n_rows <= kMaxRows && has_room;
}

void StepProgram::AddProduct(const SkinnyCall& call) {
  StepInstruction& instruction = instructions_.emplace_back();
  instruction.operation.kind = StepOperation::kProduct;
  instruction.operation.product = call;
  instruction.operation.shape = ProductShape::Make(call, n_sms_, instance_->n_threads / 32 - 1);
}

void StepProgram::AddAttention(const DecodeCall& call) {
  StepInstruction& attend = instructions_.emplace_back();
  attend.operation.kind = StepOperation::kAttend;
  attend.operation.decode = MakeDecodeParams(call);
  attend.maps = *call.maps;
  StepInstruction& combine = instructions_.emplace_back();
  combine.operation.kind = StepOperation::kCombine;
  combine.operation.combine = MakeCombineParams(call);
  combine.operation.n_sequences = call.max_sequences;
}

cudaError_t StepProgram::Launch() {
  if (launched_ == instructions_.size()) return cudaSuccess;
  const size_t first = used_ + launched_;
  if (kCountBytes + (used_ + instructions_.size()) * sizeof(StepInstruction) > kBytes) {
    return cudaErrorMemoryAllocation;
  }
  StepLaunch launch{
      .program = reinterpret_cast<const StepInstruction*>(memory_ + kCountBytes) + first,
      .n_instructions = static_cast<int>(instructions_.size() - launched_),
      .count = reinterpret_cast<uint32_t*>(memory_),
      .ring_bytes = ring_bytes_,
      .clocks = clocks_,
  };
  launched_ = instructions_.size();
  cudaLaunchAttribute resident{};  // all blocks at once, or an error
  resident.id = cudaLaunchAttributeCooperative;
  resident.val.cooperative = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(n_sms_);
  config.blockDim = dim3(instance_->n_threads);
  config.dynamicSmemBytes = shared_bytes_;
  config.stream = stream_;
  config.attrs = &resident;
  config.numAttrs = 1;
  void* arguments[] = {&launch};
  return cudaLaunchKernelExC(&config, instance_->kernels[n_rows_ <= 8 ? 0 : 1], arguments);
}

cudaError_t StepProgram::Upload() {
  cudaError_t error = cudaSuccess;
  if (launched_ > 0) {
    // Pageable memory: the bytes have been read when the call returns.
    error = cudaMemcpyAsync(memory_ + kCountBytes + used_ * sizeof(StepInstruction), instructions_.data(),
                            launched_ * sizeof(StepInstruction), cudaMemcpyHostToDevice, stream_);
    used_ += launched_, longest_ = std::max(longest_, launched_);
    names_.clear();
    for (const StepInstruction& i : instructions_) names_.push_back(NameOf(i.operation));
  }
  Abandon();
  return error;
}

void StepProgram::Abandon() {
  collects_ = false, launched_ = 0;
  instructions_.clear();
}

}  // namespace t6::cuda
