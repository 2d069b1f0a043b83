// How loaded the daemon is, for balancers: gRPC's ORCA reports and HTTP's endpoint-load-metrics. LoadReport
// is plain data; LoadMeter counts requests over the last seconds and is thread-safe.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "engine/base/clock.h"
#include "engine/base/status.h"
#include "engine/config.h"

namespace t6::server {

struct LoadReport {
  // What is asked for over what there is, of slots or of pages, whichever is scarcer; above 1 when requests
  // wait.
  double application_utilization = 0;
  double requests_per_second = 0;
  double errors_per_second = 0;  // those that are the server's fault
  // Under the names that vLLM's reports have.
  std::vector<std::pair<const char*, double>> named = {};
};

class LoadMeter {
 public:
  explicit LoadMeter(const Clock* clock = RealClock::Get());

  // A request that was answered or refused.
  void Count(absl::StatusCode code) ABSL_LOCKS_EXCLUDED(mutex_);
  // `max_num_seqs`: sequences that run at once at most.
  LoadReport Report(const EngineStats& stats, int max_num_seqs) const ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  static constexpr int64_t kWindow = 10;  // seconds, the one that runs among them
  struct Second {
    int64_t second = -1;  // since 1970
    int requests = 0;
    int errors = 0;
  };

  const Clock* const clock_;
  const absl::Time start_;
  mutable absl::Mutex mutex_;
  std::array<Second, kWindow> seconds_ ABSL_GUARDED_BY(mutex_);  // by second modulo kWindow
};

// The value of the header endpoint-load-metrics in the format that the client's endpoint-load-metrics-format
// names (TEXT or JSON, in any case); nullopt: another format, or none.
std::optional<std::string> LoadHeader(const LoadReport& report, std::string_view format);

}  // namespace t6::server
