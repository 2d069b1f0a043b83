// How far a run is, on standard error: a bar drawn over itself on a terminal, else a plain line every five
// seconds.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>

namespace t6::cli {

class BenchProgress {
 public:
  struct State {
    int64_t done = 0, failed = 0;
    int in_flight = 0;
    double first_token_p50 = 0;  // seconds
  };

  // Whichever of the two ends first is shown.
  BenchProgress(std::string what, int64_t requests, std::optional<double> duration, bool quiet);
  // Clears the bar.
  ~BenchProgress();
  BenchProgress(const BenchProgress&) = delete;
  BenchProgress& operator=(const BenchProgress&) = delete;

  bool IsDue() const;
  void Show(const State& state);

 private:
  using Clock = std::chrono::steady_clock;
  const std::string what_;
  const int64_t requests_;
  const std::optional<double> duration_;
  const bool quiet_, terminal_;
  const Clock::time_point started_;
  Clock::time_point shown_;
};

}  // namespace t6::cli
