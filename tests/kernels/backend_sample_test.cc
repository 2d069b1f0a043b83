// The sampler, on every device.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>
#include <set>
#include <vector>

#include "engine/backend/philox.h"
#include "tests/kernels/backend_world.h"
#include "tests/support/reference_ops.h"

namespace t6::testing {
namespace {

using ::testing::HasSubstr;

// The vectors that Random123 publishes (kat_vectors, philox4x32, 10 rounds).
TEST(PhiloxTest, KnownAnswers) {
  using Block = std::array<uint32_t, 4>;
  EXPECT_EQ(Philox4x32({0, 0, 0, 0}, {0, 0}), (Block{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  EXPECT_EQ(Philox4x32({0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff}, {0xffffffff, 0xffffffff}),
            (Block{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT_EQ(Philox4x32({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}),
            (Block{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

TEST(PhiloxTest, DrawsAreUniformAndDifferByKey) {
  double sum = 0;
  for (int i = 0; i < 10000; ++i) {
    const double u = UniformDraw(7, i);
    ASSERT_GE(u, 0.0);
    ASSERT_LT(u, 1.0);
    sum += u;
  }
  EXPECT_NEAR(sum / 10000, 0.5, 0.02);
  EXPECT_NE(UniformDraw(7, 0), UniformDraw(8, 0));
  EXPECT_NE(UniformDraw(7, 0), UniformDraw(7 + (uint64_t{1} << 32), 0));
}

std::vector<float> RandomLogits(int n, uint32_t seed, float scale = 3.0f) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0.0f, scale);
  std::vector<float> x(n);
  for (float& v : x) v = normal(random);
  return x;
}

constexpr int kMostRows = 256;

class SampleTest : public ::testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    if (!on_.Make(GetParam())) GTEST_SKIP() << on_.reason();
    const StepLimits limits{
        .max_rows = kMostRows, .max_sequences = 4, .max_outputs = kMostRows, .max_context = kMostRows};
    ASSERT_TRUE(on_->Reserve(limits, SmallSpec(), {.width = 32, .mlp_width = 64, .vocab = 64}).ok());
  }

  StatusOr<std::vector<TokenOutput>> Run(const std::vector<float>& logits, int vocab, int n_text,
                                         const std::vector<SamplingRow>& rows) {
    StepPlan plan = PlanOf(std::vector<int32_t>(rows.size(), 0));
    plan.sampling = rows;
    T6_RETURN_IF_ERROR(on_->BeginStep(plan, SmallSpec()));
    T6_ASSIGN_OR_RETURN(const auto memory, on_->Allocate(logits.size() * sizeof(float)));
    T6_RETURN_IF_ERROR(on_->Upload(memory->data(), logits.data(), logits.size() * sizeof(float)));
    T6_RETURN_IF_ERROR(on_->Sample({memory->as<float>(), vocab, n_text}));
    T6_ASSIGN_OR_RETURN(StepResult result, on_->WaitSample());
    return std::move(result.outputs);
  }
  TokenOutput One(const std::vector<float>& logits, const SamplingRow& row, int n_text = -1) {
    const int vocab = static_cast<int>(logits.size());
    auto outputs = Run(logits, vocab, n_text < 0 ? vocab : n_text, {row});
    EXPECT_TRUE(outputs.ok()) << outputs.status();
    return (*outputs)[0];
  }
  // Tokens of output indices 0 to n - 1.
  std::vector<int32_t> Draws(const std::vector<float>& logits, SamplingRow row, int n, int n_text = -1) {
    const int vocab = static_cast<int>(logits.size());
    std::vector<int32_t> tokens;
    while (static_cast<int>(tokens.size()) < n) {
      const int count = std::min(kMostRows, n - static_cast<int>(tokens.size()));
      std::vector<float> all;
      std::vector<SamplingRow> rows;
      for (int i = 0; i < count; ++i) {
        all.insert(all.end(), logits.begin(), logits.end());
        row.output_index = static_cast<int32_t>(tokens.size()) + i;
        rows.push_back(row);
      }
      auto outputs = Run(all, vocab, n_text < 0 ? vocab : n_text, rows);
      EXPECT_TRUE(outputs.ok()) << outputs.status();
      for (const TokenOutput& output : *outputs) tokens.push_back(output.token);
    }
    return tokens;
  }

  OnDevice on_;
};

SamplingRow Greedy(int n_top = -1) {
  SamplingRow row;
  row.temperature = 0.0f;
  row.n_top = n_top;
  return row;
}

TEST_P(SampleTest, GreedyTakesTheLowestOfTheMostLikely) {
  for (int n : {1, 2, 15, 16, 17, 64, 67, 8192, 50304}) {
    std::vector<float> logits = RandomLogits(n, 1);
    const int first = n / 3, second = n - 1;
    logits[first] = logits[second] = 50.0f;
    EXPECT_EQ(One(logits, Greedy()).token, first) << n;
  }
}

// Several rows that ask for nothing else: the same, wherever in the vocabulary the most likely ones are.
TEST_P(SampleTest, GreedyRowsTogetherTakeWhatEachTakesAlone) {
  for (int n : {1, 100, 1024, 1025, 8192, 50304}) {
    for (int n_text : {1, n / 2 + 1, n}) {
      std::vector<float> logits;
      std::vector<int32_t> expected;
      for (int row = 0; row < 7; ++row) {
        std::vector<float> one = RandomLogits(n, row + 1);
        for (float& x : one) x -= 100.0f;
        one[n - 1] = 200.0f;  // perhaps without text
        const int first = (n_text - 1) * row / 6, second = std::min(n_text - 1, first + 1024);
        one[first] = one[second] = n_text < n ? 50.0f : 250.0f;
        expected.push_back(first);
        logits.insert(logits.end(), one.begin(), one.end());
      }
      const auto outputs = Run(logits, n, n_text, std::vector<SamplingRow>(7, Greedy()));
      ASSERT_TRUE(outputs.ok());
      for (int row = 0; row < 7; ++row) {
        EXPECT_EQ((*outputs)[row].token, expected[row]) << "row " << row << " of " << n << ", " << n_text;
        EXPECT_TRUE(std::isnan((*outputs)[row].logprob));
      }
    }
  }
}

TEST_P(SampleTest, GreedyWithoutLogProbabilitiesGivesNone) {
  const TokenOutput output = One(RandomLogits(100, 1), Greedy());
  EXPECT_TRUE(std::isnan(output.logprob));
  EXPECT_TRUE(output.top.empty());
}

TEST_P(SampleTest, IdsWithoutTextAreNeverSampledButCount) {
  std::vector<float> logits = RandomLogits(100, 2);
  logits[95] = 30.0f;  // no text: the whole distribution is there
  logits[40] = 20.0f;
  const TokenOutput output = One(logits, Greedy(2), 90);
  EXPECT_EQ(output.token, 40);
  const reference::Row expected = reference::LogSoftmax(logits.data(), logits.size());
  EXPECT_NEAR(output.logprob, expected[40], 1e-5);
  EXPECT_LT(output.logprob, -9.0f);
  ASSERT_EQ(output.top.size(), 2u);
  EXPECT_EQ(output.top[0].token, 95);
  SamplingRow draw;
  draw.temperature = 5.0f;
  for (const int32_t token : Draws(logits, draw, 500, 90)) ASSERT_LT(token, 90);
}

TEST_P(SampleTest, LogProbabilitiesMatchFloat64) {
  for (int n : {1, 5, 511, 512, 513, 8192, 50304}) {
    const std::vector<float> logits = RandomLogits(n, 3);
    const reference::Row expected = reference::LogSoftmax(logits.data(), n);
    SamplingRow row;
    row.score_token = n / 2;
    row.n_top = 20;
    const TokenOutput output = One(logits, row);
    EXPECT_EQ(output.token, n / 2);
    // float32 keeps 2^-23 of a number below 32; the sum's error is far less.
    EXPECT_NEAR(output.logprob, expected[n / 2], 4e-6) << n;
    std::vector<int> order(n);
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return logits[a] > logits[b]; });
    ASSERT_EQ(output.top.size(), static_cast<size_t>(std::min(20, n)));
    for (size_t i = 0; i < output.top.size(); ++i) {
      EXPECT_EQ(output.top[i].token, order[i]) << n << ", " << i;
      EXPECT_NEAR(output.top[i].logprob, expected[order[i]], 4e-6);
    }
  }
}

TEST_P(SampleTest, TopTiesGoToTheLowestIds) {
  std::vector<float> logits(200, 1.0f);
  logits[150] = 2.0f;
  const TokenOutput output = One(logits, Greedy(4));
  ASSERT_EQ(output.top.size(), 4u);
  EXPECT_EQ(output.top[0].token, 150);
  for (int i = 1; i < 4; ++i) EXPECT_EQ(output.top[i].token, i - 1);
}

TEST_P(SampleTest, RowsAreIndependent) {
  constexpr int kVocab = 1000, kRows = 37;
  const std::vector<float> logits = RandomLogits(kVocab * kRows, 4);
  std::vector<SamplingRow> rows(kRows);
  for (int i = 0; i < kRows; ++i) {
    rows[i].temperature = i % 3 == 0 ? 0.0f : 0.7f;
    rows[i].top_k = i % 4 == 0 ? 30 : 0;
    rows[i].top_p = i % 5 == 0 ? 0.9f : 1.0f;
    rows[i].seed = i, rows[i].output_index = 3 * i, rows[i].n_top = i % 3;
  }
  const auto together = Run(logits, kVocab, kVocab, rows);
  ASSERT_TRUE(together.ok());
  for (int i = 0; i < kRows; ++i) {
    const std::vector<float> row(logits.begin() + i * kVocab, logits.begin() + (i + 1) * kVocab);
    const TokenOutput alone = One(row, rows[i]);
    EXPECT_EQ((*together)[i].token, alone.token) << i;
    EXPECT_EQ((*together)[i].logprob, alone.logprob) << i;
  }
}

// Probabilities that temperature, top_k and top_p leave, in float64.
std::vector<double> Expected(const std::vector<float>& logits, const SamplingRow& row) {
  const size_t n = logits.size();
  std::vector<double> p(n);
  const double max = *std::max_element(logits.begin(), logits.end());
  for (size_t i = 0; i < n; ++i) p[i] = std::exp((logits[i] - max) / row.temperature);
  std::vector<int> order(n);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return logits[a] > logits[b]; });
  if (row.top_k > 0 && static_cast<size_t>(row.top_k) < n) order.resize(row.top_k);
  double mass = 0, passed = 0;
  for (int id : order) mass += p[id];
  size_t kept = 0;
  while (kept < order.size() && (kept == 0 || passed < row.top_p * mass)) passed += p[order[kept++]];
  order.resize(kept);
  std::vector<double> left(n, 0.0);
  for (int id : order) left[id] = p[id] / passed;
  return left;
}

TEST_P(SampleTest, DrawsFollowTheDistribution) {
  const std::vector<float> logits = RandomLogits(40, 5, 1.5f);
  struct Cut {
    float temperature, top_p;
    int top_k;
  };
  for (const Cut cut : {Cut{1.0f, 1.0f, 0},
                        {0.5f, 1.0f, 0},
                        {2.0f, 1.0f, 5},
                        {1.0f, 0.6f, 0},
                        {1.3f, 0.7f, 8},
                        {1.0f, 0.999f, 39},
                        {1.0f, 0.01f, 0},
                        {1.0f, 1.0f, 1},
                        {1.0f, 1.0f, 1000}}) {
    SamplingRow row;
    row.temperature = cut.temperature, row.top_p = cut.top_p, row.top_k = cut.top_k, row.seed = 99;
    const std::vector<double> expected = Expected(logits, row);
    constexpr int kDraws = 20000;
    std::vector<int> counts(logits.size());
    for (const int32_t token : Draws(logits, row, kDraws)) ++counts[token];
    double chi_squared = 0;
    int freedom = -1;
    for (size_t i = 0; i < logits.size(); ++i) {
      if (expected[i] == 0.0) {
        EXPECT_EQ(counts[i], 0) << "id " << i << " was cut";
        continue;
      }
      const double want = expected[i] * kDraws;
      if (want < 5) continue;
      chi_squared += (counts[i] - want) * (counts[i] - want) / want;
      ++freedom;
    }
    // Mean `freedom`, deviation sqrt(2 freedom): five deviations off is no accident (and the seed is fixed).
    EXPECT_LT(chi_squared, freedom + 5 * std::sqrt(2.0 * std::max(freedom, 1)))
        << cut.temperature << " " << cut.top_p << " " << cut.top_k;
  }
}

TEST_P(SampleTest, ADrawIsTheFirstIdWhoseRunningSumPassesTheUniform) {
  const std::vector<float> logits = RandomLogits(5000, 6, 2.0f);
  for (const auto& [top_k, top_p] :
       {std::pair{0, 1.0f}, {50, 1.0f}, {0, 0.8f}, {0, 0.99999f}, {4000, 0.9f}}) {
    SamplingRow row;
    row.temperature = 0.9f, row.top_k = top_k, row.top_p = top_p, row.seed = 0x123456789abcdefu;
    const std::vector<double> p = Expected(logits, row);
    int n_different = 0;
    const std::vector<int32_t> tokens = Draws(logits, row, 200);
    for (int i = 0; i < 200; ++i) {
      const double u = UniformDraw(row.seed, i);
      double passed = 0;
      int id = 0;
      while (id < 4999 && (passed += p[id]) <= u) ++id;
      n_different += tokens[i] != id;
    }
    EXPECT_LE(n_different, 1) << top_k << " " << top_p;  // a uniform may fall within rounding of a step
  }
}

TEST_P(SampleTest, FlatLogitsKeepExactlyTopK) {
  const std::vector<float> logits(300, 0.25f);
  SamplingRow row;
  row.top_k = 7;
  std::set<int> seen;
  for (const int32_t token : Draws(logits, row, 500)) seen.insert(token);
  EXPECT_EQ(seen, (std::set<int>{0, 1, 2, 3, 4, 5, 6}));
}

TEST_P(SampleTest, TinyTemperaturesAndExtremeLogitsStayFinite) {
  std::vector<float> logits = RandomLogits(100, 7);
  logits[31] = 1e30f;
  logits[32] = -1e30f;
  for (float temperature : {1e-30f, 1e-6f, 1e-4f, 1.0f, 1e30f}) {
    SamplingRow row;
    row.temperature = temperature;
    row.n_top = 3;
    const TokenOutput output = One(logits, row);
    EXPECT_GE(output.token, 0);
    EXPECT_LT(output.token, 100);
    if (temperature <= 1.0f) {
      EXPECT_EQ(output.token, 31);
    }
    EXPECT_EQ(output.top[0].token, 31);
    EXPECT_EQ(output.top[0].logprob, 0.0f);
  }
}

TEST_P(SampleTest, NotFiniteLogitsAreAnErrorThatNamesTheRow) {
  for (float bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(),
                    -std::numeric_limits<float>::infinity()}) {
    for (int place : {0, 17, 99}) {
      std::vector<float> logits = RandomLogits(300, 8);
      logits[200 + place] = bad;
      const auto outputs = Run(logits, 100, 90, {Greedy(), Greedy(), Greedy()});
      ASSERT_FALSE(outputs.ok()) << bad << " at " << place;
      EXPECT_EQ(outputs.status().code(), absl::StatusCode::kInternal);
      EXPECT_THAT(std::string(MessageOf(outputs.status())), HasSubstr("row 2"));
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Devices, SampleTest, ::testing::ValuesIn(Devices()),
                         [](const auto& info) { return info.param; });

}  // namespace
}  // namespace t6::testing
