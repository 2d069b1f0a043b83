// t6 models and t6 health.
#include <fmt/format.h>

#include <cstdio>
#include <nlohmann/json.hpp>

#include "clients/cli/commands.h"
#include "clients/cli/interrupt.h"

namespace t6::cli {

ExitCode RunModels(Connection& connection, const Options& options) {
  if (!connection.Reach()) return kUnreachable;
  Interruptible interruptible;
  const auto listed = connection.client.Models({.stop = interruptible.token()});
  if (!listed.ok()) return TakeInterrupted() ? kInterrupted : connection.Explain(listed.status());
  if (options.json) {
    auto models = nlohmann::ordered_json::array();
    for (const v1::Model& model : *listed) {
      models.push_back({{"id", model.id()},
                        {"variant", model.variant()},
                        {"n_parameters", model.n_parameters()},
                        {"vocab_size", model.vocab_size()},
                        {"max_model_len", model.max_model_len()},
                        {"device", model.device()},
                        {"dtype", model.dtype()},
                        {"cache_dtype", model.cache_dtype()}});
    }
    fmt::print("{}\n", models.dump(2));
    return kDone;
  }
  for (const v1::Model& model : *listed) {
    fmt::print(
        "{}\n  {}, {:.1f} M parameters, vocabulary {}, context {} tokens\n  on {}, {}, factors in {}\n",
        model.id(), model.variant(), static_cast<double>(model.n_parameters()) / 1e6, model.vocab_size(),
        model.max_model_len(), model.device(), model.dtype(), model.cache_dtype());
  }
  return kDone;
}

ExitCode RunHealth(Connection& connection, const Options& options) {
  if (!connection.Reach()) return kUnreachable;
  const std::string service = options.arguments.empty() ? "" : options.arguments[0];
  Interruptible interruptible;
  const auto serving = connection.client.IsServing(service, {.stop = interruptible.token()});
  if (absl::IsNotFound(serving.status())) {
    fmt::print(stderr, "t6: the server has no service '{}'\n", service);
    return kFailed;
  }
  if (!serving.ok()) return TakeInterrupted() ? kInterrupted : connection.Explain(serving.status());
  const char* name = *serving ? "SERVING" : "NOT_SERVING";
  if (options.json) {
    nlohmann::ordered_json json = {{"service", service}, {"status", name}};
    fmt::print("{}\n", json.dump());
  } else {
    fmt::print("{}\n", name);
  }
  return *serving ? kDone : kFailed;
}

}  // namespace t6::cli
