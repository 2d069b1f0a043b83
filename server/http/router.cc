#include "server/http/router.h"

namespace t6::server {
namespace {

bool Matches(std::string_view pattern, std::string_view path, std::string* tail) {
  if (!pattern.ends_with('*')) return path == pattern;
  pattern.remove_suffix(1);
  if (!path.starts_with(pattern) || path.size() == pattern.size()) return false;
  *tail = path.substr(pattern.size());
  return true;
}

}  // namespace

void Router::Add(std::string method, std::string pattern, RouteFunction function) {
  routes_.push_back({std::move(method), std::move(pattern), std::move(function)});
}

Router::Match Router::Find(std::string_view method, std::string_view path) const {
  if (method == "HEAD") method = "GET";
  Match match;
  for (const Route& route : routes_) {
    if (!Matches(route.pattern, path, &match.tail)) continue;
    if (route.method == method) {
      match.function = &route.function;
      return match;
    }
    if (!match.allow.empty()) match.allow += ", ";
    match.allow += route.method == "GET" ? "GET, HEAD" : route.method;
  }
  return match;
}

}  // namespace t6::server
