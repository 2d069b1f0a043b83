// The format of server-sent events. Pure functions.
#pragma once

#include <memory>
#include <string>
#include <string_view>

#include "server/http/http_types.h"

namespace t6::server {

// `data` is one line.
std::string SseEvent(std::string_view data);
inline constexpr std::string_view kSseDone = "data: [DONE]\n\n";

// A reply of events; without `stream` these are all. Proxies are told neither to keep nor to gather them.
HttpReply SseReply(std::string events, std::shared_ptr<BodyStream> stream);

}  // namespace t6::server
