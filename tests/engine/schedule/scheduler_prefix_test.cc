// What the scheduler reuses of prompts and answers, and whom it lets wait for a prefix in the making.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/engine/schedule/scheduler_harness.h"

namespace t6 {
namespace {

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

}  // namespace
}  // namespace t6
