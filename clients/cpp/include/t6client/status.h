// What a failed call's Status knows besides code and message, which quotes the offending value. Pure
// functions.
#pragma once

#include <chrono>
#include <optional>
#include <string>

#include "absl/status/status.h"

namespace grpc {
class ClientContext;
class Status;
}  // namespace grpc

namespace t6::client {

// The request's field at fault, as the HTTP API names it ("temperature"); empty: the server named none.
std::string ErrorParam(const absl::Status& status);
// The server's name for the request, as in its log; empty: it never came there.
std::string RequestId(const absl::Status& status);
// After which time the server would like to see the request again, where it said so.
std::optional<std::chrono::milliseconds> RetryAfter(const absl::Status& status);

// For calls on stubs of your own. `context` is the call's, after its end.
absl::Status ToStatus(const grpc::Status& status, const grpc::ClientContext& context);

}  // namespace t6::client
