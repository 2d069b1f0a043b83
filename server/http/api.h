// The HTTP API: OpenAI's routes and the daemon's own, over the handlers that gRPC uses too. docs/api.md is
// its reference. Thread-safe. `handlers` and `admin` outlive it.
#pragma once

#include "server/admin.h"
#include "server/config.h"
#include "server/handlers.h"
#include "server/http/admin_api.h"
#include "server/http/cors.h"
#include "server/http/host_policy.h"

namespace t6::server {

class HttpApi : public AdminApi {
 public:
  HttpApi(const Handlers& handlers, const Admin& admin, const HttpConfig& config, bool with_metrics = true);

  std::shared_ptr<void> Handle(HttpRequest request, Reply reply) override;

 private:
  Reply WithLoad(const HttpRequest& request, const Reply& reply) const;
  void AddModelRoutes();
  // Refused with 403 under a name that is not ours, with 401 without a known API key, where keys are asked
  // for, and with 503 while no model serves. Answers carry a load report when asked for one.
  void AddModelRoute(std::string method, std::string pattern, RouteFunction function);
  // The same, and takes a JSON body; `function` runs on `executor`.
  void AddPost(std::string path, Executor* executor, RouteFunction function);

  const Handlers handlers_;
  const Admin& admin_;
  const int max_json_depth_;
  const CorsPolicy cors_;
  const HostPolicy hosts_;
};

}  // namespace t6::server
