#include "engine/sampling/stop_rules.h"

#include <algorithm>

namespace t6 {

int OutputLimit(const SamplingParams& params, int n_prompt, int max_context) {
  return std::max(0, std::min(params.max_tokens, max_context - n_prompt));
}

StopDecision CheckStop(const SamplingParams& params, int n_prompt, int n_outputs, int32_t token,
                       int max_context) {
  const auto& stops = params.stop_token_ids;
  if (std::find(stops.begin(), stops.end(), token) != stops.end()) return {FinishReason::kStop, token};
  if (n_outputs >= OutputLimit(params, n_prompt, max_context)) return {FinishReason::kLength, -1};
  return {};
}

}  // namespace t6
