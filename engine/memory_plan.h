// What an engine will allocate, decided from its configuration before anything large is: weights, workspaces,
// pages. The server refuses to start with a message rather than run out later.
#pragma once

#include "engine/backend/backend.h"
#include "engine/config.h"
#include "engine/model/model_spec.h"

namespace t6 {

struct ResolvedConfig {
  DType compute = DType::kBF16;
  DType cache_dtype = DType::kBF16;
  StepLimits limits;
};

// Checks the configuration's own values. INVALID_ARGUMENT names the flag and the value.
StatusOr<ResolvedConfig> ResolveConfig(const EngineConfig& config, const ModelSpec& spec,
                                       const DeviceInfo& device);

// RESOURCE_EXHAUSTED says how much is missing, and which flag to change.
StatusOr<MemoryPlan> PlanMemory(const EngineConfig& config, const ResolvedConfig& resolved,
                                const ModelSpec& spec, const Backend& backend);

}  // namespace t6
