#include "server/log.h"

#include <grpc/support/log.h>
#include <spdlog/details/log_msg.h>
#include <spdlog/formatter.h>
#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>

#include <nlohmann/json.hpp>
#include <utility>

namespace t6::server {
namespace {

using nlohmann::ordered_json;

constexpr char kRequestLogger[] = "request";

double Milliseconds(absl::Duration d) { return std::round(absl::ToDoubleMilliseconds(d) * 1000) / 1000; }

std::string Timestamp(absl::Time time) {
  return absl::FormatTime("%Y-%m-%dT%H:%M:%E3SZ", time, absl::UTCTimeZone());
}

std::string Dump(const ordered_json& line) {
  return line.dump(-1, ' ', /*ensure_ascii=*/false, ordered_json::error_handler_t::replace);
}

// One JSON object per message, whatever the message contains.
class JsonFormatter final : public spdlog::formatter {
 public:
  void format(const spdlog::details::log_msg& message, spdlog::memory_buf_t& out) override {
    const auto level = spdlog::level::to_string_view(message.level);
    const std::string line =
        Dump({{"time", Timestamp(absl::FromChrono(message.time))},
              {"level", std::string(level.data(), level.size())},
              {"message", std::string(message.payload.data(), message.payload.size())}}) +
        "\n";
    out.append(line.data(), line.data() + line.size());
  }
  std::unique_ptr<spdlog::formatter> clone() const override { return std::make_unique<JsonFormatter>(); }
};

// gRPC reports a refused port, a dropped connection and the like: for whoever debugs, not for every operator.
void LogFromGrpc(gpr_log_func_args* args) { spdlog::debug("grpc: {}", args->message); }

ordered_json ToJson(const RequestRecord& r) {
  ordered_json line = {{"time", Timestamp(absl::Now())}, {"level", "info"},
                       {"message", "request"},           {"id", r.id},
                       {"transport", r.transport},       {"endpoint", r.endpoint}};
  if (!r.tenant.empty()) line["tenant"] = r.tenant;
  line.update({{"prompt_tokens", r.prompt_tokens},
               {"cached_tokens", r.cached_tokens},
               {"completion_tokens", r.completion_tokens}});
  if (r.queue) line["queue_ms"] = Milliseconds(*r.queue);
  if (r.first_token) line["first_token_ms"] = Milliseconds(*r.first_token);
  line["total_ms"] = Milliseconds(r.total);
  line["finish"] = r.finish;
  if (!r.status.ok()) line["error"] = std::string(MessageOf(r.status));
  return line;
}

std::string ToText(const RequestRecord& r) {
  std::string line = fmt::format("request {} {}/{}", r.id, r.transport, r.endpoint);
  if (!r.tenant.empty()) line += fmt::format(" tenant={}", r.tenant);
  line += fmt::format(" in={} cached={} out={}", r.prompt_tokens, r.cached_tokens, r.completion_tokens);
  if (r.queue) line += fmt::format(" queue={:.1f}ms", Milliseconds(*r.queue));
  if (r.first_token) line += fmt::format(" first={:.1f}ms", Milliseconds(*r.first_token));
  line += fmt::format(" total={:.1f}ms {}", Milliseconds(r.total), r.finish);
  // The message quotes what a client sent: one line, and no control characters for a terminal.
  if (!r.status.ok()) line += fmt::format(" {}", Dump(std::string(MessageOf(r.status))));
  return line;
}

}  // namespace

void InitLogging(const std::string& level, LogFormat format) {
  auto sink = std::make_shared<spdlog::sinks::stderr_sink_mt>();
  auto logger = std::make_shared<spdlog::logger>("t6d", sink);
  spdlog::drop(kRequestLogger);
  if (format == LogFormat::kJson) {
    logger->set_formatter(std::make_unique<JsonFormatter>());
    auto request =
        std::make_shared<spdlog::logger>(kRequestLogger, std::make_shared<spdlog::sinks::stderr_sink_mt>());
    request->set_pattern("%v");  // ToJson writes the whole line
    request->set_level(spdlog::level::from_str(level));
    spdlog::register_logger(request);
  } else {
    logger->set_pattern("%Y-%m-%d %H:%M:%S.%e %L %v");
  }
  logger->set_level(spdlog::level::from_str(level));
  spdlog::set_default_logger(logger);
  gpr_set_log_function(LogFromGrpc);
}

void LogRequest(const RequestRecord& record) {
  if (auto request = spdlog::get(kRequestLogger)) {
    request->info("{}", Dump(ToJson(record)));
  } else {
    spdlog::info("{}", ToText(record));
  }
}

int LogThrottle::Count(absl::Time now) {
  absl::MutexLock lock(&mutex_);
  ++n_;
  if (now < next_) return 0;
  next_ = now + interval_;
  return std::exchange(n_, 0);
}

}  // namespace t6::server
