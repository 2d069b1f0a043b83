// A running completion as a body of server-sent events that the transport pulls.
#pragma once

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/post.hpp>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "server/call.h"
#include "server/http/http_types.h"
#include "server/http/openai_replies.h"
#include "server/http/sse.h"

namespace t6::server {

// `Events` writes one chunk as events (openai_replies.h). Everything runs on `executor`; the call's answers,
// which come on other threads, are posted there. Dropping it ends the completion.
template <typename Chunk, typename Events>
class CompletionStream : public BodyStream,
                         public std::enable_shared_from_this<CompletionStream<Chunk, Events>> {
 public:
  using Result = StatusOr<std::optional<Chunk>>;

  CompletionStream(std::unique_ptr<StreamingCall<Chunk>> call, Events events,
                   boost::asio::any_io_executor executor)
      : call_(std::move(call)), events_(std::move(events)), executor_(std::move(executor)) {}

  // Waits for the first events, so that an error before them is an ordinary HTTP error: `on_error` writes it.
  void Start(HttpApp::Reply reply, std::function<HttpReply(const Status&)> on_error) {
    Pull([self = this->weak_from_this(), reply, on_error](Result result) {
      const auto stream = self.lock();
      if (stream == nullptr) return;
      if (!result.ok()) return reply(on_error(result.status()));
      Piece first = stream->PieceOf(std::move(result));
      reply(SseReply(std::move(first.data), first.last ? nullptr : stream));
    });
  }

  void Next(std::function<void(Piece)> done) override {
    Pull([this, done = std::move(done)](Result result) { done(PieceOf(std::move(result))); });
  }

 private:
  // The next result that has something to write. `then` runs on executor_, while this lives.
  void Pull(std::function<void(Result)> then) {
    call_->Next(
        [weak = this->weak_from_this(), executor = executor_, then = std::move(then)](Result result) mutable {
          boost::asio::post(executor, [weak, then = std::move(then), result = std::move(result)]() mutable {
            const auto self = weak.lock();
            if (self == nullptr) return;
            if (result.ok() && result->has_value()) {
              self->text_ = self->events_.Write(**result);
              if (self->text_.empty()) return self->Pull(std::move(then));
            }
            then(std::move(result));
          });
        });
  }

  Piece PieceOf(Result result) {
    // The status line has gone out: the error is an event, and without [DONE] the end is not a good one.
    if (!result.ok()) return {.data = SseEvent(ErrorJson(result.status())), .last = true, .close = true};
    if (!result->has_value()) return {.data = std::string(kSseDone), .last = true};
    return {.data = std::move(text_)};
  }

  const std::unique_ptr<StreamingCall<Chunk>> call_;
  Events events_;
  const boost::asio::any_io_executor executor_;
  std::string text_;  // of the last chunk
};

}  // namespace t6::server
