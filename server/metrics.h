// Owns the Prometheus registry: the engine's metrics, what only the server knows, and the process's own under
// the names that every Prometheus client library gives them. Thread-safe.
#pragma once

#include <prometheus/counter.h>
#include <prometheus/gauge.h>
#include <prometheus/registry.h>

#include <string>
#include <string_view>

#include "absl/synchronization/mutex.h"
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
  // Prometheus text format 0.0.4. Reads the process's figures first.
  std::string Text() const;

 private:
  prometheus::Registry registry_;
  EngineMetrics engine_;
  prometheus::Family<prometheus::Counter>& requests_;  // t6:requests_total{transport,code}
  prometheus::Gauge& ready_;                           // t6:ready
  prometheus::Gauge& start_time_;                      // process_start_time_seconds
  prometheus::Gauge& resident_bytes_;                  // process_resident_memory_bytes
  prometheus::Counter& cpu_seconds_;                   // process_cpu_seconds_total
  mutable absl::Mutex scrape_mutex_;                   // one reading of the process's figures at a time
  const std::string model_name_;
};

}  // namespace t6::server
