// The daemon's life: Starting (listening, model loads) -> Serving -> Grace (not ready, still served) ->
// Draining (new requests refused, running ones finish) -> Stopped. Owns executor, metrics, engine, handlers
// and both transports.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "engine/base/status.h"
#include "engine/engine.h"
#include "server/admin.h"
#include "server/config.h"

namespace t6::server {

using EngineFactory = std::function<StatusOr<std::unique_ptr<Engine>>(const EngineConfig&, EngineMetrics*)>;

class Daemon final : public Admin {
 public:
  Daemon(const ServerConfig& config, EngineFactory make_engine);
  ~Daemon() override;  // stops at once what still runs

  // Listens, then loads. The error says what is wrong with an address or the model.
  Status Start();
  // Serves until RequestStop, then drains. OK also when the deadline cut requests off; an error: the engine
  // failed.
  Status Wait();
  // The first call begins the end (with or without the grace), each further one cuts the wait that is on.
  // Thread-safe, not for signal handlers.
  void RequestStop(bool skip_grace);

  // Reads --api-key-file again, while the model loads too; an error leaves the keys as they were.
  // Thread-safe.
  Status ReloadKeys();

  int http_port() const;
  int grpc_port() const;
  int admin_port() const;  // 0: no port of its own

  ServingState state() const override;
  LoadReport Load() const override;
  std::string MetricsText() const override;
  std::string Version() const override;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace t6::server
