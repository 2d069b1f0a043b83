// gRPC's transport: the services of t6.v1, health, load reports and reflection on one port. The handlers,
// admin and executor outlive it, and the executor runs as long as it does. Thread-safe.
#pragma once

#include <memory>

#include "absl/time/time.h"
#include "engine/base/status.h"
#include "server/admin.h"
#include "server/config.h"
#include "server/executor.h"
#include "server/handlers.h"

namespace t6::server {

class GrpcServer {
 public:
  // Listens from now on; health says NOT_SERVING. The error names the address.
  static StatusOr<std::unique_ptr<GrpcServer>> Start(const GrpcConfig& config, const Handlers& handlers,
                                                     const Admin* admin, Executor* executor);
  ~GrpcServer();  // Stop at once

  int port() const;
  int calls_in_flight() const;    // health's watches and load's streams do not count
  void SetServing(bool serving);  // what the health service says, for every service
  // Accepts no more, waits for the calls in flight until `deadline`, cancels the rest. Idempotent.
  void Stop(absl::Time deadline);

 private:
  struct Impl;
  explicit GrpcServer(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace t6::server
