// The picture: valid XML whatever the figures, ticks that people can read.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "clients/cli/bench/plot.h"

namespace t6::cli {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::Not;

TEST(TicksTest, Linear) {
  EXPECT_THAT(LinearTicks(4, 4), ElementsAre(0, 1, 2, 3, 4));
  EXPECT_THAT(LinearTicks(1930, 4), ElementsAre(0, 500, 1000, 1500, 2000));
  EXPECT_THAT(LinearTicks(9, 4), ElementsAre(0, 5, 10));
  EXPECT_THAT(LinearTicks(0.3, 3), ElementsAre(0, testing::DoubleEq(0.1), testing::DoubleEq(0.2),
                                               testing::DoubleNear(0.3, 1e-12)));
}

TEST(TicksTest, LogarithmicOnesEncloseTheRange) {
  EXPECT_THAT(LogTicks(3, 40), ElementsAre(2, 5, 10, 20, 50));
  EXPECT_THAT(LogTicks(7, 7), ElementsAre(5, 10));
  EXPECT_THAT(LogTicks(10, 10), ElementsAre(10, 20));
  EXPECT_THAT(LogTicks(0.6, 3), ElementsAre(0.5, 1, 2, 5));
}

Figures SomeFigures() {
  Collector collector;
  const BenchClock::time_point start;
  for (int i = 1; i <= 50; ++i) {
    Sample sample;
    sample.due = start + std::chrono::milliseconds(10 * i);
    sample.OnText(sample.due + std::chrono::milliseconds(i));
    sample.OnText(sample.due + std::chrono::milliseconds(3 * i));
    sample.end = sample.last_text;
    sample.completion_tokens = 2;
    sample.prompt_tokens = 10;
    if (i == 50) sample.error = "503";
    collector.Add(std::move(sample));
  }
  return collector.Make(start, 0);
}

TEST(PlotTest, ShowsBothCurvesTheFailuresAndTheFigures) {
  const std::string svg = Plot({.model = "m<b>&", .target = "gRPC at x", .load = "8 clients"}, SomeFigures());
  EXPECT_THAT(svg, testing::StartsWith("<svg xmlns=\"http://www.w3.org/2000/svg\""));
  EXPECT_THAT(svg, testing::EndsWith("</svg>\n"));
  EXPECT_THAT(svg, HasSubstr("m&lt;b&gt;&amp;, 8 clients over gRPC"));
  EXPECT_THAT(svg, Not(HasSubstr("<b>")));
  EXPECT_THAT(svg, HasSubstr("prefers-color-scheme: dark"));
  EXPECT_THAT(svg, HasSubstr("first token: median 25.0 ms"));
  EXPECT_THAT(svg, HasSubstr("1 requests failed"));
  EXPECT_THAT(svg, Not(HasSubstr("nan")));
  EXPECT_THAT(svg, Not(HasSubstr("inf")));
}

TEST(PlotTest, NothingAnsweredIsAPictureToo) {
  const std::string svg = Plot({}, Collector().Make({}, 0));
  EXPECT_THAT(svg, HasSubstr("none was answered"));
  EXPECT_THAT(svg, Not(HasSubstr("nan")));
}

}  // namespace
}  // namespace t6::cli
