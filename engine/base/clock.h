// Time as a dependency, so that tests can move it. Thread-safe.
#pragma once

#include "absl/time/clock.h"
#include "absl/time/time.h"

namespace t6 {

class Clock {
 public:
  virtual ~Clock() = default;
  virtual absl::Time Now() const = 0;
};

class RealClock final : public Clock {
 public:
  absl::Time Now() const override { return absl::Now(); }
  static const RealClock* Get() {
    static const RealClock clock;
    return &clock;
  }
};

}  // namespace t6
