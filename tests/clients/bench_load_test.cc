// The driver, with a target that does as told: how many at once, when, and when it ends.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <boost/asio/post.hpp>
#include <set>
#include <thread>

#include "clients/cli/bench/load.h"

namespace t6::cli {
namespace {

Workload TwoPrompts() {
  return Workload({DocumentPrompts("i", "a", 0).Ask("q"), DocumentPrompts("i", "b", 1).Ask("q")}, 1);
}

// Holds requests until told to answer; counts.
class FakeTarget : public Target {
 public:
  explicit FakeTarget(boost::asio::io_context& io) : io_(io) {}

  std::string Describe() const override { return "fake"; }
  std::string Connect(std::string&) override { return ""; }
  std::string CountTokens(const std::string&, int&) override { return ""; }
  void Send(const BenchPrompt&, BenchClock::time_point due, std::function<void(Sample)> done) override {
    dues.push_back(due);
    running_.push_back(std::move(done));
    most_at_once = std::max(most_at_once, running_.size());
    if (answer_at_once) boost::asio::post(io_, [this] { AnswerOne(error); });
  }
  void CancelAll() override {
    cancelled = true;
    while (!running_.empty()) AnswerOne("CANCELLED");
  }
  void AnswerOne(const std::string& with_error = "") {
    if (running_.empty()) return;
    const auto done = std::move(running_.front());
    running_.erase(running_.begin());
    Sample sample;
    sample.error = with_error;
    done(std::move(sample));
  }

  bool answer_at_once = true, cancelled = false;
  std::string error;  // of the answers at once
  size_t most_at_once = 0;
  std::vector<BenchClock::time_point> dues;

 private:
  boost::asio::io_context& io_;
  std::vector<std::function<void(Sample)>> running_;
};

struct World {
  boost::asio::io_context io{1};
  FakeTarget target{io};
  Workload workload = TwoPrompts();
  std::vector<Sample> samples;
  Load::OnSample keep = [this](Sample sample) { samples.push_back(std::move(sample)); };
};

TEST(LoadTest, AClosedLoopKeepsItsClientsBusyAndEndsAfterItsRequests) {
  World world;
  Load load(world.io, world.target, world.workload, {.concurrency = 3, .requests = 20}, world.keep);
  load.Run();
  EXPECT_EQ(world.samples.size(), 20);
  EXPECT_EQ(load.sent(), 20);
  EXPECT_EQ(world.target.most_at_once, 3);
  EXPECT_EQ(load.in_flight(), 0);
}

TEST(LoadTest, MoreClientsThanRequests) {
  World world;
  Load load(world.io, world.target, world.workload, {.concurrency = 100, .requests = 5}, world.keep);
  load.Run();
  EXPECT_EQ(world.samples.size(), 5);
}

TEST(LoadTest, AClosedLoopEndsAfterItsDuration) {
  World world;
  Load load(world.io, world.target, world.workload,
            {.concurrency = 2, .requests = INT64_MAX, .duration = 0.05}, world.keep);
  load.Run();
  EXPECT_GE(world.samples.size(), 2);
  EXPECT_EQ(world.samples.size(), static_cast<size_t>(load.sent()));
}

TEST(LoadTest, AnOpenLoopSendsWhenRequestsAreDueWhoeverIsAnswered) {
  World world;
  world.target.answer_at_once = false;
  Load load(world.io, world.target, world.workload, {.rate = 5000, .requests = 40, .seed = 9}, world.keep);
  boost::asio::steady_timer answers(world.io);
  // Nobody is answered until all were sent.
  std::function<void()> poll = [&] {
    if (load.sent() < 40) {
      answers.expires_after(std::chrono::milliseconds(1));
      return answers.async_wait([&](boost::system::error_code) { poll(); });
    }
    for (int i = 0; i < 40; ++i) world.target.AnswerOne();
  };
  boost::asio::post(world.io, poll);
  load.Run();
  ASSERT_EQ(world.samples.size(), 40);
  PoissonArrivals arrivals(5000, 9);
  for (const auto due : world.target.dues)
    EXPECT_NEAR(std::chrono::duration<double>(due - load.started()).count(), arrivals.Next(), 1e-6);
}

// However late the machine is, as many are sent as were due: the seed decides.
TEST(LoadTest, AnOpenLoopSendsAllThatWasDueWithinItsDuration) {
  constexpr double kRate = 1000, kDuration = 0.05;
  PoissonArrivals arrivals(kRate, 3);
  int64_t due = 0;
  while (arrivals.Next() < kDuration) ++due;
  World world;
  Load load(world.io, world.target, world.workload,
            {.rate = kRate, .requests = INT64_MAX, .duration = kDuration, .seed = 3}, world.keep);
  boost::asio::post(world.io, [] { std::this_thread::sleep_for(std::chrono::milliseconds(100)); });
  load.Run();
  EXPECT_EQ(load.sent(), due);
  EXPECT_EQ(world.samples.size(), due);
  EXPECT_GE(BenchClock::now() - load.started(), std::chrono::milliseconds(50)) << "no answer ends it sooner";
}

TEST(LoadTest, AnOpenLoopCountsWhatItMayNotSend) {
  World world;
  world.target.answer_at_once = false;
  Load load(world.io, world.target, world.workload, {.rate = 10'000, .max_in_flight = 4, .requests = 30},
            world.keep);
  boost::asio::steady_timer later(world.io, std::chrono::milliseconds(1));
  std::function<void(boost::system::error_code)> poll = [&](boost::system::error_code) {
    if (load.sent() + load.not_sent() == 30) return world.target.CancelAll();
    later.expires_after(std::chrono::milliseconds(1));
    later.async_wait(poll);
  };
  later.async_wait(poll);
  load.Run();
  EXPECT_EQ(load.sent(), 4);
  EXPECT_EQ(load.not_sent(), 26);
}

TEST(LoadTest, StopFromAnotherThreadCancelsWhatRuns) {
  World world;
  world.target.answer_at_once = false;
  Load load(world.io, world.target, world.workload, {.concurrency = 3, .requests = 100}, world.keep);
  std::thread stopper([&] { load.Stop(); });
  load.Run();
  stopper.join();
  EXPECT_TRUE(world.target.cancelled);
  for (const Sample& sample : world.samples) EXPECT_EQ(sample.error, "CANCELLED");
  EXPECT_LE(world.samples.size(), 3);
}

TEST(LoadTest, AFailedClientPausesInsteadOfHammering) {
  World world;
  world.target.error = "503";
  Load load(world.io, world.target, world.workload,
            {.concurrency = 1, .requests = 1'000'000, .duration = 0.12}, world.keep);
  load.Run();
  EXPECT_GE(world.samples.size(), 1);
  EXPECT_LE(world.samples.size(), 3);
}

TEST(PoissonArrivalsTest, GapsHaveTheMeanAndTheSpreadOfAnExponential) {
  PoissonArrivals arrivals(50, 7);
  constexpr int kCount = 100'000;
  double last = 0, sum = 0, squares = 0;
  for (int i = 0; i < kCount; ++i) {
    const double at = arrivals.Next(), gap = at - last;
    ASSERT_GE(gap, 0);
    sum += gap;
    squares += gap * gap;
    last = at;
  }
  const double mean = sum / kCount, deviation = std::sqrt(squares / kCount - mean * mean);
  // 5 standard errors of a mean of 100,000 draws.
  EXPECT_NEAR(mean * 50, 1, 5 / std::sqrt(kCount));
  EXPECT_NEAR(deviation / mean, 1, 0.03);
}

TEST(PoissonArrivalsTest, TheSeedDecides) {
  PoissonArrivals one(10, 1), again(10, 1), other(10, 2);
  const double first = one.Next();
  EXPECT_EQ(first, again.Next());
  EXPECT_NE(first, other.Next());
}

}  // namespace
}  // namespace t6::cli
