// Which names the server answers to, against DNS rebinding: a page of evil.example, whose name is then made
// to mean 127.0.0.1, is of one origin with what it reaches there, so CORS does not stop it; its Host header
// still says evil.example. Immutable; thread-safe.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "engine/base/status.h"
#include "server/http/http_types.h"

namespace t6::server {

// "localhost", a name below it, 127.0.0.0/8 or ::1, with or without brackets.
bool IsLoopback(std::string_view host);

class HostPolicy {
 public:
  // `names`: the only ones besides this machine's own; "*" is any. None, and `is_local` (loopback, no keys):
  // what a browser's page sends must name this machine. None otherwise: all.
  HostPolicy(std::vector<std::string> names, bool is_local) : names_(std::move(names)), is_local_(is_local) {}
  // PERMISSION_DENIED names the host.
  Status Check(const HttpRequest& request) const;

 private:
  const std::vector<std::string> names_;
  const bool is_local_;
};

}  // namespace t6::server
