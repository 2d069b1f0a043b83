// The StepRunner of a real model: plan -> forward pass -> sampled tokens, on one backend.
#pragma once

#include "engine/backend/backend.h"
#include "engine/cache/factor_cache.h"
#include "engine/model/t6_model.h"
#include "engine/step_runner.h"

namespace t6 {

class ModelRunner final : public StepRunner {
 public:
  // n_text_tokens: ids from here up are never sampled. All pointers outlive the runner.
  ModelRunner(Backend* backend, T6Model* model, FactorCache* cache, int n_text_tokens)
      : backend_(backend), model_(model), cache_(cache), n_text_tokens_(n_text_tokens) {}

  Status Launch(const StepPlan& plan) override {
    T6_RETURN_IF_ERROR(backend_->BeginStep(plan, model_->spec().attention));
    T6_RETURN_IF_ERROR(model_->Forward(plan, *cache_));
    return backend_->Sample({model_->logits(), model_->spec().vocab_size, n_text_tokens_});
  }
  StatusOr<StepResult> Wait() override { return backend_->WaitSample(); }

 private:
  Backend* backend_;
  T6Model* model_;
  FactorCache* cache_;
  int n_text_tokens_;
};

}  // namespace t6
