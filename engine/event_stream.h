// One request's events, from the engine thread to the server's executor. The one shared type (shared_ptr on
// both ends). A slow reader never holds the engine: events merge into the last one that was not read.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "engine/base/status.h"
#include "engine/request.h"
#include "engine/token_output.h"

namespace t6 {

enum class FinishReason : uint8_t {
  kNone,       // still running
  kStop,       // a stop token, or Engine::Finish (a stop string)
  kLength,     // max_tokens, or the context is full
  kCancelled,  // the client went away, or the deadline passed
  kError,      // `status` says what
};

struct TokenEvent {
  std::vector<TokenOutput> prompt_scores;  // with prompt log-probabilities: of prompt tokens 1..n-1, in order
  std::vector<TokenOutput> tokens;         // new tokens, in order; a stop token is the last one
  FinishReason finish = FinishReason::kNone;
  Status status;              // not OK only with kError or kCancelled
  int32_t stop_token = -1;    // with kStop: the token that ended it, or -1
  absl::Duration queue_time;  // submission to admission; final once the first token came
  int32_t cached_tokens = 0;  // prompt tokens whose factors were reused; final once the first token came
};

class EventStream {
 public:
  explicit EventStream(RequestId id) : id_(id) {}

  RequestId id() const { return id_; }

  // --- engine's end ---
  // Appends to the event that waits to be read, or makes one, and tells the listener when there was none
  // waiting.
  void Push(TokenEvent event) ABSL_LOCKS_EXCLUDED(mutex_);
  // Tokens waiting to be read: the engine cancels a request whose reader falls too far behind.
  size_t unread_tokens() const ABSL_LOCKS_EXCLUDED(mutex_);

  // --- server's end ---
  // Called (on the engine thread, so it must only post) whenever an event becomes available; at once if one
  // is. An empty function removes the listener; after that returns it is not called again.
  void SetListener(std::function<void()> listener) ABSL_LOCKS_EXCLUDED(mutex_);
  // Takes what is there; false when nothing is.
  bool Poll(TokenEvent* event) ABSL_LOCKS_EXCLUDED(mutex_);
  // Waits for an event: for tests and simple callers. False after `timeout`.
  bool Wait(TokenEvent* event, absl::Duration timeout) ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  bool has_event() const ABSL_SHARED_LOCKS_REQUIRED(mutex_) { return waiting_; }

  const RequestId id_;
  mutable absl::Mutex mutex_;
  TokenEvent event_ ABSL_GUARDED_BY(mutex_);
  bool waiting_ ABSL_GUARDED_BY(mutex_) = false;
  std::function<void()> listener_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace t6
