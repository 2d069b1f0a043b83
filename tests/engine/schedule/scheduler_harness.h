// The engine's loop without its thread: a scheduler, a cache and the fake runner, stepped by the test.
// Poisons free pages.
#pragma once

#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <functional>
#include <iterator>
#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "engine/schedule/scheduler.h"
#include "tests/support/fake_step_runner.h"

namespace t6 {

class ManualClock final : public Clock {
 public:
  absl::Time Now() const override { return now_; }
  void Advance(absl::Duration by) { now_ += by; }

 private:
  absl::Time now_ = absl::FromUnixSeconds(1000);
};

// What has come through one request's stream so far.
struct Collected {
  TokenEvent all;
  int n_finishes = 0;
  bool done() const { return n_finishes > 0; }
};

class SchedulerHarness {
 public:
  static constexpr int kVocab = 50;

  explicit SchedulerHarness(int n_pages, SchedulerConfig config = {})
      : config_(config),
        cache(n_pages, "model"),
        scheduler(config, &cache, nullptr, &clock),
        runner(n_pages, kVocab, {config.max_step_rows, config.max_num_seqs, config.max_outputs}),
        was_held_(n_pages, false) {}

  // The id, or 0 and `status`.
  RequestId Submit(GenerationRequest request) {
    auto stream = std::make_shared<EventStream>(++last_id_);
    status = scheduler.Add(std::move(request), stream);
    if (!status.ok()) return 0;
    streams_[last_id_] = stream;
    return last_id_;
  }

  // One turn of the loop; false when there was nothing to do, or the runner found fault.
  bool Step() {
    StepPlan* plan = &plans_[n_plans_ % plans_.size()];
    bool planned = false;
    if (scheduler.n_steps_in_flight() < config_.pipeline_depth) planned = scheduler.Plan(plan);
    if (planned) {
      ++n_plans_;
      last_plan = *plan;
      if (cost_of) step_time = cost_of(*plan);
      const Status launched = runner.Launch(*plan);
      if (!launched.ok()) return Fail(launched);
    }
    const int in_flight = scheduler.n_steps_in_flight();
    if (in_flight == config_.pipeline_depth || (!planned && in_flight > 0)) return CommitOne();
    return planned;
  }
  bool CommitOne() {
    const StatusOr<StepResult> result = runner.Wait();
    if (!result.ok()) return Fail(result.status());
    clock.Advance(step_time);
    scheduler.Commit(*result, step_time);
    for (int page = 0; page < cache.n_pages(); ++page) {
      if (was_held_[page] && cache.is_free(page)) runner.Poison(page);
      was_held_[page] = !cache.is_free(page);
    }
    return true;
  }
  void RunAll() {
    while (Step()) {
    }
  }

  // Reads the stream.
  const Collected& Read(RequestId id) {
    Collected& got = collected_[id];
    TokenEvent event;
    while (streams_.at(id)->Poll(&event)) {
      EXPECT_FALSE(got.done()) << "an event after the last one";
      std::move(event.tokens.begin(), event.tokens.end(), std::back_inserter(got.all.tokens));
      std::move(event.prompt_scores.begin(), event.prompt_scores.end(),
                std::back_inserter(got.all.prompt_scores));
      if (event.finish != FinishReason::kNone) ++got.n_finishes;
      got.all.finish = event.finish;
      got.all.status = event.status;
      got.all.stop_token = event.stop_token;
      got.all.cached_tokens = event.cached_tokens;
    }
    return got;
  }
  std::vector<int32_t> Tokens(RequestId id) {
    std::vector<int32_t> tokens;
    for (const TokenOutput& output : Read(id).all.tokens) tokens.push_back(output.token);
    return tokens;
  }
  // Holds what came against the answer that needs no cache.
  void ExpectAnswer(RequestId id, const GenerationRequest& request) {
    const TokenEvent& got = Read(id).all;
    const TokenEvent want = testing::Answer(request, config_.max_context, kVocab);
    ExpectOutputs(got.tokens, want.tokens);
    ExpectOutputs(got.prompt_scores, want.prompt_scores);
    EXPECT_EQ(got.finish, want.finish);
    EXPECT_EQ(got.stop_token, want.stop_token);
    EXPECT_TRUE(got.status.ok()) << got.status;
    EXPECT_EQ(Read(id).n_finishes, 1);
  }
  static void ExpectOutputs(const std::vector<TokenOutput>& got, const std::vector<TokenOutput>& want) {
    ASSERT_EQ(got.size(), want.size());
    for (size_t i = 0; i < got.size(); ++i) {
      EXPECT_EQ(got[i].token, want[i].token) << i;
      EXPECT_EQ(std::isnan(got[i].logprob), std::isnan(want[i].logprob)) << i;
      if (!std::isnan(want[i].logprob)) {
        EXPECT_EQ(got[i].logprob, want[i].logprob) << i;
      }
      EXPECT_EQ(got[i].top.size(), want[i].top.size()) << i;
    }
  }
  void ExpectNoPagesLeft() {  // and none in the cache once it is cleared
    EXPECT_TRUE(scheduler.idle());
    EXPECT_EQ(cache.n_held(), 0);
    cache.Clear();
    EXPECT_EQ(cache.n_cached(), 0);
    EXPECT_EQ(cache.n_available(), cache.n_pages());
  }

 private:
  // Ends every request, so that no test waits for one.
  bool Fail(const Status& status) {
    ADD_FAILURE() << status;
    scheduler.FailAll(status);
    return false;
  }

  const SchedulerConfig config_;

 public:
  ManualClock clock;
  CacheManager cache;
  Scheduler scheduler;
  testing::FakeStepRunner runner;
  absl::Duration step_time = absl::Milliseconds(5);
  std::function<absl::Duration(const StepPlan&)> cost_of;  // sets step_time for every step
  Status status;
  StepPlan last_plan;

 private:
  std::array<StepPlan, 3> plans_;
  std::vector<bool> was_held_;  // [n_pages]
  size_t n_plans_ = 0;
  RequestId last_id_ = 0;
  std::map<RequestId, std::shared_ptr<EventStream>> streams_;
  std::map<RequestId, Collected> collected_;
};

inline std::vector<int32_t> Iota(int first, int n) {
  std::vector<int32_t> tokens(n);
  for (int i = 0; i < n; ++i) tokens[i] = first + i;
  return tokens;
}

inline std::vector<int32_t> operator+(std::vector<int32_t> a, const std::vector<int32_t>& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

inline GenerationRequest Request(std::vector<int32_t> prompt, int max_tokens) {
  GenerationRequest request;
  request.prompt = std::move(prompt);
  request.sampling.temperature = 0;
  request.sampling.max_tokens = max_tokens;
  return request;
}

}  // namespace t6
