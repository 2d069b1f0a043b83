#include "clients/cli/connection.h"

#include <fmt/format.h>

#include <chrono>
#include <cstdio>

namespace t6::cli {
namespace {

constexpr std::chrono::seconds kConnectTimeout(20);

const char* NameOf(absl::StatusCode code) {
  switch (code) {
    case absl::StatusCode::kCancelled:
      return "cancelled";
    case absl::StatusCode::kInvalidArgument:
      return "refused";
    case absl::StatusCode::kNotFound:
      return "not found";
    case absl::StatusCode::kResourceExhausted:
      return "the server is at its limit, try again later";
    case absl::StatusCode::kUnavailable:
      return "the server takes no requests right now";
    case absl::StatusCode::kDeadlineExceeded:
      return "out of time";
    case absl::StatusCode::kUnauthenticated:
      return "not allowed (--api-key gives the key)";
    case absl::StatusCode::kUnimplemented:
      return "the server does not know this call; is it a t6d?";
    default:
      return "the server failed";
  }
}

client::ClientOptions ClientOptionsOf(const Options& options) {
  client::ClientOptions result;
  result.api_key = options.api_key;
  return result;
}

}  // namespace

bool Reach(grpc::Channel& channel) {
  const auto deadline = std::chrono::system_clock::now() + kConnectTimeout;
  while (true) {
    const grpc_connectivity_state state = channel.GetState(/*try_to_connect=*/true);
    if (state == GRPC_CHANNEL_READY) return true;
    if (state == GRPC_CHANNEL_TRANSIENT_FAILURE || !channel.WaitForStateChange(state, deadline)) return false;
  }
}

Connection::Connection(const Options& options)
    : client(options.server, ClientOptionsOf(options)), address_(options.server) {}

bool Connection::Reach() {
  if (cli::Reach(*client.channel())) return true;
  fmt::print(stderr,
             "t6: no server answers at {}. Start one with `make serve` or\n"
             "    t6d --model DIR, or say where it is with --server HOST:PORT (the gRPC address).\n",
             address_);
  return false;
}

ExitCode Connection::Explain(const absl::Status& status) const {
  fmt::print(stderr, "t6: {}: {}\n", NameOf(status.code()), std::string(status.message()));
  return kFailed;
}

}  // namespace t6::cli
