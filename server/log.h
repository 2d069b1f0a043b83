// The daemon's log on stderr (spdlog), as text or as one JSON object per line, and its line per request.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "engine/base/status.h"
#include "server/config.h"

namespace t6::server {

// Sets spdlog's default logger; gRPC's own messages go there too. Once, before other threads start.
void InitLogging(const std::string& level, LogFormat format);

// What is worth knowing of one request once it is over.
struct RequestRecord {
  std::string id;
  std::string transport;  // "grpc" or "http"
  std::string endpoint;   // "chat" or "completion"
  std::string tenant;     // empty without API keys
  int64_t prompt_tokens = 0;
  int64_t cached_tokens = 0;
  int64_t completion_tokens = 0;
  std::optional<absl::Duration> queue;        // submission to admission
  std::optional<absl::Duration> first_token;  // submission to the first token
  absl::Duration total;
  std::string finish;  // "stop", "length"; of several choices the first; with an error its code
  Status status;
};

void LogRequest(const RequestRecord& record);

// Keeps what a stranger can cause from filling the log: says how many came since the last line, or 0 while
// the last line is too young for another. Thread-safe.
class LogThrottle {
 public:
  explicit LogThrottle(absl::Duration interval) : interval_(interval) {}
  int Count(absl::Time now);

 private:
  const absl::Duration interval_;
  absl::Mutex mutex_;
  absl::Time next_ ABSL_GUARDED_BY(mutex_) = absl::InfinitePast();
  int n_ ABSL_GUARDED_BY(mutex_) = 0;
};

}  // namespace t6::server
