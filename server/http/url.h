// The path of a request target. Pure.
#pragma once

#include <optional>
#include <string>
#include <string_view>

namespace t6::server {

// "/v1/models/a%2Fb?x=1" -> "/v1/models/a/b"; also takes the form with scheme and host that proxies send, and
// "*". Nothing for a bad escape, a control character, or what is not a path.
std::optional<std::string> PathOfTarget(std::string_view target);

}  // namespace t6::server
