#include "engine/schedule/scheduler.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "tests/engine/schedule/scheduler_harness.h"

namespace t6 {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

std::string Message(const Status& status) { return std::string(MessageOf(status)); }

// --- what can never run

TEST(SchedulerAdd, RefusesWhatTheCacheCanNeverHoldAndNamesBothNumbers) {
  SchedulerHarness engine(3, {.max_context = 1000});
  EXPECT_EQ(engine.Submit(Request(Iota(0, 150), 43)), 0u);
  EXPECT_EQ(engine.status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(Message(engine.status),
              AllOf(HasSubstr("193 tokens"), HasSubstr("4 pages"), HasSubstr("has 3")));
  EXPECT_TRUE(engine.scheduler.idle());
  const GenerationRequest fits = Request(Iota(0, 150), 42);
  const RequestId id = engine.Submit(fits);
  engine.RunAll();
  engine.ExpectAnswer(id, fits);
}

TEST(SchedulerAdd, RefusesWhatIsNoRequest) {
  SchedulerHarness engine(8, {.max_context = 100});
  EXPECT_EQ(engine.Submit(Request({}, 1)), 0u);
  EXPECT_EQ(engine.Submit(Request({1}, -1)), 0u);
  EXPECT_THAT(Message(engine.status), HasSubstr("-1"));
  EXPECT_EQ(engine.Submit(Request(Iota(0, 101), 1)), 0u);
  EXPECT_THAT(Message(engine.status), AllOf(HasSubstr("101"), HasSubstr("100")));
  auto stream = std::make_shared<EventStream>(77);
  EXPECT_TRUE(engine.scheduler.Add(Request({1}, 1), stream).ok());
  EXPECT_THAT(Message(engine.scheduler.Add(Request({1}, 1), stream)), HasSubstr("77"));
}

// --- rows of a step

TEST(SchedulerPlan, PrefillsInOneStepThenDecodesARowAtATime) {
  SchedulerHarness engine(16, {.max_context = 500});
  const GenerationRequest request = Request(Iota(0, 150), 3);
  const RequestId id = engine.Submit(request);
  ASSERT_TRUE(engine.Step());
  EXPECT_EQ(engine.last_plan.n_rows(), 150);
  EXPECT_EQ(engine.last_plan.n_outputs(), 1);
  EXPECT_EQ(engine.last_plan.clear_pages.size(), 3u);
  EXPECT_EQ(engine.Tokens(id).size(), 1u);
  ASSERT_TRUE(engine.Step());
  EXPECT_EQ(engine.last_plan.n_rows(), 1);
  EXPECT_EQ(engine.last_plan.positions[0], 150);
  ASSERT_TRUE(engine.Step());
  EXPECT_FALSE(engine.Step());
  EXPECT_EQ(engine.runner.n_rows(), 152);  // the last token is sampled, not computed
  engine.ExpectAnswer(id, request);
  engine.ExpectNoPagesLeft();
}

TEST(SchedulerPlan, CutsAPromptIntoChunksOfAtMostMaxStepRows) {
  SchedulerHarness engine(16, {.max_num_seqs = 4, .max_step_rows = 100, .max_context = 500});
  const GenerationRequest request = Request(Iota(0, 250), 2);
  const RequestId id = engine.Submit(request);
  for (const int rows : {100, 100, 50, 1}) {
    ASSERT_TRUE(engine.Step());
    EXPECT_EQ(engine.last_plan.n_rows(), rows);
  }
  engine.ExpectAnswer(id, request);
}

TEST(SchedulerPlan, PrefillBesideDecodeStaysWithinTheStepsTime) {
  SchedulerHarness engine(200, {.max_step_rows = 512, .max_context = 4096, .max_step_ms = 20});
  engine.cost_of = [](const StepPlan& plan) { return absl::Microseconds(500 + 250 * plan.n_rows()); };
  const RequestId decoding = engine.Submit(Request(Iota(0, 10), 400));
  for (int i = 0; i < 5; ++i) engine.Step();
  engine.Submit(Request(Iota(1000, 4000), 1));
  std::vector<double> times;
  while (engine.scheduler.n_running() + engine.scheduler.n_waiting() > 1) {
    const size_t before = engine.Tokens(decoding).size();
    ASSERT_TRUE(engine.Step());
    EXPECT_EQ(engine.Tokens(decoding).size(), before + 1);  // it gets a token in every step
    times.push_back(absl::ToDoubleMilliseconds(engine.step_time));
  }
  for (size_t i = 10; i + 1 < times.size(); ++i) {
    EXPECT_LE(times[i], 25.0) << i;
    EXPECT_GE(times[i], 10.0) << i;
  }
}

TEST(SchedulerPlan, PrefillGetsOnHoweverDearDecodingIs) {
  SchedulerHarness engine(40, {.max_context = 1000, .max_step_ms = 1});
  engine.cost_of = [](const StepPlan& plan) { return absl::Milliseconds(100 * plan.n_rows()); };
  engine.Submit(Request(Iota(0, 10), 100));
  for (int i = 0; i < 10; ++i) engine.Step();
  const GenerationRequest request = Request(Iota(1000, 20), 1);
  const RequestId id = engine.Submit(request);
  while (!engine.Read(id).done()) {
    ASSERT_TRUE(engine.Step());
    EXPECT_GE(engine.last_plan.n_rows(), 2);
    EXPECT_LE(engine.last_plan.n_rows(), 10);
  }
  engine.ExpectAnswer(id, request);
}

TEST(SchedulerPlan, RunsAtMostMaxNumSeqsInOrderOfPriorityThenArrival) {
  SchedulerHarness engine(64, {.max_num_seqs = 2, .max_context = 500});
  std::vector<RequestId> ids;
  for (const int priority : {0, 0, 5, 0, -1}) {
    GenerationRequest request = Request({static_cast<int32_t>(ids.size())}, 5);
    request.priority = priority;
    ids.push_back(engine.Submit(request));
  }
  std::vector<int> order;
  while (engine.Step()) {
    EXPECT_LE(engine.scheduler.n_running(), 2);
    for (int i = 0; i < 5; ++i) {
      const bool listed = std::find(order.begin(), order.end(), i) != order.end();
      if (!listed && !engine.Tokens(ids[i]).empty()) order.push_back(i);
    }
  }
  EXPECT_EQ(order, (std::vector<int>{0, 4, 1, 3, 2}));  // 0 and 4 start together
}

TEST(SchedulerPlan, DecodingSequencesThatSharePagesStandTogether) {
  SchedulerHarness engine(200, {.max_context = 2000});
  const auto document = Iota(0, 5 * kPageTokens), other = Iota(5000, 3 * kPageTokens);
  for (int i = 0; i < 6; ++i) engine.Submit(Request((i % 2 == 0 ? document : other) + Iota(900 + i, 10), 40));
  while (engine.last_plan.n_rows() != 6) ASSERT_TRUE(engine.Step());
  const auto& groups = engine.last_plan.shared_prefixes;
  ASSERT_EQ(groups.size(), 2u);
  EXPECT_EQ(groups[0].n_sequences, 3);
  EXPECT_EQ(groups[1].n_sequences, 3);
  EXPECT_EQ(groups[0].n_pages + groups[1].n_pages, 8);
  engine.RunAll();
  engine.ExpectNoPagesLeft();
}

// --- prompt log-probabilities

TEST(SchedulerScores, ArriveInOrderFromChunksOfFewOutputs) {
  SchedulerHarness engine(16,
                          {.max_num_seqs = 4, .max_step_rows = 64, .max_outputs = 10, .max_context = 500});
  GenerationRequest request = Request(Iota(3, 75), 2);
  request.sampling.n_prompt_logprobs = 3;
  const RequestId id = engine.Submit(request);
  ASSERT_TRUE(engine.Step());
  EXPECT_EQ(engine.last_plan.n_rows(), 10);
  EXPECT_EQ(engine.last_plan.sampling[0].score_token, 4);
  engine.RunAll();
  engine.ExpectAnswer(id, request);
  EXPECT_EQ(engine.Read(id).all.prompt_scores.size(), 74u);
}

TEST(SchedulerScores, NothingIsSkippedButEverythingIsPublished) {
  SchedulerHarness engine(16, {.max_context = 500});
  GenerationRequest request = Request(Iota(0, 150), 2);
  request.sampling.n_prompt_logprobs = 0;
  for (int i = 0; i < 2; ++i) {
    const RequestId id = engine.Submit(request);
    engine.RunAll();
    engine.ExpectAnswer(id, request);
    EXPECT_EQ(engine.Read(id).all.cached_tokens, 0);
  }
  EXPECT_EQ(engine.cache.n_cached(), 3);  // the second time's pages took the place of the first's
  request.sampling.n_prompt_logprobs = -1;
  const RequestId id = engine.Submit(request);
  engine.RunAll();
  EXPECT_EQ(engine.Read(id).all.cached_tokens, 149);
}

TEST(SchedulerScores, WithoutOutputItEndsAfterThePrompt) {
  SchedulerHarness engine(16, {.max_num_seqs = 2, .max_step_rows = 64, .max_outputs = 8, .max_context = 500});
  for (const int n_prompt : {1, 2, 64, 65}) {
    GenerationRequest request = Request(Iota(9, n_prompt), 0);
    request.sampling.n_prompt_logprobs = 1;
    const RequestId id = engine.Submit(request);
    engine.RunAll();
    engine.ExpectAnswer(id, request);
    EXPECT_EQ(engine.Read(id).all.finish, FinishReason::kLength);
    EXPECT_TRUE(engine.Tokens(id).empty());
  }
}

// --- the end

TEST(SchedulerEnd, AStopTokenIsTheLastToken) {
  SchedulerHarness engine(16, {.max_context = 500});
  GenerationRequest request = Request(Iota(0, 10), 50);
  const auto tokens = testing::Answer(request, 500, SchedulerHarness::kVocab).tokens;
  request.sampling.stop_token_ids = {tokens[5].token};
  const RequestId id = engine.Submit(request);
  engine.RunAll();
  engine.ExpectAnswer(id, request);
  EXPECT_EQ(engine.Read(id).all.finish, FinishReason::kStop);
  EXPECT_EQ(engine.Read(id).all.stop_token, tokens[5].token);
}

TEST(SchedulerEnd, AFullContextIsALength) {
  SchedulerHarness engine(16, {.max_context = 70});
  const GenerationRequest request = Request(Iota(0, 60), 50);
  const RequestId id = engine.Submit(request);
  engine.RunAll();
  engine.ExpectAnswer(id, request);
  EXPECT_EQ(engine.Tokens(id).size(), 10u);
}

TEST(SchedulerEnd, CancelGivesThePagesBackWithinAStep) {
  SchedulerHarness engine(16, {.max_num_seqs = 1, .max_context = 500});
  const RequestId running = engine.Submit(Request(Iota(0, 100), 100));
  const RequestId waiting = engine.Submit(Request(Iota(500, 100), 100));
  engine.Step();
  engine.scheduler.Cancel(waiting);
  EXPECT_EQ(engine.Read(waiting).all.finish, FinishReason::kCancelled);
  EXPECT_EQ(engine.Read(waiting).all.status.code(), absl::StatusCode::kCancelled);
  StepPlan plan;
  ASSERT_TRUE(engine.scheduler.Plan(&plan));
  ASSERT_TRUE(engine.runner.Launch(plan).ok());
  engine.scheduler.Cancel(running);  // while its step is in flight
  engine.scheduler.Cancel(running);
  engine.scheduler.Cancel(4711);
  EXPECT_EQ(engine.cache.n_held(), 2);  // the step still uses them
  engine.CommitOne();
  EXPECT_EQ(engine.cache.n_held(), 0);
  EXPECT_EQ(engine.Read(running).all.finish, FinishReason::kCancelled);
  EXPECT_EQ(engine.Read(running).n_finishes, 1);
  EXPECT_EQ(engine.Tokens(running).size(), 1u);  // nothing follows the end
  EXPECT_FALSE(engine.Step());
  engine.ExpectNoPagesLeft();
}

TEST(SchedulerEnd, FinishIsASuccess) {
  SchedulerHarness engine(16, {.max_context = 500});
  const RequestId id = engine.Submit(Request(Iota(0, 10), 100));
  for (int i = 0; i < 5; ++i) engine.Step();
  engine.scheduler.Finish(id);
  EXPECT_EQ(engine.Read(id).all.finish, FinishReason::kStop);
  EXPECT_EQ(engine.Read(id).all.stop_token, -1);
  EXPECT_TRUE(engine.Read(id).all.status.ok());
  EXPECT_EQ(engine.Tokens(id).size(), 5u);
  engine.ExpectNoPagesLeft();
}

TEST(SchedulerEnd, ADeadlineEndsWhatRunsAndWhatWaits) {
  SchedulerHarness engine(16, {.max_num_seqs = 1, .max_context = 500});
  GenerationRequest request = Request(Iota(0, 10), 400);
  request.deadline = engine.clock.Now() + absl::Seconds(1);
  const RequestId running = engine.Submit(request), waiting = engine.Submit(request);
  engine.step_time = absl::Milliseconds(100);
  engine.RunAll();
  for (const RequestId id : {running, waiting}) {
    EXPECT_EQ(engine.Read(id).all.finish, FinishReason::kCancelled);
    EXPECT_EQ(engine.Read(id).all.status.code(), absl::StatusCode::kDeadlineExceeded);
  }
  EXPECT_EQ(engine.Tokens(running).size(), 10u);
  engine.ExpectNoPagesLeft();
}

TEST(SchedulerEnd, AReaderFarBehindIsCancelled) {
  SchedulerHarness engine(16, {.max_context = 500, .max_unread_tokens = 20});
  const RequestId id = engine.Submit(Request(Iota(0, 10), 100));
  engine.RunAll();
  EXPECT_EQ(engine.Tokens(id).size(), 21u);
  EXPECT_EQ(engine.Read(id).all.finish, FinishReason::kCancelled);
  EXPECT_EQ(engine.Read(id).all.status.code(), absl::StatusCode::kResourceExhausted);
}

TEST(SchedulerEnd, AFailureEndsEverythingAndTheNextRequestRuns) {
  for (const int depth : {1, 2}) {
    SchedulerHarness engine(32, {.max_num_seqs = 2, .max_context = 500, .pipeline_depth = depth});
    std::vector<RequestId> ids;
    for (int i = 0; i < 4; ++i) ids.push_back(engine.Submit(Request(Iota(100 * i, 20), 50)));
    for (int i = 0; i < 5; ++i) engine.Step();
    engine.scheduler.Cancel(ids[0]);
    StepPlan plan;
    ASSERT_TRUE(engine.scheduler.Plan(&plan));
    engine.scheduler.FailAll(Internal("the device is gone"));
    EXPECT_EQ(engine.Read(ids[0]).all.finish, FinishReason::kCancelled);
    for (int i = 1; i < 4; ++i) {
      EXPECT_EQ(engine.Read(ids[i]).all.finish, FinishReason::kError);
      EXPECT_THAT(Message(engine.Read(ids[i]).all.status), HasSubstr("the device is gone"));
    }
    EXPECT_EQ(engine.scheduler.n_steps_in_flight(), 0);
    engine.ExpectNoPagesLeft();
  }
}

// --- two steps in flight

TEST(SchedulerPipeline, TheNextStepIsPlannedBeforeTheTokenIsRead) {
  SchedulerHarness engine(16, {.max_context = 500, .pipeline_depth = 2});
  GenerationRequest request = Request(Iota(0, 10), 30);
  const auto tokens = testing::Answer(request, 500, SchedulerHarness::kVocab).tokens;
  request.sampling.stop_token_ids = {tokens[3].token};
  const RequestId id = engine.Submit(request);
  StepPlan first, second;
  ASSERT_TRUE(engine.scheduler.Plan(&first));
  ASSERT_TRUE(engine.runner.Launch(first).ok());
  ASSERT_TRUE(engine.scheduler.Plan(&second));
  EXPECT_EQ(second.token_ids, (std::vector<int32_t>{-1}));  // output row 0 of the step before
  EXPECT_EQ(second.positions, (std::vector<int32_t>{10}));
  ASSERT_TRUE(engine.runner.Launch(second).ok());
  engine.CommitOne();
  engine.RunAll();
  engine.ExpectAnswer(id, request);  // the row that was in flight when the stop token came is thrown away
  EXPECT_EQ(engine.runner.n_rows(), 10 + 4);
  engine.ExpectNoPagesLeft();
}

// --- metrics

TEST(SchedulerMetrics, CountWhatHappened) {
  prometheus::Registry registry;
  EngineMetrics metrics(registry, "model");
  ManualClock clock;
  CacheManager cache(16, "model");
  Scheduler scheduler({.max_context = 500, .page_bytes = 1000}, &cache, &metrics, &clock);
  testing::FakeStepRunner runner(16, SchedulerHarness::kVocab);
  auto run = [&](RequestId id) {
    ASSERT_TRUE(scheduler.Add(Request(Iota(0, 100), 3), std::make_shared<EventStream>(id)).ok());
    EXPECT_EQ(metrics.requests_waiting.Value(), 1);
    StepPlan plan;
    while (scheduler.Plan(&plan)) {
      EXPECT_EQ(metrics.requests_running.Value(), 1);
      EXPECT_GE(metrics.cache_usage.Value(), 2.0 / 16);  // and for one step the page that is copied
      EXPECT_LE(metrics.cache_usage.Value(), 3.0 / 16);
      ASSERT_TRUE(runner.Launch(plan).ok());
      scheduler.Commit(*runner.Wait(), absl::Milliseconds(1));
    }
  };
  run(1);
  run(2);
  EXPECT_EQ(metrics.requests_running.Value(), 0);
  EXPECT_EQ(metrics.prompt_tokens.Value(), 200);
  EXPECT_EQ(metrics.generation_tokens.Value(), 6);
  EXPECT_EQ(metrics.prefix_queries.Value(), 200);
  EXPECT_EQ(metrics.prefix_hits.Value(), 99);
  EXPECT_EQ(metrics.tokens_reused_device.Value(), 99);
  EXPECT_EQ(metrics.cache_usage.Value(), 0);
  EXPECT_EQ(metrics.factor_bytes_device.Value(), 2000);
  EXPECT_EQ(metrics.success.Add({{"model_name", "model"}, {"finished_reason", "length"}}).Value(), 2);
  EXPECT_EQ(metrics.prefix_evictions.Value(), 0);
  // Other prompts fill the sixteen pages and drive the first one out.
  for (int i = 0; i < 10; ++i) {
    ASSERT_TRUE(scheduler.Add(Request(Iota(10 + i, 200), 3), std::make_shared<EventStream>(10 + i)).ok());
    StepPlan plan;
    while (scheduler.Plan(&plan)) {
      ASSERT_TRUE(runner.Launch(plan).ok());
      scheduler.Commit(*runner.Wait(), absl::Milliseconds(1));
    }
  }
  EXPECT_GT(metrics.prefix_evictions.Value(), 10);
  EXPECT_EQ(metrics.prefix_evictions.Value(), static_cast<double>(cache.n_evicted()));
}

}  // namespace
}  // namespace t6
