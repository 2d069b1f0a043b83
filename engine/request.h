// What the server asks of the engine: tokens in, and how to choose tokens out. Plain data.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/time/time.h"

namespace t6 {

using RequestId = uint64_t;

struct SamplingParams {
  float temperature = 1.0f;        // 0: greedy
  float top_p = 1.0f;              // (0, 1]
  int32_t top_k = 0;               // 0: all
  uint64_t seed = 0;               // of the draws; the server makes one up when the request has none
  int32_t max_tokens = 16;         // 0 is allowed with prompt log-probabilities: nothing is generated
  int32_t n_logprobs = -1;         // -1: none; else also this many most likely tokens, 0..20
  int32_t n_prompt_logprobs = -1;  // the same, for every prompt token but the first
  // Any of these ends the output ("stop"); the token itself is not part of the text but is counted.
  std::vector<int32_t> stop_token_ids;  // the model's eos ids too, unless the request ignores them
};

struct GenerationRequest {
  std::string name;             // for logs: the x-request-id or the API's id
  std::vector<int32_t> prompt;  // at least one token, each below the vocabulary
  SamplingParams sampling;
  std::string tenant;      // any bytes; prefixes are never shared across tenants
  std::string cache_salt;  // nor across salts
  int32_t priority = 0;    // lower first
  absl::Time deadline = absl::InfiniteFuture();
};

}  // namespace t6
