#include "server/http/sse.h"

#include <fmt/format.h>

#include "engine/base/check.h"

namespace t6::server {

std::string SseEvent(std::string_view data) {
  T6_CHECK(data.find_first_of("\r\n") == std::string_view::npos);
  return fmt::format("data: {}\n\n", data);
}

HttpReply SseReply(std::string events, std::shared_ptr<BodyStream> stream) {
  HttpReply reply;
  reply.content_type = "text/event-stream; charset=utf-8";
  reply.headers = {{"Cache-Control", "no-cache"}, {"X-Accel-Buffering", "no"}};
  reply.body = std::move(events);
  reply.stream = std::move(stream);
  return reply;
}

}  // namespace t6::server
