// Samples to figures. Times are seconds. Pure functions besides Collector, which is not thread-safe.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "clients/cli/bench/histogram.h"
#include "clients/cli/bench/target.h"

namespace t6::cli {

// Of sorted values, between neighbours in proportion, as numpy does. q in [0, 1]; 0 when there are none.
double Quantile(const std::vector<double>& sorted, double q);

struct Distribution {
  uint64_t count = 0;
  double mean = 0, p50 = 0, p90 = 0, p99 = 0, max = 0;
};
Distribution Summarise(const std::vector<double>& sorted);
Distribution Summarise(const Histogram& histogram);

// What happened when: equal bins from the first request to the last answer.
struct Timeline {
  double bin_seconds = 0;
  std::vector<double> tokens;             // generated, a second; a request's tokens are spread over its time
  std::vector<double> answers, failures;  // requests that ended, a second
};

struct ErrorCount {
  int64_t count = 0;
  int64_t after_text = 0;  // of them, how many had given a part of the answer
  std::string example;     // what the first of them said
};

struct Figures {
  double seconds = 0;  // from the start to the last end
  int64_t answered = 0, failed = 0, not_sent = 0;
  int64_t prompt_tokens = 0, cached_tokens = 0, completion_tokens = 0;
  Distribution first_token, token_gap, per_token, end_to_end;  // of what was answered
  std::vector<double> first_token_sorted, end_to_end_sorted;
  Timeline timeline;
  std::map<std::string, ErrorCount> errors;  // by code
  std::map<std::string, int64_t> replicas;   // answers by replica; empty when none says its name

  double PerSecond(int64_t n) const { return seconds > 0 ? static_cast<double>(n) / seconds : 0; }
  double CachedRatio() const {
    return prompt_tokens > 0 ? static_cast<double>(cached_tokens) / static_cast<double>(prompt_tokens) : 0;
  }
  // The busiest replica's answers over the mean; 0 without replicas.
  double Imbalance() const;
};

// Keeps samples until the figures are made of them; the gaps between pieces only as a histogram.
class Collector {
 public:
  void Add(Sample sample);
  Figures Make(BenchClock::time_point started, int64_t not_sent) const;
  const std::vector<Sample>& samples() const { return samples_; }
  int64_t failed() const { return failed_; }
  const Histogram& first_tokens() const { return first_tokens_; }  // so far, for progress

 private:
  std::vector<Sample> samples_;
  Histogram gaps_, first_tokens_;
  int64_t failed_ = 0;
};

}  // namespace t6::cli
