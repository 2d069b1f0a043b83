// Owns the Prometheus registry: the engine's metrics and what only the server knows. Thread-safe.
#pragma once

#include <prometheus/counter.h>
#include <prometheus/gauge.h>
#include <prometheus/registry.h>

#include <string>
#include <string_view>

#include "engine/base/metrics.h"
#include "engine/base/status.h"

namespace t6::server {

class Metrics {
 public:
  explicit Metrics(const std::string& model_name);

  EngineMetrics* engine() { return &engine_; }
  // Counts one request of the text API in t6:requests_total by its outcome ("OK", "INVALID_ARGUMENT", ...).
  void CountRequest(std::string_view transport, absl::StatusCode code);
  void SetReady(bool ready);
  // Prometheus text format 0.0.4.
  std::string Text() const;

 private:
  prometheus::Registry registry_;
  EngineMetrics engine_;
  prometheus::Family<prometheus::Counter>& requests_;  // t6:requests_total{transport,code}
  prometheus::Gauge& ready_;                           // t6:ready
  const std::string model_name_;
};

}  // namespace t6::server
