// How a client reaches its server, and what one call may say about itself. Plain values.
#pragma once

#include <grpcpp/security/credentials.h>

#include <chrono>
#include <memory>
#include <optional>
#include <stop_token>
#include <string>

namespace t6::client {

// gRPC's own description of how t6d wants to be retried, JSON (proto/t6/v1/service_config.json): UNAVAILABLE
// and RESOURCE_EXHAUSTED, once, after the time in grpc-retry-pushback-ms, else after a random
// backoff; never once an answer has begun, nor when the hint is negative or unreadable.
extern const char kServiceConfig[];

struct ClientOptions {
  std::string api_key = {};                                         // sent as "Authorization: Bearer"
  std::string affinity = {};                                        // of calls that name none
  std::optional<std::chrono::milliseconds> timeout = std::nullopt;  // of calls that set none
  std::string service_config = kServiceConfig;
  bool retry = true;  // false: whatever the service config says
  // Null: no TLS.
  std::shared_ptr<grpc::ChannelCredentials> credentials = nullptr;
};

struct CallOptions {
  // For all attempts together; the server stops computing when it has passed.
  std::optional<std::chrono::milliseconds> timeout = std::nullopt;
  // Cancels the call, from any thread.
  std::stop_token stop = {};
  // Sent as x-t6-context: a balancer takes calls with the same value to the same replica. Visible ASCII.
  std::string affinity = {};
  // Sent as x-request-id, for the server's log. Visible ASCII.
  std::string request_id = {};
  // Wait for a server that cannot be reached, until the timeout, instead of failing.
  bool wait_for_ready = false;
};

}  // namespace t6::client
