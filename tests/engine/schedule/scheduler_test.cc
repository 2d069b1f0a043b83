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

// --- prefixes

TEST(SchedulerPrefix, CopiesTheSharedPartOfAPageAndComputesTheRest) {
  SchedulerHarness engine(16, {.max_context = 500});
  engine.Submit(Request(Iota(0, 100), 1));
  engine.RunAll();
  const GenerationRequest request = Request(Iota(0, 90) + Iota(700, 5), 4);
  const RequestId id = engine.Submit(request);
  ASSERT_TRUE(engine.Step());
  EXPECT_EQ(engine.last_plan.n_rows(), 5);
  ASSERT_EQ(engine.last_plan.copy_pages.size(), 1u);
  EXPECT_EQ(engine.last_plan.copy_pages[0].valid_tokens, 90 - kPageTokens);
  EXPECT_TRUE(engine.last_plan.clear_pages.empty());
  engine.RunAll();
  engine.ExpectAnswer(id, request);
  EXPECT_EQ(engine.Read(id).all.cached_tokens, 90);
}

TEST(SchedulerPrefix, TheSourceOfACopyIsHeldUntilTheStepHasCompleted) {
  SchedulerHarness engine(16, {.max_context = 500});
  engine.Submit(Request(Iota(0, 30), 1));
  engine.RunAll();
  engine.Submit(Request(Iota(0, 20) + Iota(700, 5), 10));
  StepPlan plan;
  ASSERT_TRUE(engine.scheduler.Plan(&plan));
  ASSERT_EQ(plan.copy_pages.size(), 1u);
  EXPECT_EQ(engine.cache.n_held(), 2);  // source and destination
  engine.cache.Clear();
  EXPECT_FALSE(engine.cache.is_free(plan.copy_pages[0].source));
  ASSERT_TRUE(engine.runner.Launch(plan).ok());
  engine.CommitOne();
  EXPECT_EQ(engine.cache.n_held(), 1);
}

TEST(SchedulerPrefix, AWholePromptThatIsCachedStillComputesItsLastRow) {
  SchedulerHarness engine(16, {.max_context = 500});
  const GenerationRequest request = Request(Iota(0, 2 * kPageTokens), 3);
  engine.Submit(request);
  engine.RunAll();
  const RequestId id = engine.Submit(request);
  ASSERT_TRUE(engine.Step());
  EXPECT_EQ(engine.last_plan.n_rows(), 1);
  engine.RunAll();
  engine.ExpectAnswer(id, request);
  EXPECT_EQ(engine.Read(id).all.cached_tokens, 2 * kPageTokens - 1);
}

TEST(SchedulerPrefix, TheAnswerIsCachedToo) {
  SchedulerHarness engine(16, {.max_context = 500});
  const GenerationRequest first = Request(Iota(0, 50), 30);
  const RequestId id = engine.Submit(first);
  engine.RunAll();
  const RequestId next = engine.Submit(Request(first.prompt + engine.Tokens(id) + Iota(900, 10), 1));
  engine.RunAll();
  EXPECT_EQ(engine.Read(next).all.cached_tokens, 79);  // its last token was never computed
}

TEST(SchedulerPrefix, ARunningAnswerIsSharedAsItIsWritten) {
  SchedulerHarness engine(32, {.max_context = 500});
  const GenerationRequest first = Request(Iota(0, 50), 100);
  const RequestId id = engine.Submit(first);
  for (int i = 0; i < 40; ++i) engine.Step();
  const GenerationRequest second = Request(first.prompt + engine.Tokens(id) + Iota(900, 10), 5);
  const RequestId fork = engine.Submit(second);
  engine.RunAll();
  engine.ExpectAnswer(id, first);
  engine.ExpectAnswer(fork, second);
  EXPECT_EQ(engine.Read(fork).all.cached_tokens, 89);
}

TEST(SchedulerPrefix, TenantsAndSaltsShareNothing) {
  SchedulerHarness engine(32, {.max_context = 500});
  for (const auto& [tenant, salt] :
       std::vector<std::pair<std::string, std::string>>{{"a", ""}, {"b", ""}, {"a", "x"}}) {
    GenerationRequest request = Request(Iota(0, 100), 2);
    request.tenant = tenant;
    request.cache_salt = salt;
    const RequestId id = engine.Submit(request);
    engine.RunAll();
    EXPECT_EQ(engine.Read(id).all.cached_tokens, 0);
  }
}

TEST(SchedulerPrefix, NobodyWaitsForAnotherTenantsPrefix) {
  SchedulerHarness engine(32, {.max_num_seqs = 4, .max_step_rows = 40, .max_context = 500});
  for (const char* tenant : {"a", "b"}) {
    GenerationRequest request = Request(Iota(0, 100), 2);
    request.tenant = tenant;
    engine.Submit(request);
  }
  engine.RunAll();
  EXPECT_EQ(engine.scheduler.n_prefix_waits(), 0);
}

TEST(SchedulerPrefix, FiftyQuestionsAboutOneNewDocumentComputeItOnce) {
  SchedulerHarness engine(400, {.max_num_seqs = 64, .max_step_rows = 256, .max_context = 2048});
  const auto document = Iota(0, 1500);
  std::vector<GenerationRequest> requests;
  std::vector<RequestId> ids;
  for (int i = 0; i < 50; ++i) {
    requests.push_back(Request(document + Iota(5000 + 10 * i, 8), 1));
    ids.push_back(engine.Submit(requests.back()));
  }
  engine.RunAll();
  EXPECT_EQ(engine.runner.n_rows(), 1500 + 50 * 8);
  EXPECT_EQ(engine.scheduler.n_prefix_waits(), 49);
  for (int i = 0; i < 50; ++i) {
    engine.ExpectAnswer(ids[i], requests[i]);
    EXPECT_EQ(engine.Read(ids[i]).all.cached_tokens, i == 0 ? 0 : 1500);
  }
  engine.ExpectNoPagesLeft();
}

TEST(SchedulerPrefix, WaitsOnlyUntilItsOwnPartIsWritten) {
  SchedulerHarness engine(400, {.max_num_seqs = 8, .max_step_rows = 100, .max_context = 4000});
  engine.Submit(Request(Iota(0, 2000), 1));
  const RequestId second = engine.Submit(Request(Iota(0, 150) + Iota(7000, 5), 1));
  int steps = 0;
  while (!engine.Read(second).done()) {
    ASSERT_TRUE(engine.Step());
    ++steps;
  }
  EXPECT_EQ(engine.Read(second).all.cached_tokens, 150);
  EXPECT_LE(steps, 21);
}

TEST(SchedulerPrefix, AWaiterGoesOnWhenTheOtherIsCancelled) {
  for (const bool in_flight : {false, true}) {
    SchedulerHarness engine(64, {.max_num_seqs = 8, .max_step_rows = 64, .max_context = 1000});
    const auto document = Iota(0, 500);
    const RequestId first = engine.Submit(Request(document + Iota(900, 5), 5));
    const GenerationRequest request = Request(document + Iota(800, 5), 5);
    const RequestId second = engine.Submit(request);
    ASSERT_TRUE(engine.Step());
    ASSERT_TRUE(engine.Step());
    EXPECT_EQ(engine.scheduler.n_prefix_waits(), 1);
    EXPECT_EQ(engine.scheduler.n_running(), 1);
    if (in_flight) {
      engine.runner.on_launch = [&](const StepPlan&) { engine.scheduler.Cancel(first); };
      engine.Step();
      engine.runner.on_launch = nullptr;
    } else {
      engine.scheduler.Cancel(first);
    }
    engine.RunAll();
    engine.ExpectAnswer(second, request);
    EXPECT_EQ(engine.Read(second).all.cached_tokens,
              in_flight ? 192 : 128);  // what had been written stays of use
    engine.ExpectNoPagesLeft();
  }
}

TEST(SchedulerPrefix, AWaiterKeepsItsSlotFromLaterArrivals) {
  SchedulerHarness engine(64, {.max_num_seqs = 2, .max_step_rows = 64, .max_context = 1000});
  const auto document = Iota(0, 500);
  engine.Submit(Request(document + Iota(900, 5), 1));
  const RequestId waiter = engine.Submit(Request(document + Iota(800, 5), 1));
  const RequestId later = engine.Submit(Request(Iota(3000, 5), 300));
  while (!engine.Read(waiter).done()) {
    ASSERT_TRUE(engine.Step());
    if (!engine.Read(waiter).done()) {
      EXPECT_LE(engine.Tokens(later).size(), 2u);  // it had to wait for the first one's slot
    }
  }
  engine.RunAll();
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

// --- too few pages

TEST(SchedulerPreempt, TheYoungestGivesWayAndItsOutputIsTheSame) {
  SchedulerHarness engine(8, {.max_num_seqs = 4, .max_context = 500});
  std::vector<GenerationRequest> requests;
  std::vector<RequestId> ids;
  for (int i = 0; i < 3; ++i) {
    requests.push_back(Request(Iota(1000 * i, 50), 200));  // four pages each, in the end
    requests.back().sampling.temperature = 1;
    requests.back().sampling.seed = i;
    ids.push_back(engine.Submit(requests.back()));
  }
  size_t last = 0;
  while (engine.Step()) {
    if (!engine.Read(ids[0]).done()) {
      EXPECT_EQ(engine.Tokens(ids[0]).size(), last + 1);  // the oldest is never held up
      ++last;
    }
  }
  EXPECT_GT(engine.scheduler.n_preemptions(), 0);
  for (int i = 0; i < 3; ++i) {
    engine.ExpectAnswer(ids[i], requests[i]);
    EXPECT_EQ(engine.Read(ids[i]).all.cached_tokens,
              0);  // what it found of its own when it came back does not count
  }
  engine.ExpectNoPagesLeft();
}

TEST(SchedulerPreempt, WhatItFindsOfItsOwnWhenItComesBackIsNotReportedAsCached) {
  SchedulerHarness engine(6, {.max_context = 384, .reserve_tokens = 0});
  engine.Submit(Request(Iota(0, 60), 130));
  const GenerationRequest request = Request(Iota(1000, 200), 100);
  const RequestId id = engine.Submit(request);
  engine.RunAll();
  EXPECT_EQ(engine.scheduler.n_preemptions(), 1);
  EXPECT_LT(engine.runner.n_rows(), 60 + 129 + 200 + 99 + 100);  // it did find some
  engine.ExpectAnswer(id, request);
  EXPECT_EQ(engine.Read(id).all.cached_tokens, 0);
}

TEST(SchedulerPreempt, NobodyElseGivesWayWhilePagesAreOnTheirWay) {
  SchedulerHarness engine(5, {.max_context = 300, .reserve_tokens = 0, .pipeline_depth = 2});
  for (const int n_prompt :
       {60, 60, 10, 100}) {  // two outgrow their pages in the same step, the youngest has two
    engine.Submit(Request(Iota(1000 * engine.scheduler.n_waiting(), n_prompt), 20));
  }
  while (engine.scheduler.n_preemptions() == 0) ASSERT_TRUE(engine.Step());
  EXPECT_EQ(engine.scheduler.n_running(), 3);
  for (int i = 0; i < 3; ++i) ASSERT_TRUE(engine.Step());
  EXPECT_EQ(engine.scheduler.n_preemptions(), 1);
  engine.RunAll();
  engine.ExpectNoPagesLeft();
}

TEST(SchedulerPreempt, ScoresAreDeliveredOnce) {
  SchedulerHarness engine(6, {.max_num_seqs = 4, .max_step_rows = 16, .max_outputs = 16, .max_context = 384});
  const GenerationRequest old = Request(Iota(0, 40), 320);
  GenerationRequest young = Request(Iota(1000, 200), 20);
  young.sampling.n_prompt_logprobs = 1;
  engine.cost_of = [](const StepPlan& plan) {
    return absl::Milliseconds(10 * plan.n_rows());
  };  // a row or two a step
  const RequestId first = engine.Submit(old);
  for (int i = 0; i < 20; ++i) engine.Step();
  const RequestId second = engine.Submit(young);
  engine.RunAll();
  EXPECT_GT(engine.scheduler.n_preemptions(), 0);
  engine.ExpectAnswer(first, old);
  engine.ExpectAnswer(second, young);
  EXPECT_EQ(engine.Read(second).all.cached_tokens,
            0);  // what it found of its own when it came back does not count
  engine.ExpectNoPagesLeft();
}

TEST(SchedulerPreempt, CachedPrefixesGoFirst) {
  SchedulerHarness engine(8, {.max_context = 500});
  engine.Submit(Request(Iota(0, 300), 1));
  engine.RunAll();
  EXPECT_EQ(engine.cache.n_cached(), 5);
  const GenerationRequest request = Request(Iota(1000, 300), 100);
  const RequestId id = engine.Submit(request);
  engine.RunAll();
  engine.ExpectAnswer(id, request);
  EXPECT_EQ(engine.scheduler.n_preemptions(), 0);
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
