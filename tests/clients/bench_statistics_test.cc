// Samples to figures, against values computed by hand.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <numeric>
#include <random>

#include "clients/cli/bench/report.h"
#include "clients/cli/bench/statistics.h"

namespace t6::cli {
namespace {

using testing::HasSubstr;
using testing::Not;

BenchClock::time_point At(double seconds) {
  return BenchClock::time_point() +
         std::chrono::duration_cast<BenchClock::duration>(std::chrono::duration<double>(seconds));
}

Sample Answered(double due, std::initializer_list<double> texts, double end) {
  Sample sample;
  sample.due = At(due);
  for (const double text : texts) sample.OnText(At(text));
  sample.end = At(end);
  sample.prompt_tokens = 100;
  sample.cached_tokens = 75;
  sample.completion_tokens = static_cast<int>(texts.size());
  return sample;
}

Sample Failed(double due, double end, const std::string& code, bool after_text) {
  Sample sample = after_text ? Answered(due, {end}, end) : Answered(due, {}, end);
  sample.error = code;
  sample.message = "why " + code;
  return sample;
}

TEST(QuantileTest, GoesInProportionBetweenNeighbours) {
  const std::vector<double> values = {1, 2, 3, 4};
  EXPECT_DOUBLE_EQ(Quantile(values, 0), 1);
  EXPECT_DOUBLE_EQ(Quantile(values, 0.5), 2.5);
  EXPECT_DOUBLE_EQ(Quantile(values, 0.9), 3.7);
  EXPECT_DOUBLE_EQ(Quantile(values, 1), 4);
  EXPECT_DOUBLE_EQ(Quantile({7}, 0.99), 7);
  EXPECT_DOUBLE_EQ(Quantile({}, 0.5), 0);
}

TEST(HistogramTest, QuantilesAreWithinOnePercentOfTheExactOnes) {
  std::mt19937_64 random(3);
  std::lognormal_distribution<double> draw(-4, 1.5);
  Histogram histogram;
  std::vector<double> values(20'000);
  for (double& value : values) histogram.Add(value = draw(random));
  std::sort(values.begin(), values.end());
  for (const double q : {0.01, 0.5, 0.9, 0.99, 0.999})
    EXPECT_NEAR(histogram.Quantile(q) / Quantile(values, q), 1, 0.01) << q;
  EXPECT_DOUBLE_EQ(histogram.max(), values.back());
  EXPECT_EQ(histogram.count(), values.size());
}

TEST(HistogramTest, HoldsAnything) {
  Histogram histogram;
  EXPECT_EQ(histogram.Quantile(0.5), 0);
  histogram.Add(0);
  histogram.Add(1e9);
  EXPECT_EQ(histogram.count(), 2);
  EXPECT_LE(histogram.Quantile(0), 2e-6);
  EXPECT_LE(histogram.Quantile(1), 1e9);
}

TEST(CollectorTest, TimesCountFromWhenARequestWasDue) {
  Collector collector;
  collector.Add(Answered(10.0, {10.1, 10.2, 10.4}, 10.4));
  collector.Add(Answered(11.0, {11.3}, 11.3));
  const Figures figures = collector.Make(At(10), 0);
  EXPECT_EQ(figures.answered, 2);
  EXPECT_NEAR(figures.seconds, 1.3, 1e-9);
  EXPECT_NEAR(figures.first_token.p50, 0.2, 1e-9);
  EXPECT_NEAR(figures.first_token.max, 0.3, 1e-9);
  EXPECT_NEAR(figures.end_to_end.max, 0.4, 1e-9);
  EXPECT_EQ(figures.token_gap.count, 2);
  EXPECT_NEAR(figures.token_gap.mean, 0.15, 1e-6);
  EXPECT_EQ(figures.per_token.count, 1);  // a single token has no next one
  EXPECT_NEAR(figures.per_token.p50, 0.15, 1e-9);
  EXPECT_DOUBLE_EQ(figures.CachedRatio(), 0.75);
  EXPECT_NEAR(figures.PerSecond(figures.answered), 2 / 1.3, 1e-9);
}

TEST(CollectorTest, FailuresCountByCodeAndNotAsAnswers) {
  Collector collector;
  collector.Add(Answered(0, {0.1}, 0.1));
  collector.Add(Failed(0, 0.2, "UNAVAILABLE", false));
  collector.Add(Failed(0, 0.3, "UNAVAILABLE", true));
  collector.Add(Failed(0, 0.4, "503", false));
  const Figures figures = collector.Make(At(0), 5);
  EXPECT_EQ(figures.answered, 1);
  EXPECT_EQ(figures.failed, 3);
  EXPECT_EQ(figures.not_sent, 5);
  EXPECT_EQ(figures.errors.at("UNAVAILABLE").count, 2);
  EXPECT_EQ(figures.errors.at("UNAVAILABLE").after_text, 1);
  EXPECT_EQ(figures.errors.at("503").example, "why 503");
  EXPECT_EQ(figures.prompt_tokens, 100);
  EXPECT_EQ(figures.end_to_end.count, 1);
  const std::string table = Table({.model = "m"}, figures);
  EXPECT_THAT(table, HasSubstr("1 of 4 requests answered"));
  EXPECT_THAT(table, HasSubstr("2 x UNAVAILABLE, 1 of them in the middle of an answer: why UNAVAILABLE"));
  EXPECT_THAT(table, HasSubstr("5 more were due but not sent"));
}

TEST(CollectorTest, ReplicasAndTheirImbalance) {
  Collector collector;
  for (const char* name : {"a", "b", "a", "a", "b", "c"}) {
    Sample sample = Answered(0, {0.1}, 0.1);
    sample.replica = name;
    collector.Add(std::move(sample));
  }
  const Figures figures = collector.Make(At(0), 0);
  EXPECT_THAT(figures.replicas,
              testing::ElementsAre(std::pair("a", 3), std::pair("b", 2), std::pair("c", 1)));
  EXPECT_DOUBLE_EQ(figures.Imbalance(), 1.5);
  EXPECT_THAT(Table({}, figures), HasSubstr("the busiest had 1.50 x the mean"));
}

TEST(CollectorTest, TheTimelineHoldsEveryTokenAndEveryEnd) {
  Collector collector;
  collector.Add(Answered(0, {0.05, 4.95}, 4.95));
  for (int i = 0; i < 10; ++i) collector.Add(Answered(0, {1.0, 3.0, 3.0}, 3.0));
  collector.Add(Failed(0, 2.0, "503", false));
  const Timeline line = collector.Make(At(0), 0).timeline;
  const auto sum = [&](const std::vector<double>& rates) {
    return std::accumulate(rates.begin(), rates.end(), 0.0) * line.bin_seconds;
  };
  EXPECT_LE(line.tokens.size(), 75);
  EXPECT_NEAR(sum(line.tokens), 32, 1e-9);
  EXPECT_NEAR(sum(line.answers), 11, 1e-9);
  EXPECT_NEAR(sum(line.failures), 1, 1e-9);
  // Between 1 s and 3 s the ten generate 15 tokens a second, and the first one 2 in 4.9 s.
  EXPECT_NEAR(line.tokens[static_cast<size_t>(2.0 / line.bin_seconds)], 15 + 2 / 4.9, 1e-6);
}

TEST(CollectorTest, NothingAtAllGivesAReport) {
  const Figures figures = Collector().Make(At(0), 0);
  EXPECT_EQ(figures.PerSecond(3), 0);
  EXPECT_THAT(Table({}, figures), Not(HasSubstr("nan")));
  EXPECT_EQ(ToJson(BenchRun{}, figures)["first_token_ms"]["count"], 0);
}

TEST(ReportTest, NumbersForPeople) {
  EXPECT_EQ(Thousands(0), "0");
  EXPECT_EQ(Thousands(999), "999");
  EXPECT_EQ(Thousands(1000), "1,000");
  EXPECT_EQ(Thousands(-1234567), "-1,234,567");
  EXPECT_EQ(Thousands(-123), "-123");
  EXPECT_EQ(ShowMilliseconds(0.004271), "4.27");
  EXPECT_EQ(ShowMilliseconds(0.04271), "42.7");
  EXPECT_EQ(ShowMilliseconds(0.4271), "427");
  EXPECT_EQ(ShowMilliseconds(4.271), "4,271");
  EXPECT_EQ(ShowMilliseconds(0.009999), "10.0");
}

}  // namespace
}  // namespace t6::cli
