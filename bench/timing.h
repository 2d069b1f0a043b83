// What benchmarks count in.
#pragma once

#include <algorithm>
#include <chrono>
#include <vector>

#include "engine/base/check.h"

namespace t6::bench {

inline double Seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

inline double Median(std::vector<double> values) {
  T6_CHECK(!values.empty());
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

}  // namespace t6::bench
