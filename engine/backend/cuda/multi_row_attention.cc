#include "engine/backend/cuda/multi_row_attention.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <unordered_map>
#include <utility>

#include "engine/backend/cuda/chip.h"
#include "engine/backend/cuda/cuda_memory.h"
#include "engine/backend/cuda/decode_shape.h"
#include "engine/backend/cuda/prefill_attention.h"
#include "engine/backend/cuda/rows_attention.h"
#include "engine/backend/cuda/rows_plan.h"
#include "engine/backend/cuda/staging.h"
#include "engine/backend/cuda/tensor_map.h"

namespace t6::cuda {
namespace {

constexpr size_t kSectionBytes = size_t{28} << 20;  // of expanded keys and values that L2 is meant to hold
int64_t RoundUp(int64_t x, int64_t to) { return (x + to - 1) / to * to; }

// What Reserve allocates, as offsets into one block of device memory.
struct Workspace {
  size_t take(size_t bytes) {
    return std::exchange(total, total + static_cast<size_t>(RoundUp(bytes, 1024)));
  }
  size_t queries, partial_out, partial_max_sum, keys, values, counters;
  size_t total = 0;
};

// How large a step can be.
struct Capacity {
  Capacity(const StepLimits& limits, const AttentionSpec& spec, const MultiRowOptions& options, int n_sms) {
    const int64_t h = spec.n_heads, d = spec.head_dim;
    query_rows = std::max(limits.max_rows, 1);
    partial_rows = 1024 + 2 * static_cast<int64_t>(limits.max_sequences) + (spec.head_norm ? query_rows : 0);
    const int64_t tokens = RoundUp(limits.max_context, kPrefillBlockTokens);
    has_prefill = d == PrefillDim() && options.min_prefill_rows > 0;
    const int64_t head_bytes = 2 * tokens * d * 2;  // keys and values of one head
    scratch_bytes =
        has_prefill ? std::min(h * head_bytes, std::max<int64_t>(options.scratch_bytes, head_bytes)) : 0;
    scratch_tokens = scratch_bytes / (2 * d * 2);
    int64_t groups = 1;
    for (const int width : kRowsWidths) {
      const RowsInstance* instance = FindRowsInstance(spec.k.rank, spec.head_dim, width);
      if (instance != nullptr)
        groups = std::max(groups, RoundUp(h, instance->block_heads) / instance->block_heads);
    }
    const int64_t blocks = 2 * (query_rows / kMaxBlockRows + static_cast<int64_t>(limits.max_sequences));
    tasks = blocks * groups + int64_t{3} * kNumRowsWidths * (n_sms + groups);
    plan_bytes = tasks * sizeof(RowsTask) + kNumRowsWidths * (n_sms + 1) * sizeof(int32_t) +
                 query_rows * sizeof(RowsMerge) +
                 (query_rows / kPrefillTileRows + limits.max_sequences + 1) * sizeof(PrefillTile) +
                 2 * (scratch_tokens / kPageTokens + 1) * sizeof(ExpandPage) +
                 (query_rows + limits.max_sequences * int64_t{kPrefillBlockTokens}) * sizeof(int32_t) + 4096;
  }
  static int PrefillDim() { return 64; }
  Workspace Layout(const AttentionSpec& spec) const {
    const size_t h = spec.n_heads, d = spec.head_dim;
    Workspace w;
    w.queries = w.take(h * query_rows * std::max<size_t>(d, 64) * 2);
    w.partial_out = w.take(partial_rows * h * d * sizeof(float));
    w.partial_max_sum = w.take(partial_rows * h * sizeof(float2));
    w.keys = w.take(scratch_bytes / 2), w.values = w.take(scratch_bytes / 2);
    w.counters = w.take(kMaxPrefillPasses * sizeof(int32_t));
    return w;
  }
  int64_t query_rows, partial_rows, tasks, plan_bytes, scratch_bytes, scratch_tokens;
  bool has_prefill;
};

class MultiRowAttention final : public AttentionPath {
 public:
  MultiRowAttention(const MultiRowOptions& options, int n_sms, bool is_hopper)
      : options_(options), n_sms_(n_sms), is_hopper_(is_hopper) {}

  Status Supports(const AttentionSpec& spec, DType pages) const override;
  size_t WorkspaceBytes(const StepLimits& limits, const AttentionSpec& spec) const override {
    if (!Supports(spec, limits.page_dtype).ok()) return 0;
    const Capacity capacity(limits, spec, options_, n_sms_);
    return capacity.Layout(spec).total + capacity.plan_bytes;
  }
  Status Reserve(const StepLimits& limits, const AttentionSpec& spec) override;
  Status Plan(const AttentionStep& step, const AttentionSpec& spec, int min_rows,
              cudaStream_t stream) override;
  bool Takes(int sequence) const override { return plan_.takes[sequence] != 0; }
  bool TakesStep() const override { return plan_.fits; }
  bool Stores() const override { return plan_options_.stores_rows && !plan_.empty(); }
  Status Run(const TpaAttentionParams& params, const AttentionStep& step, int min_rows,
             cudaStream_t stream) override;

 private:
  // The plan's arrays on the device.
  struct DevicePlan {
    const RowsTask* tasks[kNumRowsWidths];
    const int32_t* block_begin[kNumRowsWidths];
    const RowsMerge* merges;
    const PrefillTile* tiles;
    const ExpandPage *expands, *old_expands;
    const int32_t* scratch_tokens;
  };
  struct PageMaps {
    int32_t n_pages = 0;
    std::array<RowsMaps, kNumRowsWidths> rows;
  };

  Status CopyPlan(cudaStream_t stream);
  Status ClearEmptyPartials(cudaStream_t stream);
  Status MakeMaps(const AttentionSpec& spec);
  StatusOr<const PageMaps*> MapsOf(const LayerPages& pages, const DecodeShape& shape);
  // Heads whose expanded keys and values the scratch holds at once.
  int PassHeads(const DecodeShape& shape) const;
  Status RunQueries(const TpaAttentionParams& params, const DecodeShape& shape, const AttentionStep& step,
                    cudaStream_t stream);
  Status RunPrefill(const TpaAttentionParams& params, const DecodeShape& shape, cudaStream_t stream);
  Status RunRows(const TpaAttentionParams& params, const DecodeShape& shape, const AttentionStep& step,
                 cudaStream_t stream);

  const MultiRowOptions options_;
  const int n_sms_;
  DType page_dtype_ = DType::kBF16;
  const bool is_hopper_;  // the only chips that its kernels run on
  RowsPlanOptions plan_options_;
  RowsPlan plan_;
  DevicePlan device_plan_{};
  DeviceMemory workspace_, arrays_;
  Staging staging_;
  int64_t query_rows_ = 0, scratch_bytes_ = 0;
  size_t row_heads_ = 0, head_dim_ = 0;  // of a row of partial results
  Workspace at_{};
  std::array<const RowsInstance*, kNumRowsWidths> instances_{};
  PrefillMaps prefill_maps_{};
  std::unordered_map<const void*, PageMaps> maps_;  // by a layer's first page
};

Status MultiRowAttention::Supports(const AttentionSpec& spec, DType pages) const {
  if (!is_hopper_) return Unimplemented("attention of several rows on this chip by its own kernels");
  // Of fp8 pages there is the expansion alone, and no kernel that reads them by tiles.
  const bool expands_fp8 =
      pages == DType::kFp8 && spec.head_dim == Capacity::PrefillDim() && options_.min_prefill_rows > 0;
  if (pages != DType::kBF16 && !expands_fp8) {
    return Unimplemented("attention of several rows over {} pages, heads of {}", NameOf(pages),
                         spec.head_dim);
  }
  for (const FactorSpec* f : {&spec.k, &spec.v}) {
    if (f->a != HeadFactor::kContextual || f->b != DimFactor::kContextual) {
      return Unimplemented("attention of several rows with factors that do not depend on the token");
    }
  }
  if (spec.k.rank != spec.v.rank) {
    return Unimplemented("attention of several rows with ranks {} and {}", spec.k.rank, spec.v.rank);
  }
  if (spec.n_heads > kMaxPrefillPasses || spec.q.rank > kMaxQueryRank) {
    return Unimplemented("attention of several rows with {} heads and rank_q {}", spec.n_heads, spec.q.rank);
  }
  for (const int width : kRowsWidths) {
    if (FindRowsInstance(spec.k.rank, spec.head_dim, width) == nullptr) {
      return Unimplemented("attention of several rows with rank {} and head_dim {}", spec.k.rank,
                           spec.head_dim);
    }
  }
  return absl::OkStatus();
}

Status MultiRowAttention::Reserve(const StepLimits& limits, const AttentionSpec& spec) {
  plan_.Clear();
  page_dtype_ = limits.page_dtype;
  if (!Supports(spec, page_dtype_).ok()) return absl::OkStatus();
  const Capacity capacity(limits, spec, options_, n_sms_);
  at_ = capacity.Layout(spec);
  row_heads_ = spec.n_heads, head_dim_ = spec.head_dim;
  query_rows_ = capacity.query_rows, scratch_bytes_ = capacity.scratch_bytes;
  T6_RETURN_IF_ERROR(workspace_.Allocate(at_.total));
  // Tiles read queries behind their last row: finite ones, or they would be looked at twice.
  T6_RETURN_IF_CUDA_ERROR(cudaMemset(workspace_.as<uint8_t>() + at_.queries, 0, at_.partial_out));
  T6_RETURN_IF_CUDA_ERROR(cudaStreamSynchronize(nullptr));  // a step's stream does not wait for this one
  T6_RETURN_IF_ERROR(arrays_.Allocate(capacity.plan_bytes));
  T6_RETURN_IF_ERROR(staging_.Reserve(capacity.plan_bytes));
  maps_.clear();
  plan_options_ = {};
  plan_options_.n_blocks = n_sms_, plan_options_.n_heads = spec.n_heads;
  plan_options_.max_partial_rows = static_cast<int>(capacity.partial_rows);
  plan_options_.min_prefill_rows = capacity.has_prefill ? options_.min_prefill_rows : 0;
  if (page_dtype_ == DType::kFp8) plan_options_.prefill_only = true, plan_options_.min_prefill_rows = 1;
  plan_options_.prefill_tile_rows = kPrefillTileRows;
  plan_options_.prefill_block_tokens = kPrefillBlockTokens;
  plan_options_.max_scratch_tokens = static_cast<int>(capacity.scratch_tokens);
  plan_options_.stores_rows = options_.stores && page_dtype_ == DType::kBF16 && !spec.full_query &&
                              spec.head_dim == Capacity::PrefillDim();
  plan_options_.always_merges = spec.head_norm;
  if (!options_.always_shares) {
    SetSharingCosts(ShapeOf(spec).page_bytes(), n_sms_, &plan_options_);
  }
  return MakeMaps(spec);
}

Status MultiRowAttention::MakeMaps(const AttentionSpec& spec) {
  const DecodeShape shape = ShapeOf(spec);
  auto* base = workspace_.as<uint8_t>();
  for (int i = 0; i < kNumRowsWidths; ++i) {
    instances_[i] = FindRowsInstance(shape.rank, shape.head_dim, kRowsWidths[i]);
    plan_options_.group_heads[i] = instances_[i]->block_heads * instances_[i]->cluster;
    plan_options_.cluster[i] = instances_[i]->cluster;
  }
  if (plan_options_.min_prefill_rows == 0) return absl::OkStatus();
  T6_RETURN_IF_CUDA_ERROR(MakeTensorMap(base + at_.queries, query_rows_ * spec.n_heads, spec.head_dim,
                                        kPrefillTileRows, &prefill_maps_.query));
  const int64_t rows = scratch_bytes_ / 2 / (spec.head_dim * 2);
  T6_RETURN_IF_CUDA_ERROR(
      MakeTensorMap(base + at_.keys, rows, spec.head_dim, kPrefillBlockTokens, &prefill_maps_.keys));
  T6_RETURN_IF_CUDA_ERROR(
      MakeTensorMap(base + at_.values, rows, spec.head_dim, kPrefillBlockTokens, &prefill_maps_.values));
  return absl::OkStatus();
}

Status MultiRowAttention::Plan(const AttentionStep& step, const AttentionSpec& spec, int min_rows,
                               cudaStream_t stream) {
  if (!Supports(spec, page_dtype_).ok()) {
    plan_.Clear();
    plan_.takes.assign(step.plan->n_sequences(), 0);
    return absl::OkStatus();
  }
  MakeRowsPlan(*step.plan, min_rows, plan_options_, &plan_);
  return plan_.empty() ? absl::OkStatus() : CopyPlan(stream);
}

Status MultiRowAttention::CopyPlan(cudaStream_t stream) {
  T6_ASSIGN_OR_RETURN(uint8_t* const to, staging_.Next());
  size_t used = 0;
  bool fits = true;
  const auto put = [&]<typename T>(const std::vector<T>& from) {
    const size_t bytes = from.size() * sizeof(T), at = used;
    used += static_cast<size_t>(RoundUp(bytes, 16));
    fits = fits && used <= staging_.size();
    if (fits && bytes > 0) std::memcpy(to + at, from.data(), bytes);
    return reinterpret_cast<const T*>(arrays_.as<uint8_t>() + at);
  };
  for (int i = 0; i < kNumRowsWidths; ++i) {
    device_plan_.tasks[i] = put(plan_.by_width[i].tasks);
    device_plan_.block_begin[i] = put(plan_.by_width[i].block_begin);
  }
  device_plan_.merges = put(plan_.merges), device_plan_.tiles = put(plan_.tiles);
  device_plan_.expands = put(plan_.expands), device_plan_.old_expands = put(plan_.old_expands);
  device_plan_.scratch_tokens = put(plan_.scratch_tokens);
  if (!fits) return Internal("a plan of {} bytes; {} are reserved", used, staging_.size());
  T6_RETURN_IF_ERROR(ClearEmptyPartials(stream));
  return staging_.Copy(arrays_.as<void>(), used, stream);
}

// To bases so low that whatever finite is there weighs nothing.
Status MultiRowAttention::ClearEmptyPartials(cudaStream_t stream) {
  constexpr int kByte = 0xf1;  // four are -2.4e30
  auto* base = workspace_.as<uint8_t>();
  for (const EmptyPartials& rows : plan_.empties) {
    const size_t first = rows.begin * row_heads_, n = (rows.end - rows.begin) * row_heads_;
    const size_t out_bytes = head_dim_ * sizeof(float);
    T6_RETURN_IF_CUDA_ERROR(
        cudaMemsetAsync(base + at_.partial_out + first * out_bytes, kByte, n * out_bytes, stream));
    T6_RETURN_IF_CUDA_ERROR(cudaMemsetAsync(base + at_.partial_max_sum + first * sizeof(float2), kByte,
                                            n * sizeof(float2), stream));
  }
  return absl::OkStatus();
}

Status MultiRowAttention::Run(const TpaAttentionParams& params, const AttentionStep& step, int /*min_rows*/,
                              cudaStream_t stream) {
  if (plan_.empty()) return absl::OkStatus();
  const DecodeShape shape = ShapeOf(*params.spec, params.pages.layout->dtype());
  T6_RETURN_IF_ERROR(RunQueries(params, shape, step, stream));
  if (!plan_.tiles.empty()) T6_RETURN_IF_ERROR(RunPrefill(params, shape, stream));
  return plan_.has_tasks() ? RunRows(params, shape, step, stream) : absl::OkStatus();
}

int MultiRowAttention::PassHeads(const DecodeShape& shape) const {
  const int64_t head_bytes = int64_t{2} * std::max(plan_.n_scratch_tokens, 1) * shape.head_dim * 2;
  const int h = shape.n_heads,
            most = static_cast<int>(std::clamp<int64_t>(scratch_bytes_ / head_bytes, 1, h));
  const int n_passes = (h + most - 1) / most;
  return (h + n_passes - 1) / n_passes;
}

// With them, where rows are stored, the first pass's keys and values of the step's own tokens.
Status MultiRowAttention::RunQueries(const TpaAttentionParams& params, const DecodeShape& shape,
                                     const AttentionStep& step, cudaStream_t stream) {
  auto* base = workspace_.as<uint8_t>();
  QueryCall query;
  query.shape = shape, query.qkv = params.qkv, query.qkv_stride = params.qkv_stride;
  query.positions = step.positions;
  query.cos = params.cos, query.sin = params.sin, query.queries = base + at_.queries;
  query.n_rows = step.plan->n_rows(), query.query_rows = static_cast<int>(query_rows_);
  query.counters = reinterpret_cast<int32_t*>(base + at_.counters);
  if (Stores()) {
    query.pages = params.pages.base, query.slots = step.slots;
    query.scratch_tokens = plan_.tiles.empty() ? nullptr : device_plan_.scratch_tokens;
    query.n_zeros = plan_.n_zeros, query.n_heads = PassHeads(shape);
    query.n_scratch_tokens = plan_.n_scratch_tokens;
    query.keys = base + at_.keys, query.values = base + at_.values;
  }
  T6_RETURN_IF_CUDA_ERROR(LaunchQueries(query, stream));
  return absl::OkStatus();
}

// Heads in as many passes as the scratch needs.
Status MultiRowAttention::RunPrefill(const TpaAttentionParams& params, const DecodeShape& shape,
                                     cudaStream_t stream) {
  auto* base = workspace_.as<uint8_t>();
  const int h = shape.n_heads;
  const int64_t head_bytes = int64_t{2} * plan_.n_scratch_tokens * shape.head_dim * 2;
  const int pass_heads = PassHeads(shape);
  ExpandCall expand;
  expand.shape = shape, expand.pages = params.pages.base, expand.n_scratch_tokens = plan_.n_scratch_tokens;
  expand.keys = base + at_.keys, expand.values = base + at_.values;
  PrefillParams prefill{};
  prefill.tiles = device_plan_.tiles, prefill.n_tiles = static_cast<int>(plan_.tiles.size());
  prefill.section_heads = static_cast<int>(std::clamp<int64_t>(kSectionBytes / head_bytes, 1, h));
  prefill.total_heads = h, prefill.query_rows = static_cast<int>(query_rows_);
  prefill.n_scratch_tokens = plan_.n_scratch_tokens;
  prefill.out = params.out, prefill.out_is_bf16 = params.out_dtype == DType::kBF16;
  prefill.rank = static_cast<float>(shape.rank);
  prefill.head_norm_weight = shape.head_norm ? params.head_norm_weight : nullptr;
  prefill.head_norm_eps = shape.head_norm_eps;
  for (int pass = 0; pass * pass_heads < h; ++pass) {
    expand.first_head = prefill.first_head = pass * pass_heads;
    expand.n_heads = prefill.n_heads = std::min(pass_heads, h - expand.first_head);
    prefill.counter = reinterpret_cast<int32_t*>(base + at_.counters) + pass;
    expand.keeps_rest = Stores() && pass == 0;  // the queries' kernel had them
    const std::vector<ExpandPage>& expands = expand.keeps_rest ? plan_.old_expands : plan_.expands;
    expand.expands = expand.keeps_rest ? device_plan_.old_expands : device_plan_.expands;
    expand.n_expands = static_cast<int>(expands.size());
    T6_RETURN_IF_CUDA_ERROR(LaunchExpand(expand, stream));
    T6_RETURN_IF_CUDA_ERROR(LaunchPrefill(prefill, prefill_maps_, n_sms_, stream));
  }
  return absl::OkStatus();
}

Status MultiRowAttention::RunRows(const TpaAttentionParams& params, const DecodeShape& shape,
                                  const AttentionStep& step, cudaStream_t stream) {
  T6_ASSIGN_OR_RETURN(const PageMaps* maps, MapsOf(params.pages, shape));
  auto* base = workspace_.as<uint8_t>();
  RowsParams rows{};
  rows.page_ids = step.page_ids, rows.queries = base + at_.queries;
  rows.n_heads = shape.n_heads, rows.half_rows = shape.half_rows();
  rows.query_rows = static_cast<int>(query_rows_);
  rows.partials = {reinterpret_cast<float*>(base + at_.partial_out),
                   reinterpret_cast<float2*>(base + at_.partial_max_sum)};
  rows.out = params.out, rows.out_is_bf16 = params.out_dtype == DType::kBF16;
  rows.combine_follows = !plan_.merges.empty();
  for (int i = kNumRowsWidths - 1; i >= 0; --i) {
    if (plan_.by_width[i].tasks.empty()) continue;
    rows.tasks = device_plan_.tasks[i], rows.block_begin = device_plan_.block_begin[i];
    T6_RETURN_IF_CUDA_ERROR(LaunchRows(*instances_[i], rows, maps->rows[i], n_sms_, stream));
  }
  RowsCombineCall combine;
  combine.merges = device_plan_.merges, combine.n_merges = static_cast<int>(plan_.merges.size());
  combine.n_heads = shape.n_heads, combine.rank = shape.rank;
  combine.head_norm_weight = shape.head_norm ? params.head_norm_weight : nullptr;
  combine.head_norm_eps = shape.head_norm_eps;
  combine.partials = rows.partials, combine.out = rows.out, combine.out_is_bf16 = rows.out_is_bf16;
  T6_RETURN_IF_CUDA_ERROR(LaunchRowsCombine(combine, stream));
  return absl::OkStatus();
}

StatusOr<const MultiRowAttention::PageMaps*> MultiRowAttention::MapsOf(const LayerPages& pages,
                                                                       const DecodeShape& shape) {
  PageMaps& maps = maps_[pages.base];
  if (maps.n_pages != pages.n_pages) {
    for (int i = 0; i < kNumRowsWidths; ++i) {
      T6_RETURN_IF_CUDA_ERROR(
          MakeRowsPageMaps(*instances_[i], shape, pages.base, pages.n_pages, &maps.rows[i]));
    }
    maps.n_pages = pages.n_pages;
  }
  return &maps;
}

}  // namespace

StatusOr<std::unique_ptr<AttentionPath>> MakeMultiRowAttention(const MultiRowOptions& options) {
  int device = 0, n_sms = 0;
  T6_RETURN_IF_CUDA_ERROR(cudaGetDevice(&device));
  T6_RETURN_IF_CUDA_ERROR(cudaDeviceGetAttribute(&n_sms, cudaDevAttrMultiProcessorCount, device));
  return std::unique_ptr<AttentionPath>(
      std::make_unique<MultiRowAttention>(options, n_sms, CodeForThisChip() == ChipCode::kHopper));
}

}  // namespace t6::cuda
