// What the daemon says of itself: alive, ready, loaded, metrics, version. Shared by HTTP's admin routes and
// gRPC's health and load services. Thread-safe.
#pragma once

#include <functional>
#include <string>

#include "server/load_report.h"

namespace t6::server {

enum class ServingState { kStarting, kServing, kGrace, kDraining, kStopped, kFailed };

class Admin {
 public:
  virtual ~Admin() = default;
  virtual ServingState state() const = 0;
  // kServing: what /readyz answers 200 to. In kGrace (after SIGTERM) requests are still served, readiness is
  // false.
  bool ready() const { return state() == ServingState::kServing; }
  bool accepts_requests() const {
    return state() == ServingState::kServing || state() == ServingState::kGrace;
  }
  virtual LoadReport Load() const = 0;
  virtual std::string MetricsText() const = 0;  // Prometheus text format 0.0.4
  virtual std::string Version() const = 0;
};

}  // namespace t6::server
