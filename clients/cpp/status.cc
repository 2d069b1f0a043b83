#include "t6client/status.h"

#include <grpcpp/client_context.h>
#include <grpcpp/support/status.h>

#include <charconv>

#include "absl/strings/cord.h"

namespace t6::client {
namespace {

// The trailer whose value a Status keeps under this name.
constexpr const char* kKept[] = {"t6-error-param", "x-request-id", "grpc-retry-pushback-ms"};

std::string Kept(const absl::Status& status, const char* name) {
  const auto payload = status.GetPayload(name);
  return payload.has_value() ? std::string(*payload) : std::string();
}

}  // namespace

std::string ErrorParam(const absl::Status& status) { return Kept(status, kKept[0]); }

std::string RequestId(const absl::Status& status) { return Kept(status, kKept[1]); }

std::optional<std::chrono::milliseconds> RetryAfter(const absl::Status& status) {
  const std::string text = Kept(status, kKept[2]);
  uint32_t milliseconds = 0;
  const auto [rest, error] = std::from_chars(text.data(), text.data() + text.size(), milliseconds);
  if (error != std::errc() || rest != text.data() + text.size()) return std::nullopt;
  return std::chrono::milliseconds(milliseconds);
}

absl::Status ToStatus(const grpc::Status& status, const grpc::ClientContext& context) {
  if (status.ok()) return absl::OkStatus();
  absl::Status result(static_cast<absl::StatusCode>(status.error_code()), status.error_message());
  const auto& trailers = context.GetServerTrailingMetadata();
  for (const char* name : kKept) {
    const auto found = trailers.find(name);
    if (found == trailers.end()) continue;
    result.SetPayload(name, absl::Cord(absl::string_view(found->second.data(), found->second.size())));
  }
  return result;
}

}  // namespace t6::client
