// Names for requests: the client's x-request-id where it is fit for a header and a log, else one made up.
#pragma once

#include <string>
#include <string_view>

namespace t6::server {

// 1 to 128 visible ASCII characters.
bool IsValidRequestId(std::string_view id);
// `client_id` when valid, else a fresh one.
std::string RequestIdFrom(std::string_view client_id);
// `prefix` and 24 random hexadecimal digits: "chatcmpl-5f...". Thread-safe.
std::string MakeId(std::string_view prefix);

}  // namespace t6::server
