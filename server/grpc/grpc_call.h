// What every RPC has around its handler: the call's context from metadata and deadline, and a Status on its
// way out.
#pragma once

#include <grpcpp/server_context.h>
#include <grpcpp/support/status.h>

#include <atomic>

#include "engine/base/status.h"
#include "server/admin.h"
#include "server/call.h"
#include "server/executor.h"
#include "server/handlers.h"

namespace t6::server {

// What all services need; outlives them.
struct GrpcDeps {
  Handlers handlers;
  const Admin* admin = nullptr;
  Executor* executor = nullptr;
  mutable std::atomic<int> in_flight{0};  // calls of t6.v1
};

// Takes x-request-id from the metadata (or makes one up) and echoes it in the trailers.
CallContext BeginCall(grpc::CallbackServerContext* context);
// Adds the load report, grpc-retry-pushback-ms where a retry makes sense, and the field at fault as
// t6-error-param.
grpc::Status EndCall(const Status& status, const Admin& admin, grpc::CallbackServerContext* context);
// UNAUTHENTICATED without a known API key, where keys are asked for; UNAVAILABLE while the model loads and
// once the server drains. Fills in the call's tenant.
Status Admit(const GrpcDeps& deps, const grpc::CallbackServerContext& context, CallContext* call);

}  // namespace t6::server
