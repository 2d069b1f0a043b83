// What came of one output row: the only thing that comes back from a step. Plain data.
#pragma once

#include <cstdint>
#include <vector>

namespace t6 {

// What one output row gave. Log-probabilities are of the raw distribution over the whole vocabulary,
// before temperature and masks; NaN when none was asked for.
struct TokenScore {
  int32_t token = -1;
  float logprob = 0.0f;
};
struct TokenOutput {
  int32_t token = -1;  // sampled, or SamplingRow::score_token
  float logprob = 0.0f;
  std::vector<TokenScore> top;  // most likely first, ties by lowest id
};

}  // namespace t6
