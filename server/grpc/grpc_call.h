// What every RPC has around its handler: the call's context from metadata and deadline, and a Status on its
// way out.
#pragma once

#include <grpcpp/server_context.h>
#include <grpcpp/support/status.h>

#include <atomic>
#include <memory>

#include "engine/base/status.h"
#include "server/admin.h"
#include "server/call.h"
#include "server/executor.h"
#include "server/handlers.h"

namespace t6::server {

// What the calls of t6.v1 may take together: a call's message lives as long as the call. Thread-safe.
class CallBudget {
 public:
  CallBudget(int max_calls, size_t max_bytes) : max_calls_(max_calls), max_bytes_(max_bytes) {}
  // Always takes, or giving back would need to know: RESOURCE_EXHAUSTED says that the call must end.
  Status Take(size_t bytes);
  void GiveBack(size_t bytes);
  int calls() const { return calls_; }

 private:
  const int max_calls_;
  const size_t max_bytes_;
  std::atomic<int> calls_{0};
  std::atomic<size_t> bytes_{0};
};

// What all services need; outlives them.
struct GrpcDeps {
  Handlers handlers;
  const Admin* admin = nullptr;
  Executor* executor = nullptr;
  std::shared_ptr<CallBudget> budget;
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
