// What the HTTP applications have in common: answer by route, and errors in OpenAI's shape. Immutable once
// built; thread-safe then.
#pragma once

#include <functional>
#include <string>

#include "engine/base/status.h"
#include "server/http/http_types.h"
#include "server/http/router.h"

namespace t6::server {

HttpReply JsonReply(std::string json);
HttpReply TextReply(int status, std::string text);
HttpReply ErrorReply(const Status& status);

class RoutedApp : public HttpApp {
 public:
  std::shared_ptr<void> Handle(HttpRequest request, Reply reply) override;
  HttpReply Error(int status, std::string_view message) override;

 protected:
  // A route that answers at once.
  void AddGet(std::string path, std::function<HttpReply(const HttpRequest&)> make);

  Router router_;
};

}  // namespace t6::server
