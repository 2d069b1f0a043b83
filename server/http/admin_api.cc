#include "server/http/admin_api.h"

#include "server/http/json_value.h"

namespace t6::server {

AdminApi::AdminApi(const Admin& admin, bool with_metrics) {
  const auto yes_or_503 = [](bool yes) { return TextReply(yes ? 200 : 503, yes ? "ok\n" : "no\n"); };
  AddGet("/health",
         [&admin, yes_or_503](const HttpRequest&) { return yes_or_503(admin.accepts_requests()); });
  AddGet("/readyz", [&admin, yes_or_503](const HttpRequest&) { return yes_or_503(admin.ready()); });
  AddGet("/livez", [&admin, yes_or_503](const HttpRequest&) {
    return yes_or_503(admin.state() != ServingState::kFailed && admin.state() != ServingState::kStopped);
  });
  AddGet("/version", [&admin](const HttpRequest&) {
    return JsonReply(Json{{"version", admin.Version()}}.dump());
  });
  if (!with_metrics) return;
  AddGet("/metrics", [&admin](const HttpRequest&) {
    return HttpReply{.content_type = "text/plain; version=0.0.4; charset=utf-8", .body = admin.MetricsText()};
  });
}

}  // namespace t6::server
