#include <algorithm>
#include <map>

#include "engine/backend/cuda/launch.cuh"
#include "engine/backend/cuda/step_instances.h"
#include "engine/backend/cuda/step_program.h"

namespace t6::cuda {
namespace {

// In front of the instructions: the meetings' counters, and the spaces for what blocks hand over: numbers of
// rows, then attention's partial results.
constexpr size_t kCountBytes = kStepCounts * sizeof(uint32_t);
constexpr size_t kRowBytes = size_t{2} << 20, kPartialBytes = size_t{4} << 20,
                 kSpaceBytes = kRowBytes + kPartialBytes;
constexpr size_t kBestBytes = 128;  // behind the counters: keys of the best tokens
constexpr size_t kSpacesAt = kCountBytes + kBestBytes, kFrontBytes = kSpacesAt + kStepSpaces * kSpaceBytes;
static_assert(StepProgram::kMaxRows * sizeof(uint64_t) <= kBestBytes);
constexpr int kBlockShared = 227 << 10;

const StepInstance* FindInstance(const DecodeAttentionConfig& config) {
  const std::span<const StepInstance> instances = config.shape.rank == 1   ? StepInstances<1>()
                                                  : config.shape.rank == 2 ? StepInstances<2>()
                                                                           : std::span<const StepInstance>();
  for (const StepInstance& instance : instances) {
    if (instance.head_dim == config.shape.head_dim && instance.warp_tokens == config.warp_tokens &&
        config.n_threads / 32 - 1 <= instance.n_warps) {
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
  if (error == cudaSuccess) error = cudaMemsetAsync(memory_ + kCountBytes, 0xff, kBestBytes, stream_);
  size_t own = 0;  // shared memory that the compiler placed
  for (const void* kernel : instance_->kernels) {
    cudaFuncAttributes attributes{};
    if (error == cudaSuccess) error = cudaFuncGetAttributes(&attributes, kernel);
    own = std::max(own, attributes.sharedSizeBytes);
  }
  const int exchange =
      std::max(config->exchange_bytes, ExchangeBytes(config->shape.head_dim, instance_->n_warps));
  ring_bytes_ = (kBlockShared - exchange - static_cast<int>(own)) / kRingAlignment * kRingAlignment;
  shared_bytes_ = ring_bytes_ + exchange;
  const int largest = std::max(config->stage_bytes, LargestProductItem(instance_->n_warps));
  const size_t partials =
      size_t(n_sms_ + kMaxRows) * config->shape.n_heads * (config->shape.head_dim + 2) * 4;
  if (3 * largest > ring_bytes_ || partials > kPartialBytes) instance_ = nullptr;
  if (instance_ == nullptr) return error;
  for (const void* kernel : instance_->kernels) {
    if (error == cudaSuccess) {
      error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes_);
    }
    // Blocks wait for each other: all have to be there at once. Nothing else holds a multiprocessor that
    // waits for them.
    int resident = 0;
    if (error == cudaSuccess) {
      error = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&resident, kernel, instance_->n_threads(),
                                                            shared_bytes_);
    }
    if (error != cudaSuccess || resident == 0) {
      instance_ = nullptr;
      break;
    }
  }
  return error;
}

bool StepProgram::Begin(int n_rows, const int32_t* existing) {
  Abandon();
  n_rows_ = n_rows, existing_ = existing;
  // A model's programs are all as long as the longest, or about.
  const bool has_room = kFrontBytes + (used_ + longest_) * sizeof(StepInstruction) <= kBytes;
  return collects_ = instance_ != nullptr && n_rows <= kMaxRows && has_room;
}

uint64_t* StepProgram::KeepBest(int n_text) {
  if (!collects_ || instructions_.size() == launched_) return nullptr;
  StepOperation& last = instructions_.back().operation;
  SkinnyCall& call = last.product;
  if (last.kind != StepOperation::kProduct || call.epilogue != Epilogue::kStore) return nullptr;
  if (call.row_index == nullptr) return nullptr;
  call.best = reinterpret_cast<uint64_t*>(memory_ + kCountBytes), call.n_best = n_text;
  return call.best;
}

void StepProgram::AddProduct(const SkinnyCall& call) {
  StepInstruction& instruction = instructions_.emplace_back();
  instruction.operation.kind = StepOperation::kProduct;
  instruction.operation.product = call;
  instruction.operation.shape = ProductShape::Make(call, n_sms_, instance_->n_warps);
}

void StepProgram::AddAttention(const DecodeCall& call) {
  StepInstruction& attend = instructions_.emplace_back();
  attend.operation.kind = StepOperation::kAttend;
  attend.operation.decode = MakeDecodeParams(call);
  attend.operation.decode.head_norm = true;  // all outputs come from the merge
  attend.maps = *call.maps;
  StepInstruction& combine = instructions_.emplace_back();
  combine.operation.kind = StepOperation::kCombine;
  combine.operation.combine = MakeCombineParams(call);
  combine.operation.n_sequences = call.max_sequences;
}

// What an operation of [begin, end) reads of another one's results goes through the exchange, if both lie
// between the same two meetings and there is room, else the blocks meet behind the one that writes.
void StepProgram::Link(size_t begin, StepLaunch* launch) {
  struct Writer {
    StepOperation* operation;
    int generation;
  };
  std::map<const void*, Writer> writers;  // of the rows at an address, the last
  int generation = 0;                     // meetings so far
  size_t used = 0, most = 0;              // bytes of the generation
  const auto space = [&] { return memory_ + kSpacesAt + generation % kStepSpaces * kSpaceBytes; };
  const auto take = [&](size_t bytes) {
    void* at = space() + used;
    used += (bytes + 127) / 128 * 128, most = std::max(most, used);
    return at;
  };
  // `read`: the reader takes it from there.
  const auto link = [&](const void* address, auto read) {
    const auto at = writers.find(address);
    if (at == writers.end()) return;
    StepOperation& from = *at->second.operation;
    ProductLinks& links = from.links;
    if (links.rows == nullptr) {
      const SkinnyCall& call = from.product;
      const bool combines = from.kind == StepOperation::kCombine;
      const size_t stride = combines ? from.combine.n_heads * instance_->head_dim : (call.n + 7) / 8 * 8;
      const size_t rows = combines ? n_rows_ : call.n_rows;
      const size_t bytes = rows * stride * (!combines && call.epilogue == Epilogue::kStore ? 4 : 2);
      const size_t squares =
          !combines && call.epilogue == Epilogue::kAdd ? rows * call.stats.n_pieces * 4 : 0;
      if (at->second.generation != generation || used + bytes + squares + 256 > kRowBytes) {
        from.meets = true;
        return;
      }
      links.rows = take(bytes), links.stride = static_cast<int>(stride);
      if (squares > 0) links.squares = static_cast<float*>(take(squares));
      if (combines) from.combine.out.data = links.rows;
    }
    read(links);
  };
  for (size_t i = begin; i < instructions_.size(); ++i) {
    StepOperation& operation = instructions_[i].operation;
    if (operation.kind == StepOperation::kProduct) {
      SkinnyCall& call = operation.product;
      link(call.in, [&](const ProductLinks& links) {
        call.in = links.rows, call.in_stride = call.k = links.stride;
        if (call.squares != nullptr) call.squares = links.squares;
        operation.links.awaits = true;
      });
      writers[call.epilogue == Epilogue::kAdd ? call.stats.rows : call.out] = {&operation, generation};
    } else if (operation.kind == StepOperation::kAttend) {
      link(operation.decode.qkv, [&](const ProductLinks& links) {
        operation.decode.qkv = static_cast<const float*>(links.rows),
        operation.decode.qkv_stride = links.stride;
      });
      ++generation, used = 0;
      const int n_heads = operation.decode.n_heads;
      for (int k = 0; k < kStepSpaces; ++k) {  // the same at every attention
        auto* outs = reinterpret_cast<float*>(memory_ + kSpacesAt + k * kSpaceBytes + kRowBytes);
        const size_t n_outs = size_t(n_sms_ + kMaxRows) * n_heads * instance_->head_dim;
        launch->partials[k] = {outs, reinterpret_cast<float2*>(outs + n_outs)};
      }
      operation.decode.partials = launch->partials[generation % kStepSpaces];
      if (launch->first_attention < 0) launch->first_attention = static_cast<int>(i - begin);
      launch->n_meetings = generation;
    } else {
      operation.combine.partials = launch->partials[generation % kStepSpaces];
      writers[operation.combine.out.data] = {&operation, generation};
    }
  }
  for (int i = 0; i < kStepSpaces; ++i) {
    launch->places[i] = reinterpret_cast<uint4*>(memory_ + kSpacesAt + i * kSpaceBytes);
  }
  launch->n_places = static_cast<int>(most / sizeof(uint4));
}

cudaError_t StepProgram::Launch() {
  if (launched_ == instructions_.size()) return cudaSuccess;
  const size_t first = used_ + launched_;
  if (kFrontBytes + (used_ + instructions_.size()) * sizeof(StepInstruction) > kBytes) {
    return cudaErrorMemoryAllocation;
  }
  StepLaunch launch{
      .program = reinterpret_cast<const StepInstruction*>(memory_ + kFrontBytes) + first,
      .n_instructions = static_cast<int>(instructions_.size() - launched_),
      .n_meetings = 0,
      .first_attention = -1,
      .counts = reinterpret_cast<uint32_t*>(memory_),
      .n_rows = existing_,
      .ring_bytes = ring_bytes_,
      .clocks = clocks_,
  };
  Link(launched_, &launch);
  launched_ = instructions_.size();
  const OverlappedLaunch overlapped(dim3(n_sms_), instance_->n_threads(), shared_bytes_, stream_, true);
  bool takes_few = n_rows_ <= kFewRows;
  for (size_t i = first - used_; i < launched_; ++i) {
    const StepOperation& operation = instructions_[i].operation;
    takes_few &= operation.kind != StepOperation::kProduct ||
                 operation.shape.TakesFewRows(instance_->n_warps, operation.product.epilogue);
  }
  void* arguments[] = {&launch};
  return cudaLaunchKernelExC(overlapped.config(), instance_->kernels[takes_few ? 0 : 1], arguments);
}

cudaError_t StepProgram::Upload() {
  cudaError_t error = cudaSuccess;
  if (launched_ > 0) {
    // Pageable memory: the bytes have been read when the call returns.
    error = cudaMemcpyAsync(memory_ + kFrontBytes + used_ * sizeof(StepInstruction), instructions_.data(),
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
