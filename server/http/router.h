// Which function answers which method and path. HEAD goes where GET goes. Immutable once built; thread-safe
// then.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "server/http/http_types.h"

namespace t6::server {

// `tail`: what stands where the pattern has its star.
using RouteFunction = std::function<std::shared_ptr<void>(HttpRequest& request, const std::string& tail,
                                                          const HttpApp::Reply& reply)>;

class Router {
 public:
  struct Match {
    const RouteFunction* function = nullptr;  // none: 405 with `allow`, or 404 without it
    std::string tail;
    std::string allow;
  };

  // `pattern` is a path; a final star stands for one character or more, slashes too.
  void Add(std::string method, std::string pattern, RouteFunction function);
  Match Find(std::string_view method, std::string_view path) const;

 private:
  struct Route {
    std::string method, pattern;
    RouteFunction function;
  };
  std::vector<Route> routes_;
};

}  // namespace t6::server
