// Models of random weights on a device of choice, with pages of their own, for tests of whole steps.
#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "engine/backend/factory.h"
#include "engine/model_runner.h"
#include "tests/support/has_gpu.h"
#include "tests/support/reference_model.h"

namespace t6::testing {

struct Shape {
  int h, rank_q, rank;
  bool head_norm = false;
  int width = 1600, mlp_width = 4266, n_layers = 2;
};

inline constexpr int kVocab = 5003, kPagesEach = 4;

inline ModelSpec SpecOf(const Shape& shape) {
  ModelSpec spec;
  spec.variant = "T6";
  spec.vocab_size = kVocab, spec.n_layers = shape.n_layers;
  spec.width = shape.width, spec.mlp_width = shape.mlp_width;
  spec.block_size = 512;
  spec.attention.n_heads = shape.h;
  spec.attention.head_dim = spec.attention.rotary_dim = 64;
  spec.attention.q.rank = shape.rank_q;
  spec.attention.k.rank = spec.attention.v.rank = shape.rank;
  spec.attention.head_norm = shape.head_norm;
  return spec;
}

// A model on one device, with kPagesEach pages for each of its sequences.
class LoadedModel {
 public:
  // False: the device may be passed over, or the test has failed.
  bool Load(const std::string& device, const ModelSpec& spec, const MemoryTensors& tensors, DType dtype,
            DType pages, int n_sequences, int n_text) {
    auto made = MakeBackend({.device = device, .threads = 2});
    if (!made.ok()) {
      EXPECT_TRUE(device != "cpu" && MayPassOverGpu(made.status())) << made.status();
      reason_ = made.status().ToString();
      return false;
    }
    backend_ = std::move(made->backend);
    const StepLimits limits{.max_rows = 1024,
                            .max_sequences = n_sequences,
                            .max_outputs = n_sequences,
                            .max_context = 512,
                            .page_dtype = pages};
    auto model = T6Model::Load(backend_.get(), spec, tensors, dtype, limits, nullptr);
    auto cache = FactorCache::Create(backend_.get(), PageLayout(spec.attention, pages), spec.n_layers,
                                     n_sequences * kPagesEach);
    EXPECT_TRUE(model.ok()) << model.status();
    EXPECT_TRUE(cache.ok()) << cache.status();
    if (!model.ok() || !cache.ok()) return false;
    model_ = std::move(*model), cache_ = std::move(*cache);
    runner_ = std::make_unique<ModelRunner>(backend_.get(), model_.get(), cache_.get(), n_text);
    return true;
  }
  const std::string& reason() const { return reason_; }
  ModelRunner& runner() { return *runner_; }

  StatusOr<std::vector<TokenOutput>> TryRun(const StepPlan& plan) {
    T6_RETURN_IF_ERROR(runner_->Launch(plan));
    T6_ASSIGN_OR_RETURN(StepResult result, runner_->Wait());
    return std::move(result.outputs);
  }
  // No outputs where it fails, which fails the test.
  std::vector<TokenOutput> Run(const StepPlan& plan) {
    auto outputs = TryRun(plan);
    EXPECT_TRUE(outputs.ok()) << outputs.status();
    return outputs.ok() ? *std::move(outputs) : std::vector<TokenOutput>();
  }

 private:
  std::string reason_;
  std::unique_ptr<Backend> backend_;
  std::unique_ptr<T6Model> model_;
  std::unique_ptr<FactorCache> cache_;
  std::unique_ptr<ModelRunner> runner_;
};

// Appends a sequence's tokens from position `begin` on, the last of which gives an output.
inline void AddTokens(int sequence, int begin, const std::vector<int32_t>& tokens,
                      const SamplingRow& sampling, StepPlan* plan) {
  int position = begin;
  for (const int32_t token : tokens) {
    plan->token_ids.push_back(token);
    plan->positions.push_back(position);
    plan->slots.push_back((sequence * kPagesEach + position / kPageTokens) * kPageTokens +
                          position % kPageTokens);
    ++position;
  }
  plan->output_rows.push_back(plan->n_rows() - 1);
  plan->sampling.push_back(sampling);
  plan->row_begin.push_back(plan->n_rows());
  plan->context_len.push_back(position);
  for (int i = 0; i * kPageTokens < position; ++i) plan->page_ids.push_back(sequence * kPagesEach + i);
  plan->page_begin.push_back(static_cast<int32_t>(plan->page_ids.size()));
}

inline int32_t TokenAt(int sequence, int position) { return (sequence * 977 + position * 131) % kVocab; }

inline std::vector<int32_t> TokensOf(int sequence, int begin, int end) {
  std::vector<int32_t> tokens;
  for (int t = begin; t < end; ++t) tokens.push_back(TokenAt(sequence, t));
  return tokens;
}

inline SamplingRow Greedy(int n_top = -1) { return {.temperature = 0, .n_top = n_top}; }

}  // namespace t6::testing
