// t6 models and t6 health.
#include <fmt/format.h>

#include <cstdio>
#include <nlohmann/json.hpp>

#include "clients/cli/commands.h"
#include "clients/cli/interrupt.h"

namespace t6::cli {

ExitCode RunModels(Connection& connection, const Options& options) {
  if (!connection.Reach()) return kUnreachable;
  grpc::ClientContext context;
  Interruptible interruptible(&context);
  v1::ListModelsResponse response;
  grpc::Status status = connection.models->List(&context, {}, &response);
  if (!status.ok()) return TakeInterrupted() ? kInterrupted : connection.Explain(status);
  if (options.json) {
    auto models = nlohmann::ordered_json::array();
    for (const v1::Model& model : response.models()) {
      models.push_back({{"id", model.id()},
                        {"variant", model.variant()},
                        {"n_parameters", model.n_parameters()},
                        {"vocab_size", model.vocab_size()},
                        {"max_model_len", model.max_model_len()},
                        {"device", model.device()}});
    }
    fmt::print("{}\n", models.dump(2));
    return kDone;
  }
  for (const v1::Model& model : response.models()) {
    fmt::print("{}\n  {}, {:.1f} M parameters, vocabulary {}, context {} tokens\n  on {}\n", model.id(),
               model.variant(), static_cast<double>(model.n_parameters()) / 1e6, model.vocab_size(),
               model.max_model_len(), model.device());
  }
  return kDone;
}

ExitCode RunHealth(Connection& connection, const Options& options) {
  using grpc::health::v1::HealthCheckResponse;
  if (!connection.Reach()) return kUnreachable;
  grpc::ClientContext context;
  Interruptible interruptible(&context);
  grpc::health::v1::HealthCheckRequest request;
  if (!options.arguments.empty()) request.set_service(options.arguments[0]);
  HealthCheckResponse response;
  grpc::Status status = connection.health->Check(&context, request, &response);
  if (status.error_code() == grpc::StatusCode::NOT_FOUND) {
    fmt::print(stderr, "t6: the server has no service '{}'\n", request.service());
    return kFailed;
  }
  if (!status.ok()) return TakeInterrupted() ? kInterrupted : connection.Explain(status);
  const std::string& name = HealthCheckResponse::ServingStatus_Name(response.status());
  if (options.json) {
    nlohmann::ordered_json json = {{"service", request.service()}, {"status", name}};
    fmt::print("{}\n", json.dump());
  } else {
    fmt::print("{}\n", name);
  }
  return response.status() == HealthCheckResponse::SERVING ? kDone : kFailed;
}

}  // namespace t6::cli
