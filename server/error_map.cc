#include "server/error_map.h"

#include <optional>

#include "absl/strings/cord.h"

namespace t6::server {
namespace {

using Code = absl::StatusCode;

constexpr int kNoRetry = -1;

// 499 is what nginx made usual for "the client went away"; nobody is there to read it.
constexpr WireError kTable[] = {
    {Code::kInvalidArgument, 400, "invalid_request_error", nullptr, kNoRetry},
    {Code::kOutOfRange, 400, "invalid_request_error", nullptr, kNoRetry},
    {Code::kFailedPrecondition, 400, "invalid_request_error", nullptr, kNoRetry},
    {Code::kUnimplemented, 400, "invalid_request_error", "unsupported", kNoRetry},
    {Code::kUnauthenticated, 401, "authentication_error", "invalid_api_key", kNoRetry},
    {Code::kPermissionDenied, 403, "permission_error", nullptr, kNoRetry},
    {Code::kNotFound, 404, "not_found_error", "not_found", kNoRetry},
    {Code::kAlreadyExists, 409, "invalid_request_error", "already_exists", kNoRetry},
    {Code::kAborted, 409, "invalid_request_error", "aborted", kNoRetry},
    {Code::kResourceExhausted, 429, "rate_limit_error", "rate_limit_exceeded", 1000},
    {Code::kCancelled, 499, "cancelled_error", "cancelled", kNoRetry},
    {Code::kDeadlineExceeded, 504, "timeout_error", "deadline_exceeded", kNoRetry},
    // Short: a balancer retries on another replica at once.
    {Code::kUnavailable, 503, "service_unavailable_error", "unavailable", 100},
    {Code::kDataLoss, 500, "server_error", nullptr, kNoRetry},
    {Code::kUnknown, 500, "server_error", nullptr, kNoRetry},
    {Code::kInternal, 500, "server_error", nullptr, kNoRetry},
};

constexpr char kParamUrl[] = "t6/error-param";
constexpr char kCodeUrl[] = "t6/error-code";

std::string PayloadOf(const Status& status, const char* url) {
  const auto payload = status.GetPayload(url);
  return payload.has_value() ? std::string(*payload) : std::string();
}

}  // namespace

const WireError& WireErrorOf(const Status& status) {
  for (const WireError& row : kTable) {
    if (row.code == status.code()) return row;
  }
  return kTable[std::size(kTable) - 1];
}

Status SetErrorParam(Status status, std::string_view param) {
  status.SetPayload(kParamUrl, absl::Cord(AbslView(param)));
  return status;
}

std::string GetErrorParam(const Status& status) { return PayloadOf(status, kParamUrl); }

std::string Clipped(std::string_view text) {
  constexpr size_t kMost = 64;
  if (text.size() <= kMost) return std::string(text);
  size_t cut = kMost;
  while (cut > 0 && (text[cut] & 0xC0) == 0x80) --cut;
  return fmt::format("{}...", text.substr(0, cut));
}

Status SetErrorCode(Status status, std::string_view code) {
  status.SetPayload(kCodeUrl, absl::Cord(AbslView(code)));
  return status;
}

std::string GetErrorCode(const Status& status) {
  std::string code = PayloadOf(status, kCodeUrl);
  if (code.empty() && WireErrorOf(status).error_code != nullptr) code = WireErrorOf(status).error_code;
  return code;
}

}  // namespace t6::server
