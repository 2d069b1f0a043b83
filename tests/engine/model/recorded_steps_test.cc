// Decode steps on a GPU, which launches the operations of a kind of step one by one the first time and
// records them for the next, up to few rows as one kernel: whatever the widths, and with a step in flight
// behind another.
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <map>
#include <string>
#include <vector>

#include "tests/engine/model/loaded_model.h"

namespace t6::testing {
namespace {

// Shapes whose products have several tiles a block and several stages, and all of decode's kernels.
struct WideCase {
  const char* name;
  Shape shape;
  DType pages = DType::kBF16;
};
void PrintTo(const WideCase& c, std::ostream* out) { *out << c.name; }

class WideModelTest : public ::testing::TestWithParam<WideCase> {
 protected:
  static constexpr int kSequences = 16, kTokens = 200;

  std::vector<TokenOutput> Run(int first, int n_sequences, int begin, int end, int n_top = 20) {
    StepPlan plan;
    plan.Clear();
    for (int s = first; s < first + n_sequences; ++s) {
      AddTokens(s, begin, TokensOf(s, begin, end), Greedy(n_top), &plan);
    }
    return model_.Run(plan);
  }
  static std::map<int32_t, float> TopOf(const TokenOutput& output) {
    std::map<int32_t, float> of;
    for (const TokenScore& top : output.top) of[top.token] = top.logprob;
    return of;
  }
  void CheckChunks();
  void CheckSteps(int n);

  LoadedModel model_;
};

// All rows in one step, or 50 at a time, which other products and attention do.
void WideModelTest::CheckChunks() {
  const std::vector<TokenOutput> at_once = Run(0, 4, 0, kTokens);
  ASSERT_EQ(at_once.size(), 4u);
  for (int s = 0; s < 4; ++s) {
    std::vector<TokenOutput> parts;
    for (int begin = 0; begin < kTokens; begin += 50) parts = Run(s, 1, begin, begin + 50);
    ASSERT_EQ(parts.size(), 1u);
    std::map<int32_t, float> of = TopOf(parts[0]);
    for (int k = 0; k < 5; ++k) {
      const TokenScore& top = at_once[s].top[k];
      ASSERT_TRUE(of.contains(top.token)) << "sequence " << s;
      // Of a logit so far below the best one, what is rounded to bfloat16 is a part in 500. Factors that
      // differ by that may be rounded to other numbers of fp8.
      const double times = GetParam().pages == DType::kFp8 ? 4.0 : 1.0;
      EXPECT_NEAR(of[top.token], top.logprob, times * (1.0 - top.logprob / 200)) << "sequence " << s;
    }
  }
}

// The next token of n sequences, again and again.
void WideModelTest::CheckSteps(int n) {
  const std::vector<TokenOutput> first = Run(0, n, kTokens, kTokens + 1);
  ASSERT_EQ(first.size(), static_cast<size_t>(n));
  double worst = 0.0, spread = 0.0;
  std::vector<TokenOutput> second;
  for (int again = 0; again < 3; ++again) {
    const std::vector<TokenOutput> next = Run(0, n, kTokens, kTokens + 1);
    ASSERT_EQ(next.size(), first.size());
    for (int i = 0; i < n; ++i) {
      std::map<int32_t, float> of = TopOf(next[i]);
      for (int k = 0; k < 10; ++k) {
        const TokenScore& top = first[i].top[k];
        ASSERT_TRUE(of.contains(top.token)) << n << " rows, row " << i << ", run " << again;
        worst = std::max(worst, std::abs(static_cast<double>(of[top.token]) - top.logprob));
      }
      spread = std::max(spread, static_cast<double>(first[i].top[0].logprob - first[i].top[19].logprob));
      if (again > 0) {
        EXPECT_EQ(next[i].logprob, second[i].logprob) << "the recorded step's bits, row " << i;
      }
    }
    second = next;
  }
  const std::vector<TokenOutput> greedy = Run(0, n, kTokens, kTokens + 1, -1);
  ASSERT_EQ(greedy.size(), second.size());
  for (int i = 0; i < n; ++i) EXPECT_EQ(greedy[i].token, second[i].token) << "without others, row " << i;
  // The order of sums differs, and with it what is rounded to bfloat16; logits are as wide as 40.
  EXPECT_LT(worst, 1.0) << n << " rows; the best twenty lie within " << spread;
}

TEST_P(WideModelTest, AStepThatComesAgainGivesTheSame) {
  const ModelSpec spec = SpecOf(GetParam().shape);
  const MemoryTensors tensors = RandomTensors(spec, 7);
  if (!model_.Load("cuda", spec, tensors, DType::kBF16, GetParam().pages, kSequences, kVocab))
    GTEST_SKIP() << model_.reason();
  CheckChunks();
  for (int s = 0; s < kSequences; s += 4) Run(s, 4, 0, kTokens);
  for (const int n : {1, 2, 3, 4, 5, 7, 8, 11, 16}) CheckSteps(n);
}

// Rank 3 has no kernel of the whole step. The last is wider than 16 columns of each multiprocessor, of which
// a block writes more than a tile.
INSTANTIATE_TEST_SUITE_P(
    cuda, WideModelTest,
    ::testing::Values(WideCase{"h78", {78, 6, 2}}, WideCase{"h47_norm", {47, 6, 2, true}},
                      WideCase{"h32", {32, 16, 1}}, WideCase{"h100", {100, 6, 2}},
                      WideCase{"h22_rank3", {22, 6, 3}}, WideCase{"h78_fp8", {78, 6, 2}, DType::kFp8},
                      WideCase{"h32_fp8", {32, 16, 1}, DType::kFp8},
                      WideCase{"w2560", {.h = 40, .rank_q = 6, .rank = 2, .width = 2560, .mlp_width = 6826}}),
    ::testing::PrintToStringParamName());

// Steps known beforehand and steps launched before the tokens of the step before are known: the same bits.
// One sequence ends on the way, so that a later step's rows are others than the ones it takes tokens from,
// and one joins with a chunk.
class StepsInFlight {
 public:
  static constexpr int kMost = 16, kSteps = 12, kJoins = 4, kLast = 7, kChunk = 40;

  StepsInFlight(ModelRunner* runner, int n) : runner_(runner), n_(n) {}

  static int Context(int sequence) { return 55 + 9 * sequence; }

  // Of every step. `ahead`: each is launched before the one before is waited for.
  std::vector<std::vector<TokenOutput>> Run(bool ahead) {
    std::vector<StepPlan> plans(kSteps);
    outputs_.clear();
    for (int step = 0; step < kSteps; ++step) {
      MakePlan(step, ahead, &plans[step]);
      EXPECT_TRUE(runner_->Launch(plans[step]).ok());
      if (!ahead || step > 0) Wait();
    }
    if (ahead) Wait();
    return outputs_;
  }

 private:
  // n sequences at first.
  std::vector<int> SequencesOf(int step) const {
    std::vector<int> sequences;
    for (int s = n_ > 1 && step > kLast ? 1 : 0; s < n_; ++s) sequences.push_back(s);
    if (n_ < kMost && step >= kJoins) sequences.push_back(n_);
    return sequences;
  }
  static SamplingRow SamplingOf(int sequence, int step) {
    SamplingRow row = Greedy(sequence % 4 == 2 ? 3 : -1);
    if (sequence % 4 == 1) row.temperature = 20.0f;
    if (sequence % 4 == 3) row.temperature = 8.0f, row.top_k = 40, row.top_p = 0.9f, row.n_top = 0;
    row.seed = sequence, row.output_index = step;
    return row;
  }
  void MakePlan(int step, bool ahead, StepPlan* plan) {
    const std::vector<int> before = SequencesOf(step - 1);
    plan->Clear();
    for (const int s : SequencesOf(step)) {
      const int own = step - (s == n_ ? kJoins : 0);  // of its steps
      const int from = Context(s) + (s == n_ && own > 0 ? kChunk - 1 : 0);
      std::vector<int32_t> tokens = TokensOf(s, from, from + (s == n_ && own == 0 ? kChunk : 1));
      const auto output = std::find(before.begin(), before.end(), s) - before.begin();  // of the step before
      if (own > 0) tokens = {ahead ? -1 - static_cast<int32_t>(output) : outputs_.back()[output].token};
      AddTokens(s, from + own, tokens, SamplingOf(s, step), plan);
    }
  }
  void Wait() {
    auto result = runner_->Wait();
    EXPECT_TRUE(result.ok()) << result.status();
    outputs_.push_back(result.ok() ? result->outputs : std::vector<TokenOutput>(kMost));
  }

  ModelRunner* runner_;
  int n_;
  std::vector<std::vector<TokenOutput>> outputs_;
};

// By the type of pages.
class StepsInFlightTest : public ::testing::TestWithParam<DType> {};

TEST_P(StepsInFlightTest, GiveWhatOneByOneGives) {
  const ModelSpec spec = SpecOf({.h = 47, .rank_q = 6, .rank = 2, .mlp_width = 1066});
  const MemoryTensors tensors = RandomTensors(spec, 7);
  LoadedModel gpu;
  if (!gpu.Load("cuda", spec, tensors, DType::kBF16, GetParam(), StepsInFlight::kMost, kVocab - 100)) {
    GTEST_SKIP() << gpu.reason();
  }
  for (int s = 0; s < StepsInFlight::kMost; ++s) {
    StepPlan plan;
    plan.Clear();
    AddTokens(s, 0, TokensOf(s, 0, StepsInFlight::Context(s)), Greedy(), &plan);
    gpu.Run(plan);
  }
  for (const int n : {1, 2, 3, 5, 16}) {
    StepsInFlight steps(&gpu.runner(), n);
    steps.Run(false);  // records
    const auto one_by_one = steps.Run(false), ahead = steps.Run(true);
    ASSERT_EQ(one_by_one.size(), ahead.size());
    for (size_t step = 0; step < ahead.size(); ++step) {
      ASSERT_EQ(one_by_one[step].size(), ahead[step].size());
      for (size_t i = 0; i < ahead[step].size(); ++i) {
        const TokenOutput &want = one_by_one[step][i], &got = ahead[step][i];
        EXPECT_EQ(want.token, got.token) << n << " rows, step " << step << ", row " << i;
        EXPECT_EQ(std::bit_cast<uint32_t>(want.logprob), std::bit_cast<uint32_t>(got.logprob));
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(cuda, StepsInFlightTest, ::testing::Values(DType::kBF16, DType::kFp8),
                         [](const auto& info) { return std::string(NameOf(info.param)); });

}  // namespace
}  // namespace t6::testing
