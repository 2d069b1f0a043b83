// From logits to tokens: greedy choice, draws, log-probabilities (StepPlan's SamplingRow says which). Rows
// run in parallel.
//
// A draw: logits over text ids alone, divided by the temperature; then the top_k largest (ties: lowest ids);
// then, of these renormalised, the shortest run from the most likely down whose sum reaches top_p; then the
// first id, ascending, whose running sum passes UniformDraw(seed, output_index). Temperatures below 1e-5 are
// greedy.
#pragma once

#include <cstdint>
#include <vector>

#include "engine/backend/cpu/thread_pool.h"
#include "engine/backend/params.h"
#include "engine/base/status.h"

namespace t6::cpu {

// Owns the scratch of its workers. One thread calls it.
class Sampler {
 public:
  explicit Sampler(ThreadPool* pool) : pool_(pool), scratch_(pool->n_threads()) {}

  // INTERNAL names the first row with a logit that is NaN or infinite.
  Status Run(const SampleParams& params, const std::vector<SamplingRow>& rows,
             std::vector<TokenOutput>* outputs);

 private:
  struct Scratch {
    std::vector<float> weights;
    std::vector<double> block_sums;
    std::vector<int32_t> ids;
    std::vector<uint64_t> keys;
  };
  static bool RunRow(const SampleParams& params, const SamplingRow& row, const float* logits,
                     Scratch& scratch, TokenOutput* output);
  static int32_t Draw(const SamplingRow& row, const float* logits, int n, float max, Scratch& scratch);
  static int32_t DrawFromAll(double u, double total, const Scratch& scratch);
  static int32_t DrawFromTop(const SamplingRow& row, double u, double total, const float* logits,
                             Scratch& scratch);

  ThreadPool* pool_;
  std::vector<Scratch> scratch_;
};

}  // namespace t6::cpu
