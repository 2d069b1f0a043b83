// Sends the load and hands over what became of each request. One thread: the io_context's, which Run runs;
// what the target reports on other threads is posted there.
#pragma once

#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/steady_timer.hpp>
#include <cstdint>
#include <functional>
#include <optional>
#include <random>

#include "clients/cli/bench/target.h"
#include "clients/cli/bench/workload.h"

namespace t6::cli {

struct LoadPlan {
  int concurrency = 1;              // closed loop, unless there is a rate
  std::optional<double> rate = {};  // open loop: arrivals a second
  int max_in_flight = 1000;
  int64_t requests = 1;
  std::optional<double> duration = {};  // seconds
  uint64_t seed = 1;
};

// Moments of a Poisson process: exponential gaps with the mean 1/rate. Same seed, same moments.
class PoissonArrivals {
 public:
  PoissonArrivals(double rate, uint64_t seed) : rate_(rate), random_(seed) {}
  // Seconds after the start, each later than the last.
  double Next();

 private:
  const double rate_;
  std::mt19937_64 random_;
  double at_ = 0;
};

class Load {
 public:
  using OnSample = std::function<void(Sample)>;
  Load(boost::asio::io_context& io, Target& target, Workload& workload, const LoadPlan& plan,
       OnSample on_sample);

  // Blocking: until the last request ended.
  void Run();
  // Sends no more and cancels what runs. Any thread.
  void Stop();

  BenchClock::time_point started() const { return started_; }
  int64_t sent() const { return sent_; }
  int64_t not_sent() const { return not_sent_; }  // due, but max_in_flight was reached
  int in_flight() const { return in_flight_; }

 private:
  bool MayIssue() const;
  void Issue(BenchClock::time_point due);
  void OnDone(Sample sample);
  void ScheduleArrival();
  void EndIssuing();
  void EndIfOver();

  boost::asio::io_context& io_;
  Target& target_;
  Workload& workload_;
  const LoadPlan plan_;
  const OnSample on_sample_;
  PoissonArrivals arrivals_;
  boost::asio::steady_timer arrival_timer_, duration_timer_;
  std::optional<boost::asio::executor_work_guard<boost::asio::io_context::executor_type>> work_;
  BenchClock::time_point started_;
  bool arrivals_ended_ = false, duration_ended_ = false;
  int64_t sent_ = 0, not_sent_ = 0;
  int in_flight_ = 0;
  bool issuing_ = true;
};

}  // namespace t6::cli
