// The engine's loop over a runner without a model: what several threads submit, cancel and finish comes out
// as promised in docs/engine_contract.md.
#include "engine/engine_loop.h"

#include <gtest/gtest.h>

#include <random>
#include <thread>

#include "absl/synchronization/notification.h"
#include "tests/support/fake_step_runner.h"
#include "tests/support/patience.h"

namespace t6 {
namespace {

using testing::Answer;
using testing::FakeStepRunner;

constexpr int kVocab = 50, kPages = 40, kContext = 512;

// The parameter: how many steps may be in flight.
class EngineLoopTest : public ::testing::TestWithParam<int> {
 protected:
  EngineLoopTest() : metrics_(registry_, "fake"), runner_(kPages, kVocab) {}

  void Start(int max_queued_requests = 100000, int max_num_seqs = 8) {
    EngineLoopConfig config;
    config.scheduler = {
        .max_num_seqs = max_num_seqs, .max_step_rows = 96, .max_outputs = 64, .max_context = kContext};
    config.scheduler.pipeline_depth = GetParam();
    config.max_queued_requests = max_queued_requests;
    config.cache_key = "fake";
    ModelInfo info;
    info.vocab_size = kVocab;
    info.max_context = kContext;
    info.memory.n_pages = kPages;
    engine_ = std::make_unique<EngineLoop>(config, info, &runner_, &metrics_, RealClock::Get());
  }

  static GenerationRequest Request(std::mt19937& random, int max_prompt = 300) {
    GenerationRequest request;
    const int n = 1 + random() % max_prompt;
    // Few distinct beginnings, so that prefixes are shared.
    std::mt19937 tokens(random() % 5);
    for (int i = 0; i < n; ++i) request.prompt.push_back(tokens() % kVocab);
    if (n > 4) request.prompt[n - 1 - random() % 4] = random() % kVocab;
    request.sampling.temperature = 0;
    request.sampling.max_tokens = static_cast<int32_t>(1 + random() % 40);
    if (random() % 4 == 0) request.sampling.n_prompt_logprobs = 1;
    if (random() % 3 == 0) request.sampling.stop_token_ids = {static_cast<int32_t>(random() % kVocab)};
    return request;
  }

  static TokenEvent ReadAll(EventStream& stream) {
    TokenEvent all, event;
    do {
      if (!stream.Wait(&event, kPatience)) {
        ADD_FAILURE() << "no event came";
        return all;
      }
      for (TokenOutput& t : event.tokens) all.tokens.push_back(std::move(t));
      for (TokenOutput& t : event.prompt_scores) all.prompt_scores.push_back(std::move(t));
      all.finish = event.finish;
      all.status = event.status;
      all.stop_token = event.stop_token;
    } while (event.finish == FinishReason::kNone);
    return all;
  }

  prometheus::Registry registry_;
  EngineMetrics metrics_;
  FakeStepRunner runner_;
  std::unique_ptr<EngineLoop> engine_;
};

TEST_P(EngineLoopTest, AThousandRequestsFromFourThreadsGetTheirOwnAnswers) {
  Start();
  const auto client = [&](uint32_t seed) {
    std::mt19937 random(seed);
    std::vector<std::pair<GenerationRequest, std::shared_ptr<EventStream>>> open;
    for (int i = 0; i < 250; ++i) {
      GenerationRequest request = Request(random);
      const GenerationRequest copy = request;
      auto stream = engine_->Submit(std::move(request));
      ASSERT_TRUE(stream.ok()) << stream.status();
      if (random() % 5 == 0) {
        engine_->Cancel((*stream)->id());
      } else {
        open.emplace_back(copy, *stream);
      }
    }
    for (auto& [request, stream] : open) {
      const TokenEvent got = ReadAll(*stream), want = Answer(request, kContext, kVocab);
      ASSERT_EQ(got.finish, want.finish) << got.status;
      ASSERT_EQ(got.tokens.size(), want.tokens.size());
      for (size_t i = 0; i < got.tokens.size(); ++i)
        ASSERT_EQ(got.tokens[i].token, want.tokens[i].token) << i;
      ASSERT_EQ(got.prompt_scores.size(), want.prompt_scores.size());
      for (size_t i = 0; i < got.prompt_scores.size(); ++i) {
        ASSERT_EQ(got.prompt_scores[i].logprob, want.prompt_scores[i].logprob) << i;
      }
    }
  };
  std::vector<std::thread> clients;
  for (uint32_t i = 0; i < 4; ++i) clients.emplace_back(client, i + 1);
  for (std::thread& t : clients) t.join();
  ASSERT_TRUE(engine_->Drain(absl::Now() + kPatience));
  EXPECT_EQ(engine_->stats().pages_held, 0);
  EXPECT_GT(engine_->stats().pages_cached, 0);
  engine_->ClearPrefixes();
  ASSERT_TRUE(engine_->Drain(absl::Now() + kPatience));
  EXPECT_EQ(engine_->stats().pages_cached, 0);
  EXPECT_TRUE(engine_->health().ok()) << engine_->health();
}

TEST_P(EngineLoopTest, BadRequestsAreRefusedWithTheValue) {
  Start();
  GenerationRequest request;
  EXPECT_EQ(engine_->Submit(request).status().code(), absl::StatusCode::kInvalidArgument);
  request.prompt = {1, 77};
  Status status = engine_->Submit(request).status();
  EXPECT_NE(MessageOf(status).find("77"), std::string_view::npos) << status;
  request.prompt.assign(kContext + 1, 1);
  status = engine_->Submit(request).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_NE(MessageOf(status).find("512"), std::string_view::npos) << status;
}

TEST_P(EngineLoopTest, AFullLineRefusesAndNothingIsLost) {
  absl::Notification all_sent;
  runner_.on_launch = [&](const StepPlan&) { all_sent.WaitForNotification(); };
  Start(/*max_queued_requests=*/4);
  std::mt19937 random(1);
  std::vector<std::shared_ptr<EventStream>> accepted;
  int refused = 0;
  for (int i = 0; i < 400; ++i) {
    auto stream = engine_->Submit(Request(random));
    if (stream.ok()) {
      accepted.push_back(*stream);
    } else {
      ASSERT_EQ(stream.status().code(), absl::StatusCode::kResourceExhausted);
      ++refused;
    }
  }
  all_sent.Notify();
  EXPECT_GT(refused, 0);
  for (auto& stream : accepted) EXPECT_TRUE(ReadAll(*stream).status.ok());
}

TEST_P(EngineLoopTest, TheBoundHoldsWhileAStepRuns) {
  absl::Notification reached[2], released[2];
  int n_launches = 0;
  runner_.on_launch = [&](const StepPlan&) {
    if (n_launches >= 2) return;
    reached[n_launches].Notify();
    released[n_launches++].WaitForNotification();
  };
  Start(/*max_queued_requests=*/2, /*max_num_seqs=*/1);
  GenerationRequest request;
  request.prompt = {1, 2, 3};
  request.sampling.max_tokens = 20;
  std::vector<std::shared_ptr<EventStream>> accepted = {*engine_->Submit(request)};
  reached[0].WaitForNotification();
  EXPECT_EQ(engine_->stats().running, 1);
  EXPECT_EQ(engine_->stats().waiting, 0);
  for (int i = 0; i < 2; ++i) accepted.push_back(*engine_->Submit(request));
  EXPECT_EQ(engine_->stats().waiting, 2) << "also what the engine has not looked at";
  EXPECT_EQ(engine_->Submit(request).status().code(), absl::StatusCode::kResourceExhausted);
  released[0].Notify();
  reached[1].WaitForNotification();  // it has taken them in, and there is no slot
  EXPECT_EQ(engine_->stats().waiting, 2);
  EXPECT_EQ(engine_->Submit(request).status().code(), absl::StatusCode::kResourceExhausted);
  released[1].Notify();
  for (auto& stream : accepted) EXPECT_EQ(ReadAll(*stream).finish, FinishReason::kLength);
}

TEST_P(EngineLoopTest, ATenantTakesHalfOfTheLineAtMost) {
  absl::Notification reached, released;
  bool first = true;
  runner_.on_launch = [&](const StepPlan&) {
    if (!std::exchange(first, false)) return;
    reached.Notify();
    released.WaitForNotification();
  };
  Start(/*max_queued_requests=*/4, /*max_num_seqs=*/1);
  GenerationRequest request;
  request.prompt = {1, 2, 3};
  request.sampling.max_tokens = 2;
  std::vector<std::shared_ptr<EventStream>> accepted = {*engine_->Submit(request)};
  reached.WaitForNotification();
  const auto submit = [&](const std::string& tenant) {
    request.tenant = tenant;
    auto stream = engine_->Submit(request);
    if (stream.ok()) accepted.push_back(*stream);
    return stream.status();
  };
  for (int i = 0; i < 2; ++i) EXPECT_TRUE(submit("a").ok());
  const Status refused = submit("a");
  EXPECT_EQ(refused.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_NE(MessageOf(refused).find("of this tenant"), std::string_view::npos) << refused;
  for (int i = 0; i < 2; ++i) EXPECT_TRUE(submit("b").ok());
  EXPECT_EQ(submit("c").code(), absl::StatusCode::kResourceExhausted) << "the line is full for everybody";
  released.Notify();
  for (auto& stream : accepted) EXPECT_EQ(ReadAll(*stream).finish, FinishReason::kLength);
  EXPECT_TRUE(submit("a").ok()) << "there is room again";
  EXPECT_EQ(ReadAll(*accepted.back()).finish, FinishReason::kLength);
}

TEST_P(EngineLoopTest, AFailedDeviceEndsWhatRunsAndRefusesWhatComes) {
  Start();
  runner_.on_launch = [&](const StepPlan&) { runner_.FailNext(Internal("the device is gone")); };
  std::mt19937 random(1);
  auto stream = engine_->Submit(Request(random));
  ASSERT_TRUE(stream.ok());
  const TokenEvent event = ReadAll(**stream);
  EXPECT_EQ(event.finish, FinishReason::kError);
  EXPECT_EQ(MessageOf(event.status), "the device is gone");
  ASSERT_TRUE(engine_->Drain(absl::Now() + kPatience));
  EXPECT_FALSE(engine_->health().ok());
  EXPECT_EQ(engine_->Submit(Request(random)).status().code(), absl::StatusCode::kUnavailable);
}

// Once a client can know of the failure nothing is taken, and what was taken before is not run.
TEST_P(EngineLoopTest, NothingRunsOnAFailedDevice) {
  absl::Notification launched, sent;
  int n_launches = 0;
  runner_.on_launch = [&](const StepPlan&) {
    if (++n_launches > 1) return;
    launched.Notify();
    sent.WaitForNotification();
    runner_.FailNext(Internal("the device is gone"));
  };
  Start();
  std::mt19937 random(1);
  auto runs = engine_->Submit(Request(random));
  ASSERT_TRUE(runs.ok());
  launched.WaitForNotification();
  auto waits = engine_->Submit(Request(random));
  ASSERT_TRUE(waits.ok());
  sent.Notify();
  EXPECT_EQ(ReadAll(**runs).finish, FinishReason::kError);
  EXPECT_EQ(engine_->Submit(Request(random)).status().code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(MessageOf(ReadAll(**waits).status), "the device is gone");
  EXPECT_EQ(n_launches, 1);
}

TEST_P(EngineLoopTest, StopAdmissionLetsWhatRunsFinish) {
  Start();
  std::mt19937 random(1);
  auto stream = engine_->Submit(Request(random));
  ASSERT_TRUE(stream.ok());
  engine_->StopAdmission();
  EXPECT_EQ(engine_->Submit(Request(random)).status().code(), absl::StatusCode::kUnavailable);
  EXPECT_TRUE(ReadAll(**stream).status.ok());
  EXPECT_TRUE(engine_->Drain(absl::Now() + kPatience));
}

TEST_P(EngineLoopTest, DestroyingTheEngineEndsWhatRuns) {
  Start();
  std::mt19937 random(1);
  std::vector<std::shared_ptr<EventStream>> streams;
  for (int i = 0; i < 50; ++i) streams.push_back(*engine_->Submit(Request(random)));
  engine_.reset();
  for (auto& stream : streams) EXPECT_NE(ReadAll(*stream).finish, FinishReason::kNone);
}

TEST_P(EngineLoopTest, ADeviceThatFailsBehindAStepInFlightEndsThemAll) {
  absl::Notification all_sent;  // a failed engine takes no more
  int n_launches = 0;
  runner_.on_launch = [&](const StepPlan&) {
    all_sent.WaitForNotification();
    if (++n_launches == 5) runner_.FailNext(Internal("the device is gone"));
  };
  Start();
  std::mt19937 random(2);
  std::vector<std::shared_ptr<EventStream>> streams;
  for (int i = 0; i < 20; ++i) streams.push_back(*engine_->Submit(Request(random)));
  all_sent.Notify();
  int n_failed = 0;
  for (auto& stream : streams) n_failed += ReadAll(*stream).finish == FinishReason::kError;
  EXPECT_GT(n_failed, 0);
  ASSERT_TRUE(engine_->Drain(absl::Now() + kPatience));
  EXPECT_FALSE(engine_->health().ok());
  EXPECT_EQ(engine_->stats().pages_held, 0);
}

INSTANTIATE_TEST_SUITE_P(Depth, EngineLoopTest, ::testing::Values(1, 2), ::testing::PrintToStringParamName());

}  // namespace
}  // namespace t6
