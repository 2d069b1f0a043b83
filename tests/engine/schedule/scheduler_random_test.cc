// Thousands of random submissions, cancellations and preemptions: the answers must be those of a model
// without a cache, every slot that is read must hold the right token, and in the end no page may be held.
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <random>

#include "tests/engine/schedule/scheduler_harness.h"

namespace t6 {
namespace {

struct Mix {
  int n_pages;
  int longest_prompt;
  int longest_output;
  SchedulerConfig config;
  int n_requests;
};
void PrintTo(const Mix& mix, std::ostream* out) {
  *out << mix.n_pages << "_pages_depth_" << mix.config.pipeline_depth;
}

class RandomSchedule : public ::testing::TestWithParam<Mix> {};

// Prompts that share documents, continue earlier answers, or are new.
class Prompts {
 public:
  Prompts(uint32_t seed, int longest) : random_(seed), longest_(longest) {}

  std::vector<int32_t> Next() {
    std::vector<int32_t> prompt;
    if (!seen_.empty() && random_() % 5 != 0) {
      prompt = seen_[random_() % seen_.size()];
      prompt.resize(random_() % (prompt.size() + 1));
    }
    for (int n = 1 + random_() % (longest_ / 3); n > 0; --n) prompt.push_back(random_() % 3);
    if (static_cast<int>(prompt.size()) > longest_) prompt.resize(longest_);
    return prompt;
  }
  void Remember(std::vector<int32_t> tokens) {
    seen_.push_back(std::move(tokens));
    if (seen_.size() > 40) seen_.erase(seen_.begin());
  }

 private:
  std::mt19937 random_;
  const int longest_;
  std::vector<std::vector<int32_t>> seen_;
};

GenerationRequest RandomRequest(std::mt19937& random, Prompts& prompts, int longest_output) {
  GenerationRequest request = Request(prompts.Next(), random() % (random() % 3 == 0 ? 10 : longest_output));
  SamplingParams& params = request.sampling;
  if (random() % 3 == 0) params.temperature = 1;
  params.seed = random();
  if (random() % 4 == 0) params.n_logprobs = random() % 3;
  if (random() % 5 == 0) params.n_prompt_logprobs = random() % 3;
  if (random() % 2 == 0)
    params.stop_token_ids = {static_cast<int32_t>(random() % SchedulerHarness::kVocab), 7};
  if (random() % 10 == 0) request.tenant = "other";
  request.priority = random() % 8 == 0 ? static_cast<int>(random() % 3) - 1 : 0;
  return request;
}

TEST_P(RandomSchedule, AnswersAreThoseWithoutACache) {
  const Mix& mix = GetParam();
  const SchedulerConfig& config = mix.config;
  SchedulerHarness engine(mix.n_pages, config);
  std::mt19937 random(11);
  Prompts prompts(12, mix.longest_prompt);
  std::map<RequestId, GenerationRequest> alive, interrupted;
  int n_submitted = 0, n_checked = 0, n_interrupted = 0;
  while (n_submitted < mix.n_requests || !alive.empty()) {
    while (n_submitted < mix.n_requests && alive.size() < 30 && random() % 3 != 0) {
      GenerationRequest request = RandomRequest(random, prompts, mix.longest_output);
      prompts.Remember(request.prompt);
      const RequestId id = engine.Submit(request);
      ASSERT_NE(id, 0u) << engine.status;
      alive.emplace(id, std::move(request));
      ++n_submitted;
    }
    if (!alive.empty() && random() % 24 == 0) {
      auto it = std::next(alive.begin(), random() % alive.size());
      random() % 2 == 0 ? engine.scheduler.Cancel(it->first) : engine.scheduler.Finish(it->first);
      interrupted.insert(*it);
    }
    if (random() % 200 == 0) engine.cache.Clear();
    engine.step_time = absl::Microseconds(100 + random() % 20000);
    engine.Step();
    ASSERT_FALSE(HasFailure());
    for (auto it = alive.begin(); it != alive.end();) {
      const Collected& got = engine.Read(it->first);
      if (!got.done()) {
        ++it;
        continue;
      }
      if (interrupted.count(it->first) != 0) {
        // What came until then is the beginning of the answer.
        TokenEvent want = testing::Answer(it->second, config.max_context, SchedulerHarness::kVocab);
        ASSERT_LE(got.all.tokens.size(), want.tokens.size());
        want.tokens.resize(got.all.tokens.size());
        SchedulerHarness::ExpectOutputs(got.all.tokens, want.tokens);
        ++n_interrupted;
      } else {
        engine.ExpectAnswer(it->first, it->second);
        ++n_checked;
      }
      prompts.Remember(it->second.prompt + engine.Tokens(it->first));
      it = alive.erase(it);
    }
    ASSERT_FALSE(HasFailure());
  }
  engine.RunAll();
  EXPECT_GT(n_checked, mix.n_requests / 5);
  EXPECT_GT(n_interrupted, 0);
  RecordProperty("preemptions", static_cast<int>(engine.scheduler.n_preemptions()));
  RecordProperty("prefix_waits", static_cast<int>(engine.scheduler.n_prefix_waits()));
  RecordProperty("steps", static_cast<int>(engine.runner.n_steps()));
  if (mix.n_pages < 40) {
    EXPECT_GT(engine.scheduler.n_preemptions(), 50);
  }
  EXPECT_GT(engine.scheduler.n_prefix_waits(), 0);
  engine.ExpectNoPagesLeft();
}

Mix TinyPool(int depth) {
  return {.n_pages = 6,
          .longest_prompt = 130,
          .longest_output = 250,
          .config = {.max_num_seqs = 8,
                     .max_step_rows = 64,
                     .max_outputs = 8,
                     .max_context = 384,
                     .reserve_tokens = 0,
                     .pipeline_depth = depth},
          .n_requests = 1200};
}
Mix SmallPool(int depth) {
  return {.n_pages = 24,
          .longest_prompt = 400,
          .longest_output = 250,
          .config = {.max_num_seqs = 24,
                     .max_step_rows = 128,
                     .max_outputs = 48,
                     .max_context = 660,
                     .reserve_tokens = 0,
                     .pipeline_depth = depth},
          .n_requests = 1200};
}
Mix LargePool(int depth) {
  return {.n_pages = 2000,
          .longest_prompt = 1000,
          .longest_output = 40,
          .config = {.max_num_seqs = 32,
                     .max_step_rows = 512,
                     .max_outputs = 512,
                     .max_context = 1024,
                     .pipeline_depth = depth},
          .n_requests = 800};
}

INSTANTIATE_TEST_SUITE_P(TinyPool, RandomSchedule, ::testing::Values(TinyPool(1), TinyPool(2)),
                         ::testing::PrintToStringParamName());
INSTANTIATE_TEST_SUITE_P(SmallPool, RandomSchedule, ::testing::Values(SmallPool(1), SmallPool(2)),
                         ::testing::PrintToStringParamName());
INSTANTIATE_TEST_SUITE_P(LargePool, RandomSchedule, ::testing::Values(LargePool(1), LargePool(2)),
                         ::testing::PrintToStringParamName());

// With room for everything, one request after the other: cached tokens are the longest common prefix with any
// earlier prompt and what was written of its answer, at most the prompt less one.
TEST(CachedTokens, AreTheTokenExactMaximum) {
  SchedulerConfig config;
  config.max_context = 1024;
  SchedulerHarness engine(8000, config);
  std::mt19937 random(3);
  Prompts prompts(4, 900);
  std::vector<std::vector<int32_t>> earlier;
  int64_t cached = 0, total = 0;
  for (int i = 0; i < 400; ++i) {
    const GenerationRequest request = Request(prompts.Next(), 1 + random() % 30);
    size_t best = 0;
    for (const auto& other : earlier) {
      const size_t n = std::min(other.size(), request.prompt.size() - 1);
      best = std::max<size_t>(
          best,
          std::mismatch(other.begin(), other.begin() + n, request.prompt.begin()).first - other.begin());
    }
    const RequestId id = engine.Submit(request);
    engine.RunAll();
    engine.ExpectAnswer(id, request);
    ASSERT_EQ(engine.Read(id).all.cached_tokens, static_cast<int>(best)) << "request " << i;
    cached += best, total += request.prompt.size();
    std::vector<int32_t> all = request.prompt + engine.Tokens(id);
    prompts.Remember(all);
    all.pop_back();  // the last token was sampled, never written
    earlier.push_back(std::move(all));
  }
  EXPECT_GT(cached, total / 4);
  EXPECT_EQ(
      engine.runner.n_rows(), total - cached + [&] {
        int64_t decoded = 0;
        for (RequestId id = 1; id <= 400; ++id) decoded += static_cast<int64_t>(engine.Tokens(id).size()) - 1;
        return decoded;
      }());
  engine.ExpectNoPagesLeft();
}

}  // namespace
}  // namespace t6
