#include "server/http/routed_app.h"

#include "server/error_map.h"
#include "server/http/json_value.h"
#include "server/http/openai_replies.h"

namespace t6::server {

HttpReply JsonReply(std::string json) { return {.body = std::move(json)}; }

HttpReply TextReply(int status, std::string text) {
  return {.status = status, .content_type = "text/plain; charset=utf-8", .body = std::move(text)};
}

HttpReply ErrorReply(const Status& status) {
  const WireError& error = WireErrorOf(status);
  HttpReply reply{.status = error.http_status, .body = ErrorJson(status)};
  if (error.retry_after_ms >= 0) {
    // The header counts in whole seconds.
    reply.headers.emplace_back("Retry-After", std::to_string((error.retry_after_ms + 999) / 1000));
  }
  if (error.http_status == 401) reply.headers.emplace_back("WWW-Authenticate", "Bearer");
  // Balancers then send the client's next request to another replica.
  reply.close = error.http_status == 503;
  return reply;
}

void RoutedApp::AddGet(std::string path, std::function<HttpReply(const HttpRequest&)> make) {
  router_.Add("GET", std::move(path),
              [make = std::move(make)](const HttpRequest& request, const std::string&, const Reply& reply) {
                reply(make(request));
                return nullptr;
              });
}

std::shared_ptr<void> RoutedApp::Handle(HttpRequest request, Reply reply) {
  const Router::Match match = router_.Find(request.method, request.path);
  if (match.function == nullptr) {
    HttpReply error = match.allow.empty()
                          ? Error(404, fmt::format("there is nothing at {}", Shortened(Json(request.path))))
                          : Error(405, fmt::format("{} does not take {}", Shortened(Json(request.path)),
                                                   Shortened(Json(request.method))));
    if (!match.allow.empty()) error.headers.emplace_back("Allow", match.allow);
    reply(std::move(error));
    return nullptr;
  }
  return (*match.function)(request, match.tail, reply);
}

HttpReply RoutedApp::Error(int status, std::string_view message) {
  if (status == 503) return ErrorReply(Unavailable("{}", message));
  return {.status = status,
          .body = ErrorJson(message, status >= 500 ? "server_error" : "invalid_request_error", "", "")};
}

}  // namespace t6::server
