// From logits to tokens on the device: the CPU sampler's rules (engine/backend/cpu/sample.h), a block a row.
// Sums are integers (2^-44 of the largest weight), so that no order of addition changes a draw.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace t6::cuda {

inline constexpr int kMaxTop = 20;  // SamplingRow::n_top

// SamplingRow, with the draw already made: it is a function of (seed, index) alone.
struct SampleRow {
  double uniform = 0.0;
  float temperature = 0.0f;  // 0: greedy
  float top_p = 1.0f;
  int32_t top_k = 0;
  int32_t score_token = -1;
  int32_t n_top = -1;
  int32_t is_used = 0;  // 0: a row that a captured graph has too many
  int32_t result = 0;   // its place among the results
};

struct SampleResult {
  int32_t token = -1;
  float logprob = 0.0f;  // NaN where none was asked for
  int32_t n_top = 0;
  int32_t is_finite = 1;  // 0: a logit is NaN or infinite; nothing else is valid
  int32_t top_tokens[kMaxTop];
  float top_logprobs[kMaxTop];
};

struct SampleCall {
  const float* logits = nullptr;  // [n_rows, vocab]
  int vocab = 0;
  int n_text = 0;                   // ids from here up are never sampled
  const SampleRow* rows = nullptr;  // [n_rows]
  int n_rows = 0;
  // Null, or what the head's product has found (SkinnyCall::best); all ones afterwards, for the next step.
  uint64_t* best = nullptr;         // [n_rows]
  SampleResult* results = nullptr;  // the host may read them there: in pinned memory
  int32_t* sampled = nullptr;       // [n_rows] the tokens, for the step that follows
};
cudaError_t LaunchSample(const SampleCall& call, cudaStream_t stream);

}  // namespace t6::cuda
