#include "engine/event_stream.h"

#include <iterator>
#include <utility>

namespace t6 {
namespace {

void MoveAppend(std::vector<TokenOutput>& from, std::vector<TokenOutput>& to) {
  if (to.empty()) {
    to = std::move(from);
  } else {
    to.insert(to.end(), std::make_move_iterator(from.begin()), std::make_move_iterator(from.end()));
  }
}

}  // namespace

void EventStream::Push(TokenEvent event) {
  absl::MutexLock lock(&mutex_);
  MoveAppend(event.prompt_scores, event_.prompt_scores);
  MoveAppend(event.tokens, event_.tokens);
  event_.finish = event.finish;
  event_.status = std::move(event.status);
  event_.stop_token = event.stop_token;
  event_.cached_tokens = event.cached_tokens;
  event_.queue_time = event.queue_time;
  const bool was_waiting = std::exchange(waiting_, true);
  // Under the lock, so that a listener that was removed is never called again. It only posts (see
  // SetListener).
  if (!was_waiting && listener_) listener_();
}

size_t EventStream::unread_tokens() const {
  absl::MutexLock lock(&mutex_);
  return waiting_ ? event_.tokens.size() : 0;
}

void EventStream::SetListener(std::function<void()> listener) {
  absl::MutexLock lock(&mutex_);
  listener_ = std::move(listener);
  if (waiting_ && listener_) listener_();
}

bool EventStream::Poll(TokenEvent* event) {
  absl::MutexLock lock(&mutex_);
  if (!waiting_) return false;
  *event = std::exchange(event_, TokenEvent{});
  waiting_ = false;
  return true;
}

bool EventStream::Wait(TokenEvent* event, absl::Duration timeout) {
  absl::MutexLock lock(&mutex_);
  if (!mutex_.AwaitWithTimeout(absl::Condition(this, &EventStream::has_event), timeout)) return false;
  *event = std::exchange(event_, TokenEvent{});
  waiting_ = false;
  return true;
}

}  // namespace t6
