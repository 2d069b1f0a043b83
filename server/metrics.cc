#include "server/metrics.h"

#include <prometheus/text_serializer.h>
#include <sys/resource.h>
#include <unistd.h>

#include <cstdint>
#include <fstream>

#include "absl/status/status.h"
#include "absl/time/clock.h"

namespace t6::server {
namespace {

prometheus::Gauge& ProcessGauge(prometheus::Registry& registry, const char* name, const char* help,
                                const std::string& model_name) {
  return prometheus::BuildGauge().Name(name).Help(help).Register(registry).Add({{"model_name", model_name}});
}

double Seconds(const timeval& time) {
  return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_usec) / 1e6;
}

}  // namespace

Metrics::Metrics(const std::string& model_name)
    : engine_(registry_, model_name),
      requests_(prometheus::BuildCounter()
                    .Name("t6:requests_total")
                    .Help("Requests answered, by transport and gRPC status code")
                    .Register(registry_)),
      ready_(prometheus::BuildGauge()
                 .Name("t6:ready")
                 .Help("1 while new requests are wanted")
                 .Register(registry_)
                 .Add({{"model_name", model_name}})),
      start_time_(ProcessGauge(registry_, "process_start_time_seconds", "Start of the process, since 1970",
                               model_name)),
      resident_bytes_(
          ProcessGauge(registry_, "process_resident_memory_bytes", "Resident memory", model_name)),
      cpu_seconds_(prometheus::BuildCounter()
                       .Name("process_cpu_seconds_total")
                       .Help("Processor time, user and system")
                       .Register(registry_)
                       .Add({{"model_name", model_name}})),
      model_name_(model_name) {
  start_time_.Set(absl::ToDoubleSeconds(absl::Now() - absl::UnixEpoch()));
  prometheus::BuildGauge()
      .Name("t6:build_info")
      .Help("1; the version is a label")
      .Register(registry_)
      .Add({{"model_name", model_name}, {"version", T6_VERSION}})
      .Set(1);
  for (const char* transport : {"grpc", "http"}) {
    requests_.Add({{"model_name", model_name_}, {"transport", transport}, {"code", "OK"}});
  }
}

void Metrics::CountRequest(std::string_view transport, absl::StatusCode code) {
  requests_
      .Add({{"model_name", model_name_},
            {"transport", std::string(transport)},
            {"code", absl::StatusCodeToString(code)}})
      .Increment();
}

void Metrics::SetReady(bool ready) { ready_.Set(ready ? 1 : 0); }

std::string Metrics::Text() const {
  absl::MutexLock lock(&scrape_mutex_);
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  cpu_seconds_.Increment(Seconds(usage.ru_utime) + Seconds(usage.ru_stime) - cpu_seconds_.Value());
  int64_t all_pages = 0, resident_pages = 0;
  if (std::ifstream("/proc/self/statm") >> all_pages >> resident_pages) {
    resident_bytes_.Set(static_cast<double>(resident_pages) * static_cast<double>(sysconf(_SC_PAGESIZE)));
  }
  return prometheus::TextSerializer().Serialize(registry_.Collect());
}

}  // namespace t6::server
