// When a token ends its request. Stop strings are the server's: they need text. Pure functions.
#pragma once

#include <cstdint>

#include "engine/event_stream.h"
#include "engine/request.h"

namespace t6 {

struct StopDecision {
  FinishReason finish = FinishReason::kNone;  // kNone, kStop or kLength
  int32_t stop_token = -1;
};

// After output token number `n_outputs` (counted from one) of a request of `n_prompt` prompt tokens. A stop
// token goes before a length.
StopDecision CheckStop(const SamplingParams& params, int n_prompt, int n_outputs, int32_t token,
                       int max_context);

// How many output tokens there can be at most: max_tokens, or what the context leaves.
int OutputLimit(const SamplingParams& params, int n_prompt, int max_context);

}  // namespace t6
