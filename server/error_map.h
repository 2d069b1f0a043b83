// One table from Status to what the wires carry: gRPC code, HTTP status, OpenAI's error type and code, when
// to retry. And two payloads of a Status that only clients see: the request's field at fault, and a code more
// telling than the table's. Pure functions.
#pragma once

#include <string>
#include <string_view>

#include "engine/base/status.h"

namespace t6::server {

struct WireError {
  absl::StatusCode code;  // gRPC's codes are the same numbers
  int http_status;
  const char* type;        // OpenAI's error.type
  const char* error_code;  // OpenAI's error.code; nullptr: null
  int retry_after_ms;      // Retry-After and grpc-retry-pushback-ms; below 0: no such hint
};

// `status` must not be OK.
const WireError& WireErrorOf(const Status& status);

// `param` is named as in the HTTP API: "temperature", "messages[2].role".
Status SetErrorParam(Status status, std::string_view param);
std::string GetErrorParam(const Status& status);  // empty: none
// For example "model_not_found".
Status SetErrorCode(Status status, std::string_view code);
std::string GetErrorCode(const Status& status);  // the payload's, else the table's, else empty

// A client's text as a message may quote it: at most 64 bytes and an ellipsis, cut between characters.
std::string Clipped(std::string_view text);

// INVALID_ARGUMENT about one field, in one call. The message should begin with the field and quote the value.
template <typename... Args>
Status BadField(std::string_view param, fmt::format_string<Args...> format, Args&&... args) {
  return SetErrorParam(InvalidArgument(format, std::forward<Args>(args)...), param);
}

}  // namespace t6::server
