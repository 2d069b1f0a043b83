// Too few pages: who gives way, and that nothing is lost by it.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/engine/schedule/scheduler_harness.h"

namespace t6 {
namespace {

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

}  // namespace
}  // namespace t6
