#include "server/load_report.h"

#include <gtest/gtest.h>

namespace t6::server {
namespace {

class ManualClock final : public Clock {
 public:
  absl::Time now = absl::FromUnixSeconds(1000);
  absl::Time Now() const override { return now; }
};

class LoadMeterTest : public testing::Test {
 protected:
  LoadReport Report(const EngineStats& stats = {}) { return meter_.Report(stats, /*max_num_seqs=*/8); }
  void Count(int n, absl::StatusCode code = absl::StatusCode::kOk) {
    for (int i = 0; i < n; ++i) meter_.Count(code);
  }

  ManualClock clock_;
  LoadMeter meter_{&clock_};
};

TEST_F(LoadMeterTest, AnIdleServerHasNoLoad) {
  const LoadReport report = Report();
  EXPECT_EQ(report.application_utilization, 0);
  EXPECT_EQ(report.requests_per_second, 0);
  EXPECT_EQ(report.errors_per_second, 0);
}

TEST_F(LoadMeterTest, UtilizationIsTheScarcerOfSlotsAndPages) {
  const auto utilization = [this](const EngineStats& stats) { return Report(stats).application_utilization; };
  EXPECT_EQ(utilization({.running = 2, .pages_total = 100, .pages_held = 10}), 0.25);
  EXPECT_EQ(utilization({.running = 2, .pages_total = 100, .pages_held = 90}), 0.9);
  // Pages that only the prefix tree holds are free for whoever comes.
  EXPECT_EQ(utilization({.running = 2, .pages_total = 100, .pages_held = 10, .pages_cached = 90}), 0.25);
}

TEST_F(LoadMeterTest, WhoWaitsTakesItAboveOne) {
  const auto utilization = [this](const EngineStats& stats) { return Report(stats).application_utilization; };
  EXPECT_EQ(utilization({.running = 8, .waiting = 8, .pages_total = 100, .pages_held = 10}), 2);
  // Two fill the cache, and four wait for pages, not for slots.
  EXPECT_EQ(utilization({.running = 2, .waiting = 4, .pages_total = 100, .pages_held = 100}), 3);
  // Submitted, and not yet looked at.
  EXPECT_EQ(utilization({.waiting = 2, .pages_total = 100}), 0.25);
}

TEST_F(LoadMeterTest, RatesAreOfTheLastTenSeconds) {
  Count(30);
  EXPECT_EQ(Report().requests_per_second, 30) << "the first second counts as a whole";
  clock_.now += absl::Seconds(5);
  EXPECT_EQ(Report().requests_per_second, 6);
  clock_.now += absl::Seconds(100);
  EXPECT_EQ(Report().requests_per_second, 0);
  for (int second = 0; second < 25; ++second) {
    Count(7);
    clock_.now += absl::Seconds(1);
  }
  EXPECT_EQ(Report().requests_per_second, 7);
}

TEST_F(LoadMeterTest, OnlyTheServersErrorsCount) {
  Count(5, absl::StatusCode::kInvalidArgument);
  Count(5, absl::StatusCode::kCancelled);
  Count(5, absl::StatusCode::kDeadlineExceeded);
  EXPECT_EQ(Report().errors_per_second, 0);
  Count(3, absl::StatusCode::kResourceExhausted);
  Count(1, absl::StatusCode::kInternal);
  EXPECT_EQ(Report().errors_per_second, 4);
  EXPECT_EQ(Report().requests_per_second, 19);
}

TEST_F(LoadMeterTest, NamesAreThoseThatBalancersKnow) {
  const auto text =
      LoadHeader(Report({.running = 2, .waiting = 1, .pages_total = 100, .pages_held = 10}), "text");
  EXPECT_EQ(
      text.value_or("none"),
      "TEXT application_utilization=0.375, rps_fractional=0, eps=0, named_metrics.kv_cache_usage_perc=0.1, "
      "named_metrics.num_requests_running=2, named_metrics.num_requests_waiting=1");
  EXPECT_FALSE(LoadHeader(Report(), "BIN").has_value());
  EXPECT_FALSE(LoadHeader(Report(), "").has_value());
}

}  // namespace
}  // namespace t6::server
