// From logits to tokens: greedy choice, draws, log-probabilities (StepPlan's SamplingRow says which). Rows
// run in parallel; where all of several rows are greedy and nothing else is wanted, columns do.
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
  // The first most likely id of a piece of a row's logits; -1 where none has text.
  struct Best {
    int32_t token;
    float logit;
    bool finite;
  };
  static Best BestOf(const float* logits, int begin, int end, int n_text);
  // Both return the first row with a logit that is not finite, or the number of rows.
  int RunGreedy(const SampleParams& params, int n_rows, std::vector<TokenOutput>* outputs);
  int RunRows(const SampleParams& params, const std::vector<SamplingRow>& rows,
              std::vector<TokenOutput>* outputs);
  static bool RunRow(const SampleParams& params, const SamplingRow& row, const float* logits,
                     Scratch& scratch, TokenOutput* output);
  static int32_t Draw(const SamplingRow& row, const float* logits, int n, float max, Scratch& scratch);
  static int32_t DrawFromAll(double u, double total, const Scratch& scratch);
  static int32_t DrawFromTop(const SamplingRow& row, double u, double total, const float* logits,
                             Scratch& scratch);

  ThreadPool* pool_;
  std::vector<Scratch> scratch_;
  std::vector<Best> best_;  // [n_pieces][n_rows]
};

}  // namespace t6::cpu
