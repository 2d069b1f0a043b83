// An Engine without a model: a test decides what tokens come, and sees what was asked. Thread-safe.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "engine/base/check.h"
#include "engine/engine.h"
#include "tests/support/patience.h"

namespace t6::server {

struct Submitted {
  GenerationRequest request;
  std::shared_ptr<EventStream> events;
};

inline TokenOutput Token(int32_t id, float logprob = -0.5f) { return {id, logprob, {}}; }

inline TokenEvent Tokens(const std::vector<int32_t>& ids) {
  TokenEvent event;
  for (int32_t id : ids) event.tokens.push_back(Token(id));
  return event;
}

inline TokenEvent Finished(FinishReason reason, int32_t stop_token = -1) {
  TokenEvent event;
  event.finish = reason;
  event.stop_token = stop_token;
  return event;
}

class FakeEngine final : public Engine {
 public:
  // Called in Submit, on the caller's thread, after the request was noted: may push events.
  std::function<void(const Submitted&)> on_submit;
  Status refusal;     // not OK: what Submit answers
  int refusals = -1;  // so many times; below 0: always
  ModelInfo model;

  FakeEngine() {
    model.variant = "T6";
    model.vocab_size = 8192;
    model.max_context = 2048;
    model.device = "fake";
    model.eos_token_ids = {4, 0};
  }

  // Gives each request these tokens, one event each, under its own stop tokens and max_tokens.
  void AnswerWith(std::vector<int32_t> tokens) {
    on_submit = [this, tokens = std::move(tokens)](const Submitted& s) { Play(s, tokens); };
  }

  void Play(const Submitted& s, const std::vector<int32_t>& tokens) {
    const SamplingParams& sampling = s.request.sampling;
    TokenEvent scores;
    scores.cached_tokens = cached_tokens;
    if (sampling.n_prompt_logprobs >= 0) {
      for (size_t i = 1; i < s.request.prompt.size(); ++i) {
        scores.prompt_scores.push_back(Token(s.request.prompt[i], -static_cast<float>(i)));
      }
    }
    s.events->Push(scores);
    for (int i = 0; i < sampling.max_tokens; ++i) {
      TokenEvent event = Tokens({tokens[static_cast<size_t>(i) % tokens.size()]});
      event.cached_tokens = cached_tokens;
      const int32_t id = event.tokens[0].token;
      for (int32_t stop : sampling.stop_token_ids) {
        if (stop == id) event.finish = FinishReason::kStop;
      }
      if (event.finish == FinishReason::kStop) event.stop_token = id;
      const bool ends = event.finish != FinishReason::kNone;
      s.events->Push(event);
      if (ends) return;
    }
    TokenEvent end = Finished(FinishReason::kLength);
    end.cached_tokens = cached_tokens;
    s.events->Push(end);
  }

  int cached_tokens = 0;

  const ModelInfo& info() const override { return model; }
  StatusOr<std::shared_ptr<EventStream>> Submit(GenerationRequest request) override {
    Submitted submitted;
    {
      absl::MutexLock lock(&mutex_);
      if (!refusal.ok() && refusals-- != 0) return refusal;
      if (stopped_) return Unavailable("the engine admits no more");
      submitted = {std::move(request), std::make_shared<EventStream>(++last_id_)};
      submitted_.push_back(submitted);
    }
    if (on_submit) on_submit(submitted);
    return submitted.events;
  }
  void Cancel(RequestId id) override {
    absl::MutexLock lock(&mutex_);
    cancelled_.insert(id);
  }
  void Finish(RequestId id) override {
    absl::MutexLock lock(&mutex_);
    finished_.insert(id);
  }
  void StopAdmission() override {
    absl::MutexLock lock(&mutex_);
    stopped_ = true;
  }
  bool Drain(absl::Time) override { return true; }
  void ClearPrefixes() override {}
  EngineStats stats() const override { return {}; }
  Status health() const override {
    absl::MutexLock lock(&mutex_);
    return health_;
  }

  void SetHealth(Status health) {
    absl::MutexLock lock(&mutex_);
    health_ = std::move(health);
  }
  // The nth request (from 0), once it is there.
  Submitted WaitForSubmit(size_t n) {
    absl::MutexLock lock(&mutex_);
    const auto there = [&] { return submitted_.size() > n; };
    T6_CHECK(mutex_.AwaitWithTimeout(absl::Condition(&there), kPatience), "request {} never came", n);
    return submitted_[n];
  }
  bool WaitForCancel(RequestId id) {
    absl::MutexLock lock(&mutex_);
    const auto there = [&] { return cancelled_.count(id) > 0; };
    return mutex_.AwaitWithTimeout(absl::Condition(&there), kPatience);
  }
  bool WaitForFinish(RequestId id) {
    absl::MutexLock lock(&mutex_);
    const auto there = [&] { return finished_.count(id) > 0; };
    return mutex_.AwaitWithTimeout(absl::Condition(&there), kPatience);
  }
  size_t n_submitted() const {
    absl::MutexLock lock(&mutex_);
    return submitted_.size();
  }
  size_t n_cancelled() const {
    absl::MutexLock lock(&mutex_);
    return cancelled_.size();
  }

 private:
  mutable absl::Mutex mutex_;
  RequestId last_id_ ABSL_GUARDED_BY(mutex_) = 0;
  std::vector<Submitted> submitted_ ABSL_GUARDED_BY(mutex_);
  std::set<RequestId> cancelled_ ABSL_GUARDED_BY(mutex_), finished_ ABSL_GUARDED_BY(mutex_);
  bool stopped_ ABSL_GUARDED_BY(mutex_) = false;
  Status health_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace t6::server
