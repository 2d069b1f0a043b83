#include "server/load_report.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "absl/strings/match.h"

namespace t6::server {
namespace {

// What another replica might have answered. A client's mistakes and its cancellations would fail anywhere.
bool IsServersFault(absl::StatusCode code) {
  switch (code) {
    case absl::StatusCode::kUnknown:
    case absl::StatusCode::kResourceExhausted:
    case absl::StatusCode::kInternal:
    case absl::StatusCode::kUnavailable:
    case absl::StatusCode::kDataLoss:
      return true;
    default:
      return false;
  }
}

double Share(int part, int whole) { return whole > 0 ? static_cast<double>(part) / whole : 0; }

double Utilization(const EngineStats& stats, int max_num_seqs) {
  const double wanted = stats.running + stats.waiting;
  const double slots = max_num_seqs > 0 ? wanted / max_num_seqs : 0;
  // Those that wait would need as many pages each as those that run.
  const double pages = Share(stats.pages_held, stats.pages_total) * (wanted / std::max(stats.running, 1));
  return stats.running > 0 ? std::max(slots, pages) : slots;
}

}  // namespace

LoadMeter::LoadMeter(const Clock* clock) : clock_(clock), start_(clock->Now()) {}

void LoadMeter::Count(absl::StatusCode code) {
  const int64_t now = absl::ToUnixSeconds(clock_->Now());
  absl::MutexLock lock(&mutex_);
  Second& second = seconds_[static_cast<size_t>(now) % kWindow];
  if (second.second != now) second = {now, 0, 0};
  ++second.requests;
  if (IsServersFault(code)) ++second.errors;
}

LoadReport LoadMeter::Report(const EngineStats& stats, int max_num_seqs) const {
  const absl::Time now = clock_->Now();
  const int64_t first = absl::ToUnixSeconds(now) - kWindow + 1;
  int requests = 0, errors = 0;
  {
    absl::MutexLock lock(&mutex_);
    for (const Second& second : seconds_) {
      if (second.second < first) continue;
      requests += second.requests;
      errors += second.errors;
    }
  }
  // A daemon younger than the window has counted for as long as it lives; the first second counts as a whole.
  const double seen = absl::ToDoubleSeconds(now - std::max(start_, absl::FromUnixSeconds(first)));
  const double seconds = std::max(seen, 1.0);
  return {.application_utilization = Utilization(stats, max_num_seqs),
          .requests_per_second = requests / seconds,
          .errors_per_second = errors / seconds,
          .named = {{"kv_cache_usage_perc", Share(stats.pages_held, stats.pages_total)},
                    {"num_requests_running", stats.running},
                    {"num_requests_waiting", stats.waiting}}};
}

std::optional<std::string> LoadHeader(const LoadReport& report, std::string_view format) {
  const absl::string_view name(format.data(), format.size());
  if (absl::EqualsIgnoreCase(name, "TEXT")) {
    std::string text =
        fmt::format("TEXT application_utilization={:.6g}, rps_fractional={:.6g}, eps={:.6g}",
                    report.application_utilization, report.requests_per_second, report.errors_per_second);
    for (const auto& [metric, value] : report.named) {
      text += fmt::format(", named_metrics.{}={:.6g}", metric, value);
    }
    return text;
  }
  if (absl::EqualsIgnoreCase(name, "JSON")) {
    nlohmann::ordered_json json = {{"application_utilization", report.application_utilization},
                                   {"rps_fractional", report.requests_per_second},
                                   {"eps", report.errors_per_second}};
    for (const auto& [metric, value] : report.named) json["named_metrics"][metric] = value;
    return "JSON " + json.dump();
  }
  return std::nullopt;
}

}  // namespace t6::server
