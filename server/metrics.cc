#include "server/metrics.h"

#include <prometheus/text_serializer.h>

#include "absl/status/status.h"

namespace t6::server {

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
      model_name_(model_name) {
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

std::string Metrics::Text() const { return prometheus::TextSerializer().Serialize(registry_.Collect()); }

}  // namespace t6::server
