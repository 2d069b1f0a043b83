#include "server/http/offload.h"

#include <boost/asio/post.hpp>
#include <utility>

#include "engine/base/check.h"
#include "server/http/routed_app.h"

namespace t6::server {

RouteFunction OffloadedTo(Executor* executor, RouteFunction function) {
  T6_CHECK(executor != nullptr);
  auto shared = std::make_shared<const RouteFunction>(std::move(function));
  return [executor, shared](HttpRequest& request, const std::string& tail,
                            const HttpApp::Reply& reply) -> std::shared_ptr<void> {
    const boost::asio::any_io_executor strand = request.executor;
    HttpApp::Reply posted = [strand, reply](HttpReply answer) {
      boost::asio::post(strand, [reply, answer = std::move(answer)]() mutable { reply(std::move(answer)); });
    };
    // What the connection holds until the reply; touched on the strand alone.
    auto held = std::make_shared<std::shared_ptr<void>>();
    auto moved = std::make_shared<HttpRequest>(std::move(request));
    const Status accepted = executor->TryPost(
        [shared, strand, tail, held = std::weak_ptr(held), moved = std::move(moved), posted]() mutable {
          if (held.expired()) return;
          std::shared_ptr<void> work = (*shared)(*moved, tail, posted);
          moved.reset();
          boost::asio::post(strand, [held = std::move(held), work = std::move(work)]() mutable {
            if (const auto place = held.lock()) *place = std::move(work);
          });
        });
    if (!accepted.ok()) reply(ErrorReply(accepted));
    return held;
  };
}

}  // namespace t6::server
