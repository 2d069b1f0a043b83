// The HTTP API: OpenAI's routes and the daemon's own, over the handlers that gRPC uses too. docs/api.md is
// its reference. Thread-safe. `handlers` and `admin` outlive it.
#pragma once

#include "server/admin.h"
#include "server/handlers.h"
#include "server/http/http_types.h"
#include "server/http/router.h"

namespace t6::server {

class HttpApi : public HttpApp {
 public:
  HttpApi(const Handlers& handlers, const Admin& admin, int max_json_depth);

  std::shared_ptr<void> Handle(HttpRequest request, Reply reply) override;
  HttpReply Error(int status, std::string_view message) override;

 private:
  void AddAdminRoutes();
  void AddModelRoutes();
  // Refused with 503 while no model serves.
  void AddModelRoute(std::string method, std::string pattern, RouteFunction function);
  // The same, and takes a JSON body.
  void AddPost(std::string path, RouteFunction function);

  const Handlers handlers_;
  const Admin& admin_;
  const int max_json_depth_;
  Router router_;
};

}  // namespace t6::server
