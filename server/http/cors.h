// Which web pages of other origins may call (CORS). A browser asks before it sends JSON or a key to another
// origin; without an allowed origin it gets no leave, and the page sees nothing. Immutable; thread-safe.
#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "server/http/http_types.h"

namespace t6::server {

class CorsPolicy {
 public:
  explicit CorsPolicy(std::vector<std::string> origins) : origins_(std::move(origins)) {}

  using Headers = std::vector<std::pair<std::string, std::string>>;
  // What an answer to `request` carries: nothing where no origin is allowed at all, else Vary, and the leave
  // for an origin that has it.
  Headers HeadersFor(const HttpRequest& request) const;
  // The browser's question whether it may, and it may.
  bool IsAllowedPreflight(const HttpRequest& request) const;
  static HttpReply PreflightReply();

 private:
  bool Allows(std::string_view origin) const;
  bool Has(std::string_view origin) const;

  const std::vector<std::string> origins_;
};

}  // namespace t6::server
