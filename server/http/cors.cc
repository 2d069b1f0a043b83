#include "server/http/cors.h"

#include <algorithm>

namespace t6::server {

CorsPolicy::Headers CorsPolicy::HeadersFor(const HttpRequest& request) const {
  const std::string_view origin = request.Header("origin");
  if (origin.empty()) return {};
  const auto has = [this](std::string_view wanted) {
    return std::find(origins_.begin(), origins_.end(), wanted) != origins_.end();
  };
  if (!has(origin) && !has("*")) return {};
  return {{"Access-Control-Allow-Origin", has(origin) ? std::string(origin) : "*"},
          {"Access-Control-Expose-Headers", "x-request-id, retry-after"},
          {"Vary", "Origin"}};
}

bool CorsPolicy::IsPreflight(const HttpRequest& request) {
  return request.method == "OPTIONS" && !request.Header("access-control-request-method").empty();
}

HttpReply CorsPolicy::PreflightReply() {
  HttpReply reply{.content_type = ""};
  reply.headers = {
      {"Access-Control-Allow-Methods", "GET, POST, PATCH, DELETE"},
      // Of any name, since clients of OpenAI's API send headers of their own; the star does not cover a key.
      {"Access-Control-Allow-Headers", "*, authorization"},
      {"Access-Control-Max-Age", "600"}};
  return reply;
}

}  // namespace t6::server
