// What a transport (gRPC, HTTP) and a handler share: who calls, and one completion in flight.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "absl/time/time.h"
#include "engine/base/status.h"

namespace t6::server {

struct CallContext {
  std::string request_id;  // x-request-id when the client sent one, else made up; echoed and logged
  std::string tenant;      // that the API key names; empty without keys
  absl::Time deadline = absl::InfiniteFuture();
  std::string transport;  // "grpc" or "http", for logs
};

// A completion that runs. The transport pulls one chunk at a time, so a slow reader never holds the engine.
// Destroying an unfinished call cancels it. One thread at a time calls it.
template <typename Chunk>
class StreamingCall {
 public:
  virtual ~StreamingCall() = default;
  // Calls `done` exactly once, on the server's executor (never inside Next): with the next chunk, with
  // nullopt at the good end, or with an error, after which nothing more comes. At most one Next is pending.
  using Done = std::function<void(StatusOr<std::optional<Chunk>>)>;
  virtual void Next(Done done) = 0;
  // Ends the request; a pending Next is answered CANCELLED.
  virtual void Cancel() = 0;
};

// A unary completion that runs: destroying it before `done` was called cancels the request.
class UnaryCall {
 public:
  virtual ~UnaryCall() = default;
};

}  // namespace t6::server
