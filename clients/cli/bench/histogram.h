// Many times in little memory: counts in buckets 1 % wide, from a microsecond to three hours. Quantiles are
// exact to half a per cent. Not thread-safe.
#pragma once

#include <cstdint>
#include <vector>

namespace t6::cli {

class Histogram {
 public:
  Histogram();
  void Add(double seconds);
  uint64_t count() const { return count_; }
  double mean() const { return count_ == 0 ? 0 : sum_ / static_cast<double>(count_); }
  double max() const { return max_; }
  // q in [0, 1]; 0 when empty.
  double Quantile(double q) const;

 private:
  std::vector<uint64_t> buckets_;
  uint64_t count_ = 0;
  double sum_ = 0, max_ = 0;
};

}  // namespace t6::cli
