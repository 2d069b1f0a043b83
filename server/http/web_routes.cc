#include "server/http/web_routes.h"

#include <string>
#include <utility>
#include <vector>

#include "server/web/web_files.h"

namespace t6::server {
namespace {

// Scripts and styles from files alone; trusted-types: no script can turn text into HTML.
constexpr char kContentSecurityPolicy[] =
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; "
    "trusted-types 'none'";

HttpReply Serve(const WebFile& file, const HttpRequest& request) {
  HttpReply reply;
  reply.content_type = file.content_type;
  // no-cache: kept, but asked for by its ETag each time, so that a new server shows its own page at once.
  reply.headers = {{"ETag", std::string(file.etag)},
                   {"Cache-Control", "no-cache"},
                   {"Content-Security-Policy", kContentSecurityPolicy},
                   {"X-Content-Type-Options", "nosniff"},
                   {"Referrer-Policy", "no-referrer"},
                   {"Cross-Origin-Opener-Policy", "same-origin"},
                   {"Cross-Origin-Resource-Policy", "same-origin"}};
  if (NamesEtag(request.Header("if-none-match"), file.etag)) {
    reply.status = 304;
    reply.content_type.clear();
  } else {
    reply.body = file.body;
  }
  return reply;
}

}  // namespace

void AddWebRoutes(Router& router) {
  for (const WebFile& file : WebFiles()) {
    router.Add("GET", std::string(file.path),
               [&file](const HttpRequest& request, const std::string&, const HttpApp::Reply& reply) {
                 reply(Serve(file, request));
                 return nullptr;
               });
  }
}

bool NamesEtag(std::string_view if_none_match, std::string_view etag) {
  while (!if_none_match.empty()) {
    const size_t comma = if_none_match.find(',');
    std::string_view tag = if_none_match.substr(0, comma);
    if_none_match.remove_prefix(comma == std::string_view::npos ? if_none_match.size() : comma + 1);
    while (!tag.empty() && (tag.front() == ' ' || tag.front() == '\t')) tag.remove_prefix(1);
    while (!tag.empty() && (tag.back() == ' ' || tag.back() == '\t')) tag.remove_suffix(1);
    if (tag.starts_with("W/")) tag.remove_prefix(2);
    if (tag == "*" || tag == etag) return true;
  }
  return false;
}

}  // namespace t6::server
