#include "engine/backend/cuda/tpa_attention.h"

#include <algorithm>
#include <cstring>
#include <numeric>
#include <optional>
#include <unordered_map>
#include <utility>

#include "engine/backend/cuda/cuda_memory.h"
#include "engine/backend/cuda/decode_attention.h"
#include "engine/backend/cuda/decode_shape.h"
#include "engine/backend/cuda/staging.h"
#include "engine/backend/cuda/step_arrays.h"
#include "engine/backend/cuda/step_program.h"
#include "engine/backend/cuda/store_factors.h"
#include "engine/base/check.h"

namespace t6::cuda {
namespace {

// Where a step's arrays lie in one block of int32: a function of the capacities alone, so that pointers in a
// captured graph stay true for every step with the same ones.
struct AttentionArrays {
  AttentionArrays(int rows, int sequences) {
    const auto take = [this](int n) { return std::exchange(page_ids, page_ids + n); };
    n_sequences = take(1), n_rows = take(1);
    row_begin = take(sequences + 1), context_len = take(sequences), page_begin = take(sequences + 1);
    decode_len = take(sequences);
    positions = take(rows), slots = take(rows);
    page_ids = (page_ids + 3) / 4 * 4;
  }
  int n_sequences, n_rows, row_begin, context_len, page_begin, positions, slots;
  int decode_len;    // context_len of the sequences that decode's kernels attend for, else 0
  int page_ids = 0;  // last: a step copies as many as it has
};

// Of the largest step.
int64_t MaxTotalPages(const StepLimits& limits) {
  const int64_t pages = (static_cast<int64_t>(limits.max_context) + kPageTokens - 1) / kPageTokens;
  return pages * limits.max_sequences;
}
size_t StepBytes(const StepLimits& limits) {
  const AttentionArrays arrays(limits.max_rows, limits.max_sequences);
  // One page id more for each sequence: a plan may list one beyond what its context needs.
  return (static_cast<size_t>(arrays.page_ids) + MaxTotalPages(limits) + limits.max_sequences) *
         sizeof(int32_t);
}

// None where the decode kernels do not cover the spec.
std::optional<DecodeAttentionConfig> DecodeConfig(const AttentionSpec& spec, DType pages,
                                                  const DecodeDevice& device) {
  const bool contextual = spec.k.a == HeadFactor::kContextual && spec.k.b == DimFactor::kContextual &&
                          spec.v.a == HeadFactor::kContextual && spec.v.b == DimFactor::kContextual;
  if (!contextual || spec.k.rank != spec.v.rank) return std::nullopt;
  return DecodeAttentionConfig::Make(ShapeOf(spec, pages), device);
}

// Everything that Reserve allocates for the decode kernels, as offsets into one block of device memory.
struct DecodeWorkspace {
  DecodeWorkspace(const StepLimits& limits, const AttentionSpec& spec, int n_blocks, int fixed_split_pages) {
    const size_t segments =
        n_blocks == 0 ? 0
                      : MaxSegments(n_blocks, limits.max_sequences, MaxTotalPages(limits), fixed_split_pages);
    const auto take = [this](size_t bytes) {
      return std::exchange(total, (total + bytes + 255) / 256 * 256);
    };
    out = take(segments * spec.n_heads * spec.head_dim * sizeof(float));
    max_sum = take(segments * spec.n_heads * sizeof(float2));
    plan_segments = take(segments * sizeof(DecodeSegment));
    sequences = take(limits.max_sequences * sizeof(DecodeSequence));
    blocks = take(n_blocks * sizeof(DecodeBlock));
    units = take((static_cast<size_t>(limits.max_sequences) + 1) * sizeof(int32_t));
  }
  size_t out, max_sum, plan_segments, sequences, blocks, units;
  size_t total = 0;
};

class TpaAttentionImpl final : public TpaAttention {
 public:
  TpaAttentionImpl(TpaAttentionOptions options, const DecodeDevice& device)
      : options_(std::move(options)), device_(device) {}

  std::string Slow(const AttentionSpec& spec, DType pages) const override {
    if (pages == DType::kF32 || !DecodeConfig(spec, pages, device_)) {
      return fmt::format("{} heads of {}, ranks {} and {}, over {} pages", spec.n_heads, spec.head_dim,
                         spec.k.rank, spec.v.rank, NameOf(pages));
    }
    if (multi_row() == nullptr) return "prompts";
    const Status rows = multi_row()->Supports(spec, pages);
    return rows.ok() ? "" : fmt::format("prompts ({})", MessageOf(rows));
  }
  size_t WorkspaceBytes(const StepLimits& limits, const AttentionSpec& spec) const override {
    size_t bytes = StepBytes(limits) + Workspace(limits, spec).total;
    for (const auto* path : {&options_.multi_row, &options_.general}) {
      if (*path != nullptr) bytes += (*path)->WorkspaceBytes(limits, spec);
    }
    return bytes;
  }

  Status Reserve(const StepLimits& limits, const AttentionSpec& spec) override;
  Status Plan(const StepPlan& plan, const AttentionSpec& spec) override;
  Status Store(const StoreFactorsParams& params) override;
  Status Run(const TpaAttentionParams& params) override;

  const DecodeAttentionConfig* decode_config() const override { return config_ ? &*config_ : nullptr; }
  const AttentionStep& step() const override { return step_; }
  int64_t graph_key() const override {
    if (has_multi_row_) return 0;
    return (static_cast<int64_t>(step_.row_capacity) << 32) | step_.sequence_capacity;
  }

 private:
  DecodeWorkspace Workspace(const StepLimits& limits, const AttentionSpec& spec) const {
    const auto config = DecodeConfig(spec, limits.page_dtype, device_);
    return {limits, spec, config ? config->n_blocks : 0, options_.fixed_split_pages};
  }
  // Not where bits may depend on nothing but a row's own tokens: its kernels differ with how a chunk is cut.
  AttentionPath* multi_row() const {
    return options_.fixed_split_pages == 0 ? options_.multi_row.get() : nullptr;
  }
  Status CheckPlan(const StepPlan& plan) const;
  bool DecodesSequence(const StepPlan& plan, int sequence) const {
    const bool one_row = plan.row_begin[sequence + 1] - plan.row_begin[sequence] == 1;
    return one_row && !(multi_row_plans_ && options_.multi_row->Takes(sequence));
  }
  Status CopyStep(const StepPlan& plan, const AttentionArrays& arrays);
  Status LaunchPlan();
  Status LaunchPlanned() override {
    return std::exchange(is_planned_, true) ? absl::OkStatus() : LaunchPlan();
  }
  StatusOr<const PageMaps*> MapsOf(const LayerPages& pages);
  // The step's factors are decode's kernels' to store.
  bool StoresInDecode(const PageLayout& layout) const {
    return options_.stores_in_decode && config_ && layout.dtype() == DType::kBF16 && has_one_row_ &&
           !has_multi_row_;
  }
  // Sequences of several rows go to multi_row.
  bool UsesMultiRow(const AttentionSpec& spec, DType pages) const {
    return has_multi_row_ && multi_row_plans_ && config_ && pages == DecodedPages() &&
           options_.multi_row->Supports(spec, pages).ok();
  }
  // The dtype of pages that decode's kernels read, where there are any.
  DType DecodedPages() const { return config_->shape.fp8 ? DType::kFp8 : DType::kBF16; }
  bool Collects() const { return options_.program != nullptr && options_.program->collects(); }
  // What has been collected comes before what is launched now.
  Status LaunchCollected() {
    if (Collects()) T6_RETURN_IF_CUDA_ERROR(options_.program->Launch());
    return absl::OkStatus();
  }
  Status RunDecode(const TpaAttentionParams& params);
  Status RunPath(const TpaAttentionParams& params, int min_rows);

  TpaAttentionOptions options_;
  const DecodeDevice device_;
  StepLimits limits_;
  std::optional<DecodeAttentionConfig> config_;  // none: no decode kernel covers the spec
  DecodePlan plan_;                              // of the largest grid
  DecodePartials partials_;
  DeviceMemory workspace_, arrays_;
  Staging staging_;
  AttentionStep step_;
  bool has_one_row_ = false,
       has_multi_row_ = false;    // what decode's kernels attend for, and what they do not
  bool multi_row_plans_ = false;  // options_.multi_row has planned this step
  const int32_t* decode_len_ = nullptr;
  bool launched_since_plan_ = false;
  bool is_planned_ = true;  // or the device's plan has yet to be made
  std::unordered_map<const void*, std::pair<int32_t, PageMaps>> maps_;  // by a layer's first page
};

Status TpaAttentionImpl::Reserve(const StepLimits& limits, const AttentionSpec& spec) {
  limits_ = limits;
  config_ = DecodeConfig(spec, limits.page_dtype, device_);
  maps_.clear();
  const DecodeWorkspace offsets = Workspace(limits, spec);
  T6_RETURN_IF_ERROR(workspace_.Allocate(offsets.total));
  T6_RETURN_IF_ERROR(arrays_.Allocate(StepBytes(limits)));
  T6_RETURN_IF_ERROR(staging_.Reserve(StepBytes(limits)));
  auto* base = workspace_.as<uint8_t>();
  partials_ = {reinterpret_cast<float*>(base + offsets.out),
               reinterpret_cast<float2*>(base + offsets.max_sum)};
  plan_ = {.segments = reinterpret_cast<DecodeSegment*>(base + offsets.plan_segments),
           .sequences = reinterpret_cast<DecodeSequence*>(base + offsets.sequences),
           .blocks = reinterpret_cast<DecodeBlock*>(base + offsets.blocks),
           .unit_begin = reinterpret_cast<int32_t*>(base + offsets.units),
           .n_blocks = config_ ? config_->n_blocks : 0,
           .fixed_split_pages = options_.fixed_split_pages};
  for (const auto* path : {&options_.multi_row, &options_.general}) {
    if (*path != nullptr) T6_RETURN_IF_ERROR((*path)->Reserve(limits, spec));
  }
  return absl::OkStatus();
}

Status TpaAttentionImpl::CheckPlan(const StepPlan& plan) const {
  if (plan.n_rows() > limits_.max_rows || plan.n_sequences() > limits_.max_sequences) {
    return Internal("a step of {} rows and {} sequences; {} and {} are reserved", plan.n_rows(),
                    plan.n_sequences(), limits_.max_rows, limits_.max_sequences);
  }
  const int64_t most = MaxTotalPages(limits_) + limits_.max_sequences;
  if (static_cast<int64_t>(plan.page_ids.size()) > most) {
    return Internal("a step with {} page ids; {} are reserved", plan.page_ids.size(), most);
  }
  return absl::OkStatus();
}

// One copy: the arrays lie side by side, the page ids last.
Status TpaAttentionImpl::CopyStep(const StepPlan& plan, const AttentionArrays& arrays) {
  T6_ASSIGN_OR_RETURN(uint8_t* const buffer, staging_.Next());
  auto* to = reinterpret_cast<int32_t*>(buffer);
  const auto put = [to](int offset, const std::vector<int32_t>& from) {
    if (!from.empty()) std::memcpy(to + offset, from.data(), from.size() * sizeof(int32_t));
  };
  to[arrays.n_sequences] = plan.n_sequences(), to[arrays.n_rows] = plan.n_rows();
  put(arrays.row_begin, plan.row_begin), put(arrays.context_len, plan.context_len);
  put(arrays.page_begin, plan.page_begin), put(arrays.page_ids, plan.page_ids);
  put(arrays.positions, plan.positions), put(arrays.slots, plan.slots);
  for (int i = 0; i < plan.n_sequences(); ++i) {
    to[arrays.decode_len + i] = DecodesSequence(plan, i) ? plan.context_len[i] : 0;
  }
  for (int row = plan.n_rows(); row < step_.row_capacity; ++row) {
    to[arrays.positions + row] = 0, to[arrays.slots + row] = -1;
  }
  const size_t bytes = (arrays.page_ids + plan.page_ids.size()) * sizeof(int32_t);
  return staging_.Copy(arrays_.as<void>(), bytes, options_.stream);
}

Status TpaAttentionImpl::Plan(const StepPlan& plan, const AttentionSpec& spec) {
  T6_RETURN_IF_ERROR(CheckPlan(plan));
  step_ = {};
  step_.plan = &plan;
  has_one_row_ = has_multi_row_ = multi_row_plans_ = launched_since_plan_ = false;
  is_planned_ = true;
  if (plan.n_rows() == 0) return absl::OkStatus();
  step_.row_capacity = PowerOfTwoFrom(plan.n_rows(), limits_.max_rows);
  step_.sequence_capacity = PowerOfTwoFrom(plan.n_sequences(), limits_.max_sequences);
  const AttentionArrays arrays(step_.row_capacity, step_.sequence_capacity);
  const auto* base = arrays_.as<int32_t>();
  step_.n_sequences = base + arrays.n_sequences, step_.n_rows = base + arrays.n_rows;
  step_.row_begin = base + arrays.row_begin, step_.context_len = base + arrays.context_len;
  step_.page_begin = base + arrays.page_begin, step_.page_ids = base + arrays.page_ids;
  step_.positions = base + arrays.positions, step_.slots = base + arrays.slots;
  decode_len_ = base + arrays.decode_len;
  if (multi_row() != nullptr && multi_row()->Supports(spec, limits_.page_dtype).ok()) {
    T6_RETURN_IF_ERROR(options_.multi_row->Plan(step_, spec, 2, options_.stream));
    multi_row_plans_ = options_.multi_row->TakesStep();
  }
  for (int s = 0; s < plan.n_sequences(); ++s) {
    const bool has_rows = plan.row_begin[s + 1] > plan.row_begin[s];
    (DecodesSequence(plan, s) ? has_one_row_ : has_multi_row_) |= has_rows;
  }
  T6_RETURN_IF_ERROR(CopyStep(plan, arrays));
  is_planned_ = !has_one_row_ || !config_;
  return absl::OkStatus();
}

Status TpaAttentionImpl::LaunchPlan() {
  T6_RETURN_IF_CUDA_ERROR(LaunchDecodePlan({.n_sequences = step_.n_sequences,
                                            .context_len = decode_len_,
                                            .row_begin = step_.row_begin,
                                            .page_begin = step_.page_begin,
                                            .page_ids = step_.page_ids,
                                            .max_sequences = step_.sequence_capacity},
                                           plan_, options_.stream));
  return absl::OkStatus();
}

Status TpaAttentionImpl::Store(const StoreFactorsParams& params) {
  const AttentionSpec& spec = *params.spec;
  const PageLayout& layout = *params.pages.layout;
  T6_RETURN_IF_ERROR(LaunchPlanned());
  const bool by_rows = UsesMultiRow(spec, layout.dtype()) && options_.multi_row->Stores();
  if (params.attends && (StoresInDecode(layout) || by_rows)) return absl::OkStatus();
  const auto offset = [&](PartName name) { return static_cast<int64_t>(layout.part(name).offset); };
  StoreCall call;
  call.n_heads = spec.n_heads, call.head_dim = spec.head_dim, call.rotary_dim = spec.rotary_dim;
  call.rank_k = spec.k.rank, call.rank_v = spec.v.rank, call.q_elements = spec.q_elements();
  call.type = layout.dtype() == DType::kF32    ? StoreCall::Pages::kF32
              : layout.dtype() == DType::kBF16 ? StoreCall::Pages::kBf16
                                               : StoreCall::Pages::kFp8;
  call.qkv_stride = params.qkv_stride;
  call.page_bytes = static_cast<int64_t>(layout.page_bytes());
  call.bk = offset(PartName::kBK), call.ak = offset(PartName::kAK);
  call.bv = offset(PartName::kBV), call.av = offset(PartName::kAV);
  if (layout.dtype() == DType::kFp8) call.sk = offset(PartName::kSK), call.sv = offset(PartName::kSV);
  call.pages = params.pages.base, call.qkv = params.qkv, call.cos = params.cos, call.sin = params.sin;
  call.positions = step_.positions, call.slots = step_.slots, call.n_rows = step_.row_capacity;
  // The first launch after the plan is an ordinary one, so that the plan is complete for all behind it.
  call.overlaps_prior = std::exchange(launched_since_plan_, true) && !device_.portable;
  T6_RETURN_IF_ERROR(LaunchCollected());
  T6_RETURN_IF_CUDA_ERROR(LaunchStoreFactors(call, options_.stream));
  return absl::OkStatus();
}

Status TpaAttentionImpl::Run(const TpaAttentionParams& params) {
  if (step_.row_capacity == 0) return absl::OkStatus();
  T6_RETURN_IF_ERROR(LaunchPlanned());
  if (!config_ || params.pages.layout->dtype() != DecodedPages()) return RunPath(params, 1);
  // First, for it may store the factors of decode's rows too.
  if (has_multi_row_) T6_RETURN_IF_ERROR(RunPath(params, 2));
  return has_one_row_ ? RunDecode(params) : absl::OkStatus();
}

Status TpaAttentionImpl::RunDecode(const TpaAttentionParams& params) {
  DecodeCall call;
  call.config = &*config_;
  call.pages = params.pages.base;
  if (!device_.portable) {
    T6_ASSIGN_OR_RETURN(call.maps, MapsOf(params.pages));
  }
  call.plan = plan_, call.page_ids = step_.page_ids;
  call.qkv = params.qkv, call.qkv_stride = params.qkv_stride;
  call.cos = params.cos, call.sin = params.sin;
  call.head_norm_weight = params.head_norm_weight;
  call.partials = partials_, call.out = {params.out, params.out_dtype == DType::kBF16};
  call.max_sequences = step_.sequence_capacity;
  call.stores = StoresInDecode(*params.pages.layout);
  call.overlaps_prior = std::exchange(launched_since_plan_, true) && !device_.portable;
  // A program has room for the partial results of equal shares.
  if (Collects() && call.stores && plan_.fixed_split_pages == 0) {
    options_.program->AddAttention(call);
    return absl::OkStatus();
  }
  T6_RETURN_IF_ERROR(LaunchCollected());
  T6_RETURN_IF_CUDA_ERROR(LaunchDecodeAttention(call, options_.stream));
  return absl::OkStatus();
}

Status TpaAttentionImpl::RunPath(const TpaAttentionParams& params, int min_rows) {
  const DType pages = params.pages.layout->dtype();
  T6_RETURN_IF_ERROR(LaunchCollected());
  if (min_rows > 1 && UsesMultiRow(*params.spec, pages)) {
    return options_.multi_row->Run(params, step_, min_rows, options_.stream);
  }
  if (options_.general == nullptr) {
    return Unimplemented(
        "no kernel of this device attends with {} heads of {}, ranks {} and {}, {} pages, {}",
        params.spec->n_heads, params.spec->head_dim, params.spec->k.rank, params.spec->v.rank, NameOf(pages),
        min_rows > 1 ? "several rows of a sequence" : "one row of a sequence");
  }
  T6_RETURN_IF_ERROR(options_.general->Supports(*params.spec, pages));
  return options_.general->Run(params, step_, min_rows, options_.stream);
}

StatusOr<const PageMaps*> TpaAttentionImpl::MapsOf(const LayerPages& pages) {
  auto [at, is_new] = maps_.try_emplace(pages.base);
  if (is_new || at->second.first != pages.n_pages) {
    T6_RETURN_IF_CUDA_ERROR(MakePageMaps(config_->shape, pages.base, pages.n_pages, &at->second.second));
    at->second.first = pages.n_pages;
  }
  return &at->second.second;
}

}  // namespace

StatusOr<std::unique_ptr<TpaAttention>> TpaAttention::Make(TpaAttentionOptions options) {
  DecodeDevice device;
  const cudaError_t error = DecodeDevice::Query(&device);
  if (error == cudaErrorNotSupported) return Unimplemented("attention on a GPU needs compute capability 8.0");
  T6_RETURN_IF_CUDA_ERROR(error);
  device.portable |= options.force_portable;
  return std::unique_ptr<TpaAttention>(std::make_unique<TpaAttentionImpl>(std::move(options), device));
}

}  // namespace t6::cuda
