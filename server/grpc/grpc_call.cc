#include "server/grpc/grpc_call.h"

#include <string>

#include "server/auth.h"
#include "server/error_map.h"
#include "server/grpc/load_service.h"
#include "server/request_id.h"

namespace t6::server {
namespace {

constexpr char kRequestId[] = "x-request-id";

std::string_view MetadataOf(const grpc::CallbackServerContext& context, const char* name) {
  const auto& metadata = context.client_metadata();
  const auto found = metadata.find(name);
  return found == metadata.end() ? std::string_view()
                                 : std::string_view(found->second.data(), found->second.size());
}

// A header value is visible ASCII; a field's name may quote what a client sent.
bool IsHeaderSafe(const std::string& text) { return IsValidRequestId(text); }

}  // namespace

Status CallBudget::Take(size_t bytes) {
  const size_t all = bytes_ += bytes;
  const int calls = ++calls_;  // last: who sees the call sees its bytes
  if (calls > max_calls_)
    return ResourceExhausted("{} calls are being answered, the most that are", max_calls_);
  if (all <= max_bytes_ || calls == 1) return absl::OkStatus();
  return ResourceExhausted("messages of {} bytes are being answered, the most that are", max_bytes_);
}

void CallBudget::GiveBack(size_t bytes) {
  --calls_;
  bytes_ -= bytes;
}

CallContext BeginCall(grpc::CallbackServerContext* context) {
  CallContext call;
  call.transport = "grpc";
  call.request_id = RequestIdFrom(MetadataOf(*context, kRequestId));
  // In the trailers: with a header of its own a refusal would look to gRPC's clients like an answer that has
  // begun, which they never retry.
  context->AddTrailingMetadata(kRequestId, call.request_id);
  // The far future stands for no deadline, and overflows when converted.
  const auto deadline = context->deadline();
  if (deadline < std::chrono::system_clock::now() + std::chrono::hours(24 * 365)) {
    call.deadline = absl::FromChrono(deadline);
  }
  return call;
}

grpc::Status EndCall(const Status& status, const Admin& admin, grpc::CallbackServerContext* context) {
  context->AddTrailingMetadata(kLoadTrailer, LoadTrailer(admin));
  if (status.ok()) return grpc::Status::OK;
  const int retry_ms = WireErrorOf(status).retry_after_ms;
  if (retry_ms >= 0) context->AddTrailingMetadata("grpc-retry-pushback-ms", std::to_string(retry_ms));
  const std::string param = GetErrorParam(status);
  if (IsHeaderSafe(param)) context->AddTrailingMetadata("t6-error-param", param);
  return grpc::Status(static_cast<grpc::StatusCode>(status.code()), std::string(MessageOf(status)));
}

Status Admit(const GrpcDeps& deps, const grpc::CallbackServerContext& context, CallContext* call) {
  if (deps.handlers.keys != nullptr) {
    T6_ASSIGN_OR_RETURN(call->tenant,
                        deps.handlers.keys->Check(MetadataOf(context, "authorization"), call->transport));
  }
  const Admin& admin = *deps.admin;
  if (admin.accepts_requests()) return absl::OkStatus();
  switch (admin.state()) {
    case ServingState::kStarting:
      return Unavailable("the model is still being loaded");
    case ServingState::kFailed:
      return Unavailable("the engine has failed");
    default:
      return Unavailable("the server is shutting down");
  }
}

}  // namespace t6::server
