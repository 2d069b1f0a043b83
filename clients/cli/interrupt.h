// Ctrl-C: while something runs it cancels that; otherwise it ends the program with 130. A thread of its own
// takes the signal, because cancelling a call is not allowed in a signal handler.
#pragma once

#include <functional>
#include <stop_token>

namespace t6::cli {

// Call first in main, before any other thread exists.
void WatchInterrupts();

// While it lives, ctrl-C stops whoever has its token, or calls `cancel` once on the watching thread. One at a
// time.
class Interruptible {
 public:
  Interruptible() : Interruptible([this] { source_.request_stop(); }) {}
  explicit Interruptible(std::function<void()> cancel);
  ~Interruptible();
  Interruptible(const Interruptible&) = delete;
  Interruptible& operator=(const Interruptible&) = delete;

  std::stop_token token() const { return source_.get_token(); }

 private:
  std::stop_source source_;
};

// Whether ctrl-C cancelled a call since the last time this was asked.
bool TakeInterrupted();

}  // namespace t6::cli
