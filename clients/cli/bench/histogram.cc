#include "clients/cli/bench/histogram.h"

#include <algorithm>
#include <cmath>

namespace t6::cli {
namespace {

constexpr double kLowest = 1e-6, kHighest = 1e4, kGrowth = 1.01;

}  // namespace

Histogram::Histogram()
    : buckets_(static_cast<size_t>(std::ceil(std::log(kHighest / kLowest) / std::log(kGrowth))) + 1) {}

void Histogram::Add(double seconds) {
  const double at = std::log(std::max(seconds, kLowest) / kLowest) / std::log(kGrowth);
  ++buckets_[std::min(static_cast<size_t>(at), buckets_.size() - 1)];
  ++count_;
  sum_ += seconds;
  max_ = std::max(max_, seconds);
}

double Histogram::Quantile(double q) const {
  if (count_ == 0) return 0;
  const double rank = q * static_cast<double>(count_ - 1);
  uint64_t below = 0;
  for (size_t i = 0; i < buckets_.size(); ++i) {
    below += buckets_[i];
    // The bucket's middle, and nothing beyond what was seen.
    if (static_cast<double>(below) > rank)
      return std::min(kLowest * std::pow(kGrowth, static_cast<double>(i) + 0.5), max_);
  }
  return max_;
}

}  // namespace t6::cli
