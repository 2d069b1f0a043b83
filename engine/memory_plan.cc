#include "engine/memory_plan.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <initializer_list>
#include <string>
#include <vector>

#include "engine/backend/page_layout.h"
#include "engine/model/t6_model.h"

namespace t6 {
namespace {

constexpr int kMaxContext = 1 << 24;

StatusOr<DType> ParseDType(std::string_view flag, const std::string& value,
                           std::initializer_list<DType> allowed) {
  std::vector<std::string_view> names;
  for (const DType type : allowed) {
    if (value == NameOf(type)) return type;
    names.push_back(NameOf(type));
  }
  return InvalidArgument("{} \"{}\" is unknown; use one of {}", flag, value, fmt::join(names, ", "));
}

Status CheckRange(std::string_view flag, int64_t value, int64_t low, int64_t high) {
  if (value >= low && value <= high) return {};
  return InvalidArgument("{} is {}; it must be between {} and {}", flag, value, low, high);
}

double MiB(size_t bytes) { return static_cast<double>(bytes) / (1 << 20); }

}  // namespace

StatusOr<ResolvedConfig> ResolveConfig(const EngineConfig& config, const ModelSpec& spec,
                                       const DeviceInfo& device) {
  ResolvedConfig resolved;
  T6_ASSIGN_OR_RETURN(resolved.compute, ParseDType("--dtype", config.dtype, {DType::kBF16, DType::kF32}));
  resolved.cache_dtype = resolved.compute;
  if (config.cache_dtype != "auto") {
    T6_ASSIGN_OR_RETURN(resolved.cache_dtype, ParseDType("--cache-dtype", config.cache_dtype,
                                                         {DType::kBF16, DType::kF32, DType::kFp8}));
  }
  T6_RETURN_IF_ERROR(CheckRange("--max-context", config.max_context, 0, kMaxContext));
  T6_RETURN_IF_ERROR(CheckRange("--max-num-seqs", config.max_num_seqs, 1, 4096));
  const int step_rows = config.max_step_rows > 0 ? config.max_step_rows : device.default_step_rows;
  T6_RETURN_IF_ERROR(CheckRange("--max-step-rows", step_rows, 16, 1 << 16));
  T6_RETURN_IF_ERROR(CheckRange("--max-queued-requests", config.max_queued_requests, 1, 1 << 20));
  if (!(config.max_step_ms > 0))
    return InvalidArgument("--max-step-ms is {}; it must be above 0", config.max_step_ms);

  StepLimits& limits = resolved.limits;
  limits.page_dtype = resolved.cache_dtype;
  limits.max_context = config.max_context > 0 ? config.max_context : spec.block_size;
  limits.max_sequences = config.max_num_seqs;
  // A step holds a decode row of every sequence besides its prefill rows.
  limits.max_rows = step_rows + config.max_num_seqs;
  limits.max_outputs = std::max(config.max_num_seqs, std::min(step_rows, 256));
  return resolved;
}

StatusOr<MemoryPlan> PlanMemory(const EngineConfig& config, const ResolvedConfig& resolved,
                                const ModelSpec& spec, const Backend& backend) {
  const StepLimits& limits = resolved.limits;
  const PageLayout layout(spec.attention, resolved.cache_dtype);
  MemoryPlan plan;
  plan.available_bytes = backend.info().memory_available;
  plan.weight_bytes = T6Model::WeightBytes(spec, resolved.compute, limits.max_context);
  plan.workspace_bytes = T6Model::WorkspaceBytes(spec, limits, resolved.compute, backend);
  plan.page_bytes = layout.page_bytes() * static_cast<size_t>(spec.n_layers);

  const size_t fixed = plan.weight_bytes + plan.workspace_bytes;
  if (fixed >= plan.available_bytes) {
    return ResourceExhausted(
        "weights ({:.0f} MiB) and workspaces ({:.0f} MiB) do not fit into the {:.0f} MiB available; "
        "use --dtype bf16, or a smaller --max-context, --max-num-seqs or --max-step-rows",
        MiB(plan.weight_bytes), MiB(plan.workspace_bytes), MiB(plan.available_bytes));
  }
  const size_t left = plan.available_bytes - fixed;
  if (config.cache_bytes > left) {
    return ResourceExhausted(
        "--cache-bytes asks for {:.0f} MiB; {:.0f} MiB are left beside weights and workspaces",
        MiB(config.cache_bytes), MiB(left));
  }
  const DeviceInfo& device = backend.info();
  const auto automatic =
      std::min(static_cast<size_t>(static_cast<double>(left) * device.cache_share), device.cache_most);
  const size_t wanted = config.cache_bytes > 0 ? config.cache_bytes : automatic;
  const size_t n_pages = std::min<size_t>(wanted / plan.page_bytes, (size_t{1} << 31) / kPageTokens - 1);
  const size_t needed = static_cast<size_t>(limits.max_context + kPageTokens - 1) / kPageTokens;
  if (n_pages < needed) {
    return ResourceExhausted(
        "a cache of {:.1f} MiB holds {} tokens, fewer than the context of {}: set --cache-bytes to at least "
        "{} or a smaller "
        "--max-context",
        MiB(wanted), n_pages * kPageTokens, limits.max_context, needed * plan.page_bytes);
  }
  plan.n_pages = static_cast<int>(n_pages);
  plan.cache_bytes = n_pages * plan.page_bytes;
  return plan;
}

}  // namespace t6
