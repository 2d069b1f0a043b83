#include "server/http/cors.h"

#include <algorithm>

namespace t6::server {

bool CorsPolicy::Allows(std::string_view origin) const {
  return !origin.empty() && (Has(origin) || Has("*"));
}

bool CorsPolicy::Has(std::string_view origin) const {
  return std::find(origins_.begin(), origins_.end(), origin) != origins_.end();
}

CorsPolicy::Headers CorsPolicy::HeadersFor(const HttpRequest& request) const {
  if (origins_.empty()) return {};
  const std::string_view origin = request.Header("origin");
  // A cache between must not give one origin's answer to another.
  if (!Allows(origin)) return {{"Vary", "Origin"}};
  return {{"Access-Control-Allow-Origin", Has(origin) ? std::string(origin) : "*"},
          {"Access-Control-Expose-Headers", "x-request-id, retry-after"},
          {"Vary", "Origin"}};
}

bool CorsPolicy::IsAllowedPreflight(const HttpRequest& request) const {
  return request.method == "OPTIONS" && !request.Header("access-control-request-method").empty() &&
         Allows(request.Header("origin"));
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
